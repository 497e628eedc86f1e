"""What the speed measurements share: the base model's shape, real sentence lengths, interleaved timing."""

import argparse
import copy
import functools
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm
from transformers import DebertaV2Config, DebertaV2Model
from transformers.modeling_outputs import BaseModelOutput

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data_util import find_kor_nli_train_files, load_kor_nli, load_kor_sts
from kf_deberta.cli import InputError, one_line, one_of
from kf_deberta.model.attention import use_fast_attention
from kf_deberta.model.cpu import use_onednn_linear
from kf_deberta.model.packing import layout_of

HIDDEN, HEADS, INTERMEDIATE = 768, 12, 3072
# tokens at the 5th, 15th, ... 95th percentile of KorSTS train (mean 15.3) and of XNLI premises and hypotheses
# (mean 19.7), under a Korean WordPiece vocabulary of 8,000
STS_LENGTHS = [7, 9, 10, 11, 12, 14, 15, 17, 21, 33]
NLI_LENGTHS = [9, 10, 12, 13, 15, 18, 21, 24, 30, 41]
GRAPH_LENGTHS = (16, 24, 32, 48, 64, 96, 128, 512)  # a CUDA graph for each that occurs
LIBRARY = "library eager"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every measurement on a model has."""
    add = parser.add_argument
    add("--layers", type=int, default=12, help="of the encoder; kf-deberta-base has 12 (default: %(default)s)")
    add("--vocab", type=int, default=130_000, help="rows of the word embeddings (default: %(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add("--dtype", type=one_of("float32", "bfloat16"), default="float32", help="bfloat16: autocast (default: float32)")
    add("--dataset_path", default="kor-nlu-datasets", help="folder with KorSTS/ and KorNLI/ (default: %(default)s)")
    add("--tokenizer", help="tokenizer.json that counts the tokens (default: two characters of a word to a token)")
    add("--seed", type=int, default=42, help="of weights, dropout and batches (default: %(default)s)")


def check_positive(args: argparse.Namespace) -> None:
    """Raise InputError where a number that counts something is below 1."""
    for name, value in vars(args).items():
        least = 6 if name == "vocab" else 1  # five special tokens and a word
        if isinstance(value, int) and not isinstance(value, bool) and value < least and name != "seed":
            raise InputError(f"--{name} {value}: must be {least} or more")


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


class Variant:
    """One way to run the encoder: batches, masks on the host, to token embeddings.

    layout: "packed" and "padded" lay the tokens out on the host; None leaves the mask to the model.
    merged: columns of a step go through in one forward pass.
    """

    def __init__(self, model: Callable, layout: str | None = None, *, merged: bool = False) -> None:
        """Take a model, or a function of input_ids and attention_mask with its output."""
        self.model, self.layout, self.merged = model, layout, merged

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean of the token embeddings over real tokens, [sentences, hidden]."""
        ids, host_mask = batch["input_ids"], batch["attention_mask"]
        mask = host_mask.to(ids.device, non_blocking=True)
        if self.layout:
            mask.token_layout = layout_of(host_mask, pack=self.layout == "packed").to(ids.device)
        states, weights = self.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask.unsqueeze(-1)
        return (states[:, : mask.size(1)] * weights).sum(1) / weights.sum(1)

    def embed_columns(self, columns: list[dict[str, Tensor]]) -> list[Tensor]:
        """Embeddings of every column, in one pass where the variant merges."""
        if not self.merged:
            return [self.embed(column) for column in columns]
        length = max(column["input_ids"].size(1) for column in columns)
        padded = [{name: F.pad(x, (0, length - x.size(1))) for name, x in column.items()} for column in columns]
        merged = {name: torch.cat([column[name] for column in padded]) for name in padded[0]}
        return list(self.embed(merged).split([len(column["input_ids"]) for column in columns]))


class Graphed:
    """Forward and backward pass replayed as CUDA graphs, one for each batch size and padded length that occurs."""

    def __init__(self, model: nn.Module) -> None:
        """Take a model in training mode on a GPU."""
        self.model, self.graphs = model, {}

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        """Run the graph of this shape; it is captured when the shape is new."""
        length = next(length for length in GRAPH_LENGTHS if length >= input_ids.size(1))
        inputs = tuple(F.pad(tensor, (0, length - tensor.size(1))) for tensor in (input_ids, attention_mask))
        if (shape := inputs[0].shape) not in self.graphs:
            module = _Padded(self.model)
            self.graphs[shape] = torch.cuda.make_graphed_callables(module, tuple(x.clone() for x in inputs))
        return BaseModelOutput(last_hidden_state=self.graphs[shape](*inputs))


