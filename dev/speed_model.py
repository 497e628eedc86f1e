"""What the speed measurements share: the base model's shape, real sentence lengths, interleaved timing."""

import argparse
import copy
import functools
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm
from transformers import DebertaV2Config, DebertaV2Model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data_util import find_kor_nli_train_files, load_kor_nli, load_kor_sts
from kf_deberta.cli import InputError
from kf_deberta.model.attention import use_fast_attention
from kf_deberta.model.cpu import use_onednn_linear

HIDDEN, HEADS, INTERMEDIATE = 768, 12, 3072
# tokens at the 5th, 15th, ... 95th percentile of KorSTS train (mean 15.3) and of XNLI premises and hypotheses
# (mean 19.7), under a Korean WordPiece vocabulary of 8,000
STS_LENGTHS = [7, 9, 10, 11, 12, 14, 15, 17, 21, 33]
NLI_LENGTHS = [9, 10, 12, 13, 15, 18, 21, 24, 30, 41]


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every measurement on a model has."""
    add = parser.add_argument
    add("--layers", type=int, default=12, help="of the encoder; kf-deberta-base has 12 (default: %(default)s)")
    add("--vocab", type=int, default=130_000, help="rows of the word embeddings (default: %(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    add("--dataset_path", default="kor-nlu-datasets", help="folder with KorSTS/ and KorNLI/ (default: %(default)s)")
    add("--tokenizer", help="tokenizer.json that counts the tokens; default: two characters of a word to a token")
    add("--seed", type=int, default=42, help="of weights, dropout and batches (default: %(default)s)")


def check_positive(args: argparse.Namespace) -> None:
    """Raise InputError where a number that counts something is below 1."""
    for name, value in vars(args).items():
        least = 6 if name == "vocab" else 1  # five special tokens and a word
        if isinstance(value, int) and not isinstance(value, bool) and value < least and name != "seed":
            raise InputError(f"--{name} {value}: must be at least {least}")


def base_model(layers: int, vocab: int, seed: int) -> DebertaV2Model:
    """kakaobank/kf-deberta-base's configuration with random weights."""
    torch.manual_seed(seed)
    return DebertaV2Model(
        DebertaV2Config(
            vocab_size=vocab,
            hidden_size=HIDDEN,
            num_hidden_layers=layers,
            num_attention_heads=HEADS,
            intermediate_size=INTERMEDIATE,
            relative_attention=True,
            position_buckets=256,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
            type_vocab_size=0,
        )
    )


def variants_of(model: nn.Module) -> dict[str, nn.Module]:
    """The model and its switched copies; all share the same parameters, so memory holds them once."""
    memo = {id(tensor): tensor for tensor in model.parameters()}
    models = {"library eager": model}
    models["fast attention"] = copy.deepcopy(model, dict(memo))
    use_fast_attention(models["fast attention"])
    both = copy.deepcopy(models["fast attention"], dict(memo))
    if use_onednn_linear(both):
        models["fast attention, oneDNN"] = both
    return models


def sentence_lengths(name: str, args: argparse.Namespace) -> tuple[np.ndarray, str]:
    """Tokens of real sentences, int [rows, columns], and where they are from.

    name: "sts" (pairs of KorSTS train), "nli" (KorNLI triplets) or "test" (single sentences of KorSTS test).
    """
    root = Path(args.dataset_path)
    count = _token_counter(args.tokenizer)
    counted = f"tokens counted with {args.tokenizer}" if args.tokenizer else "two characters of a word to a token"
    if name == "nli" and (files := sorted(root.glob("KorNLI/*train.ko.tsv"))):
        table, columns = load_kor_nli(find_kor_nli_train_files(root), args.seed), ("anchor", "positive", "negative")
        source = ", ".join(file.name for file in files)
    elif (file := root / "KorSTS" / f"sts-{'test' if name == 'test' else 'train'}.tsv").is_file() and name != "nli":
        table, columns = load_kor_sts(file), ("sentence1", "sentence2")
        source = file.name
    else:
        spread = NLI_LENGTHS if name == "nli" else STS_LENGTHS
        rows = np.random.default_rng(args.seed).choice(spread, (4096, 3 if name == "nli" else 2))
        return rows, f"no data at {root}: lengths drawn from the built-in distribution (mean {np.mean(spread):.1f})"
    lengths = np.array([count(table[column]) for column in columns]).T
    return lengths, f"lengths of {source}, {counted} (mean {lengths.mean():.1f})"


def _token_counter(path: str | None) -> Callable[[list[str]], list[int]]:
    """How to count tokens, [CLS] and [SEP] included; without a tokenizer the count is an estimate."""
    if path is None:
        return lambda texts: [2 + sum((len(word) + 1) // 2 for word in text.split()) for text in texts]
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise InputError(f"{path}: cannot be read as a tokenizer.json ({error}); leave --tokenizer out") from error
    tokenizer.no_padding()
    return lambda texts: [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]


def padded_batch(lengths: np.ndarray, vocab: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random token ids [sentences, longest] and their mask."""
    lengths = torch.as_tensor(np.minimum(lengths, 512))
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    return {"input_ids": torch.randint(5, vocab, mask.shape, generator=generator) * mask, "attention_mask": mask}


def embed(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean of the token embeddings over real tokens, [sentences, hidden]."""
    states, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
    return (states * mask).sum(1) / mask.sum(1)


def timer(threads: int) -> Callable[[], float]:
    """Seconds of the processor at one thread, which other programs disturb less; seconds of the clock otherwise."""
    return time.process_time if threads == 1 else time.perf_counter


def interleave(runs: dict[str, list[Callable]], threads: int, name: str) -> dict[str, list[float]]:
    """Seconds of every round of every variant, A B A B; an unmeasured round first.

    runs: for each variant one callable a round, doing the same work as the other variants in that round.
    """
    clock = timer(threads)
    seconds: dict[str, list[float]] = {variant: [] for variant in runs}
    rounds = len(next(iter(runs.values())))
    for number in tqdm(range(-1, rounds), desc=name, file=sys.stderr):
        for variant, steps in runs.items():
            start = clock()
            steps[max(number, 0)]()
            if number >= 0:
                seconds[variant].append(clock() - start)
    return seconds


def ratio_of(seconds: dict[str, list[float]], variant: str, baseline: str) -> str:
    """How many times as fast as the baseline: median and range of the rounds' ratios."""
    ratios = [slow / fast for slow, fast in zip(seconds[baseline], seconds[variant], strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def matmul_rates(threads: int, tokens: int = 512) -> dict[str, float]:
    """Floating-point operations a second of a float32 product [tokens, 768] x [768, 3072]; best of 20, by library."""
    states, weight = torch.randn(tokens, HIDDEN), torch.randn(INTERMEDIATE, HIDDEN)
    products = {"torch": functools.partial(nn.functional.linear, states, weight)}
    layer = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
    if use_onednn_linear(layer):
        products["oneDNN"] = functools.partial(layer, states)
    rates = {}
    with torch.no_grad():
        for name, product in products.items():
            product()
            fastest = min(_seconds(product, timer(threads)) for _ in range(20))
            rates[name] = 2 * tokens * HIDDEN * INTERMEDIATE / fastest
    return rates


def _seconds(work: Callable, clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


def machine(threads: int) -> str:
    """One line on processor, threads and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []  # Linux only
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    unit = "CPU seconds" if threads == 1 else "wall-clock seconds"
    processor = f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
    packages = ", ".join(f"{package.__name__} {package.__version__}" for package in (torch, transformers))
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{processor}, {capability}, {threads} thread(s), {unit}; Python {platform.python_version()}, {packages}"