class _Padded(nn.Module):
    """A model whose layout depends on the shape of the mask alone, as a graph must."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        attention_mask = attention_mask.clone()
        attention_mask.token_layout = layout_of(attention_mask, pack=False)
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def variants_of(model: nn.Module, device: str = "cpu", *, compiled: bool = True) -> dict[str, Variant]:
    """The library's way and ours; all share the same parameters, so memory holds them once."""
    variants = {LIBRARY: Variant(model)}

    def shared(name: str, **options) -> nn.Module:
        fast = copy.deepcopy(model, {id(tensor): tensor for tensor in model.parameters()})
        use_fast_attention(fast)
        variants[name] = Variant(fast, "packed", **options)
        return fast

    shared("fast attention")
    if model.training:  # as the trainer does with pairs
        shared("fast attention, columns merged", merged=True)
    if device == "cpu":
        name = f"{list(variants)[-1]}, oneDNN"
        if not use_onednn_linear(shared(name, merged=model.training)):
            del variants[name]
        return variants
    variants["fast attention, padded"] = Variant(shared("padded"), "padded", merged=True)
    fast = variants.pop("padded").model
    if compiled:
        variants["fast attention, torch.compile"] = Variant(torch.compile(fast, dynamic=True), merged=True)
    if model.training:
        variants["fast attention, CUDA graphs"] = Variant(Graphed(fast), merged=True)
    return variants


def peers_of(model: nn.Module) -> dict[str, Variant]:
    """Other people's exact DeBERTa attention, where it is installed, over the same parameters."""
    peers = {}
    for package, switch in (("disentangled-flash", _disentangled_flash), ("flashdeberta", _flashdeberta)):
        try:
            peers[f"{package} {importlib.metadata.version(package)}"] = Variant(switch(model))
        except Exception as error:  # not installed, or not for this device and version of torch
            print(f"{package}: left out ({one_line(error)})", file=sys.stderr)
    return peers


def _disentangled_flash(model: nn.Module) -> nn.Module:
    from disentangled_flash import optimize_deberta_training

    model = copy.deepcopy(model, {id(tensor): tensor for tensor in model.parameters()})
    optimize_deberta_training(model, backend="triton" if next(model.parameters()).is_cuda else "torch")
    return model


def _flashdeberta(model: nn.Module) -> nn.Module:
    from flashdeberta import FlashDebertaV2Model

    flash = FlashDebertaV2Model(model.config).train(model.training)
    flash.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    return flash


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


def seconds_of(work: Callable[[], object], args: argparse.Namespace) -> float:
    """Time of one call: on a GPU by its own events, with one CPU thread in CPU seconds, else by the clock."""
    if args.device != "cpu":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    clock = time.process_time if args.threads == 1 else time.perf_counter  # other programs disturb CPU seconds less
    start = clock()
    work()
    return clock() - start


def interleave(
    runs: dict[str, list[Callable]], args: argparse.Namespace, name: str, baseline: str = LIBRARY
) -> dict[str, list[float]]:
    """Seconds of every round of every variant, A B A B; before, one unmeasured round (on a GPU, all of them).

    runs: for each variant one callable a round, doing the same work as the other variants in that round. A variant
    that cannot run here is told and left out, all but the baseline.
    """
    for variant, steps in list(runs.items()):
        try:
            for step in tqdm(steps if args.device != "cpu" else steps[:1], desc=f"{name}, {variant}", file=sys.stderr):
                step()
        except Exception as error:
            if variant == baseline:
                raise
            print(f"{variant}: left out ({one_line(error)})", file=sys.stderr)
            del runs[variant]
    seconds: dict[str, list[float]] = {variant: [] for variant in runs}
    for number in tqdm(range(len(next(iter(runs.values())))), desc=name, file=sys.stderr):
        for variant, steps in runs.items():
            seconds[variant].append(seconds_of(steps[number], args))
    return seconds


def ratio_of(seconds: dict[str, list[float]], variant: str, baseline: str) -> str:
    """How many times as fast as the baseline: median and range of the rounds' ratios."""
    ratios = [slow / fast for slow, fast in zip(seconds[baseline], seconds[variant], strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def matmul_rates(args: argparse.Namespace, tokens: int = 512) -> dict[str, float]:
    """Operations per second of a product [tokens, 768] x [768, 3072] in --dtype; best of 20, by library."""
    dtype, tokens = getattr(torch, args.dtype), tokens if args.device == "cpu" else 16 * tokens
    states = torch.randn(tokens, HIDDEN, device=args.device, dtype=dtype)
    layer = nn.Linear(HIDDEN, INTERMEDIATE, bias=False, device=args.device, dtype=dtype)
    products = {"torch": functools.partial(F.linear, states, layer.weight)}
    if args.dtype == "float32" and args.device == "cpu" and use_onednn_linear(layer):
        products["oneDNN"] = functools.partial(layer, states)
    rates = {}
    with torch.no_grad():
        for name, product in products.items():
            product()
            fastest = min(seconds_of(product, args) for _ in range(20))
            rates[name] = 2 * tokens * HIDDEN * INTERMEDIATE / fastest
    return rates


def machine(args: argparse.Namespace) -> str:
    """One line on processor, threads and versions."""
    packages = ", ".join(f"{package.__name__} {package.__version__}" for package in (torch, transformers))
    versions = f"{args.dtype}; Python {platform.python_version()}, {packages}"
    if args.device != "cpu":
        return f"{torch.cuda.get_device_name()}, seconds of its events, {versions}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []  # Linux only
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    unit = "CPU seconds" if args.threads == 1 else "wall-clock seconds"
    processor = f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{processor}, {capability}, {args.threads} thread(s), {unit}, {versions}"
