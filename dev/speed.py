"""Speed against the ordinary way, measured here and now in turns, as ratios.

    python dev/speed.py train --nli_mini_batch_size 32       # kf-deberta's shape
    python dev/speed.py train --device cuda --bf16 --rounds 30
    python dev/speed.py encode                 # sentences, torch and ONNX
    python dev/speed.py load                   # KorNLI of its real size

Seconds of CPU on a CPU, of the clock on a GPU. The model has random weights.
"""

import contextlib
import copy
import csv
import multiprocessing
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "sample")]
from kf_deberta.errors import run
from kf_deberta.flags import Parser, count, file_path, positive

LABELS = ("entailment", "contradiction", "neutral")
ROWS = {"snli_1.0_train.ko.tsv": 550_152, "multinli.train.ko.tsv": 392_702}  # KorNLI's train files
PREMISE_WORDS, HYPOTHESIS_WORDS = (6, 21), (3, 11)  # means 13.5 and 7: KorNLI has 13.6 and 7.1 (arXiv:2004.03289)
# shares of premises with three labels, and of hypotheses that are not new: they give as many triplets as KorNLI
DISTINCT_LABELS, OLD_HYPOTHESES = 0.8, 0.1
MIB = 1 << 20


def main() -> None:
    """Measure what the command line asks for and print a Markdown table."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("what", choices=["train", "encode", "load"], help="what is measured")
    add("--layers", type=count, default=12, help="layers of the encoder")
    add("--vocab", type=count, default=130_000, help="rows of its word embeddings")
    add("--rounds", type=count, default=5, help="measured rounds, after one that is not")
    add("--device", default="cpu", metavar="DEVICE", help="cpu or cuda")
    add("--bf16", action="store_true", help="bfloat16 autocast")
    add("--dataset_path", type=file_path, default=ROOT / "sample", help="texts, for their lengths")
    add("--sts_batch_size", type=count, default=8, help="pairs of a step")
    add("--nli_batch_size", type=count, default=128, help="triplets of a step")
    add("--nli_mini_batch_size", type=count, help="triplets in memory at once (default: all)")
    add("--sentences", type=count, default=64, help="sentences to encode")
    add("--scale", type=positive, default=1.0, help="share of KorNLI's rows to load")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"train": train, "encode": encode, "load": load}[args.what](args, Path(folder))


def build_shape(folder: Path, layers: int, vocab: int) -> str:
    """Save a base of kf-deberta-base's shape, with random weights, in `folder` and return its path."""
    import torch
    from transformers import AutoModel

    from build_base import build_base

    sizes = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "position_buckets": 256}
    base = AutoModel.from_pretrained(build_base(folder, num_hidden_layers=layers, **sizes))
    torch.manual_seed(0)
    base.resize_token_embeddings(max(vocab, base.config.vocab_size), mean_resizing=False)
    base.save_pretrained(folder)
    return str(folder)


def build_models(args, folder: Path) -> tuple:
    """Return two models with the same random weights: the library's, and ours on top."""
    from kf_deberta.model.attention import use_fast_attention
    from kf_deberta.model.cpu import use_onednn_linear
    from kf_deberta.model.load import load_model

    base = build_shape(folder / "base", args.layers, args.vocab)
    plain = load_model(base, device=args.device, max_seq_length=128, fast_attention=False)
    fast = copy.deepcopy(plain, memo={id(weight): weight for weight in plain.parameters()})
    use_fast_attention(fast)
    use_onednn_linear(fast)
    return plain, fast


def in_turns(variants: dict[str, Callable[[], object]], args) -> None:
    """Time every variant in each round, A B A B, and print seconds, ratios to the first, and memory added on a GPU."""
    import torch

    gpu, seconds, peaks = args.device != "cpu", defaultdict(list), {}
    clock = time.perf_counter if gpu else time.process_time
    wait = torch.cuda.synchronize if gpu else lambda: None
    for _ in range(args.rounds + 1):
        for name, variant in variants.items():
            wait()
            if gpu:
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            start = clock()
            variant()
            wait()
            seconds[name].append(clock() - start)
            if gpu:
                peaks[name] = (torch.cuda.max_memory_allocated() - held) / MIB
    print("| variant | seconds (median) | times as fast (range) | memory |\n|:--|--:|--:|--:|")
    first = next(iter(seconds.values()))
    for name, (_, *values) in seconds.items():  # the first round is not measured
        ratios = [a / b for a, b in zip(first[1:], values, strict=True)]
        memory = f"{peaks[name]:,.0f} MiB" if gpu else ""
        span = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {median(values):.4f} | {span} | {memory} |", flush=True)


@contextlib.contextmanager
def layout(**options) -> Iterator[None]:
    """Lay tokens out by `options` of layout_of, under autocast too."""
    import torch

    from kf_deberta.model import attention, packing

    layout_of = packing.layout_of

    def forced(mask, **given):
        with torch.autocast("cuda", enabled=False):
            return layout_of(mask, **given | options)

    with mock.patch.object(packing, "layout_of", forced), mock.patch.object(attention, "layout_of", forced):
        yield


def train(args, folder: Path) -> None:
    """Time the optimizer steps of both objectives, tokenization included."""
    import torch
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.util import batch_to_device

    from data_util import find_kor_nli_train_files, load_kor_nli, load_kor_sts
    from kf_deberta.model.cpu import keep_freed_memory
    from kf_deberta.model.packing import take_masks_from_host
    from kf_deberta.training import loop
    from kf_deberta.training.batches import ShuffledBatches, TripletBatches

    keep_freed_memory()
    plain, fast = build_models(args, folder)
    take_masks_from_host(fast)
    ranking = losses.MultipleNegativesRankingLoss
    if args.nli_mini_batch_size:
        ranking = partial(losses.CachedMultipleNegativesRankingLoss, mini_batch_size=args.nli_mini_batch_size)
    sts = load_kor_sts(args.dataset_path / "KorSTS" / "sts-train.tsv")
    nli = load_kor_nli(find_kor_nli_train_files(args.dataset_path), 0)
    alone = mock.Mock(spec=["average"])  # a Run of one process

    def usual(model, loss, features, labels):  # each column by itself, its mask on the device
        return loss([batch_to_device(column, model.device) for column in features], labels)

    ways = {
        "library": (plain, partial(mock.patch.object, loop, "loss_of", usual)),
        "ours, padded": (fast, partial(layout, pack=False)),
        "ours, packed": (fast, layout),
        "ours, packed, scores in one group": (fast, partial(layout, groups=False)),
    }

    def step(objective: loop.Objective, model, way, batches: Iterator[list[int]]) -> None:
        batch = loop.collate(model, [objective.rows[row] for row in next(batches)])
        with way(), loop.bfloat16_forward(model, args.bf16):
            loop.step(model.train(), objective, loop.move(*batch, model.device), 1.0, alone)

    for name, rows, batches, loss in (
        ("STS", sts, ShuffledBatches(sts, args.sts_batch_size, 0), losses.CosineSimilarityLoss),
        ("NLI", nli, TripletBatches(nli, args.nli_batch_size, 0), ranking),
    ):
        print(f"\n{name} step, {args.layers} layers, {'bfloat16' if args.bf16 else 'float32'}, {args.device}\n")
        optimizer, variants = torch.optim.AdamW(plain.parameters(), lr=2e-5, fused=True), {}
        for way, (model, context) in ways.items():
            objective = loop.Objective(name, rows, batches, loss(model))
            objective.optimizer = optimizer
            objective.schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
            variants[way] = partial(step, objective, model, context, iter(batches))
        in_turns(variants, args)


def encode(args, folder: Path) -> None:
    """Time model.encode of torch and of the exported graphs, tokenization included."""
    import torch

    from data_util import load_kor_sts
    from kf_deberta.export.graph import export_model, save_companions
    from kf_deberta.export.quantize import cpu_has_vnni, quantize_int8
    from kf_deberta.model.onnx_encoder import OnnxEncoder

    torch.set_num_threads(1)
    plain, fast = build_models(args, folder)
    export_model(fast, folder / "float32.onnx", metadata=save_companions(fast, folder))
    quantize_int8(folder / "float32.onnx", folder / "int8.onnx", reduce_range=not cpu_has_vnni())
    encoders = {"library": plain, "ours": fast}
    for name in ("float32", "int8"):
        encoders[f"ONNX, {name}"] = OnnxEncoder(folder / f"{name}.onnx", device=args.device, threads=1)
    sentences = load_kor_sts(args.dataset_path / "KorSTS" / "sts-test.tsv")["sentence1"][: args.sentences]
    for texts in (sentences[:1], sentences):
        print(f"\n{len(texts)} sentences, {args.layers} layers, {args.device}\n")
        in_turns({name: partial(encoder.encode, texts, batch_size=32) for name, encoder in encoders.items()}, args)


def load(args, folder: Path) -> None:
    """Time data_util.py against csv.DictReader and a dict of sets, each in a fresh process, on synthetic files."""
    for number, (name, rows) in enumerate(ROWS.items()):
        write_synthetic_kor_nli(folder / "KorNLI" / name, int(rows * args.scale), number)
    results, context = defaultdict(list), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        for loader in ("plain", "data_util") * args.rounds:
            results[loader].append(pool.submit(load_once, loader, folder).result())
    print("| loader | triplets | CPU seconds (median) | peak memory |\n|:--|--:|--:|--:|")
    for loader, runs in results.items():
        triplets, seconds, peak = (median(values) for values in zip(*runs, strict=True))
        print(f"| {loader} | {triplets:,.0f} | {seconds:.2f} | {peak / 1024:,.0f} MiB |")


def load_once(loader: str, folder: Path) -> tuple[int, float, int]:
    """Return the number of triplets, CPU seconds and peak memory in KiB."""
    import datasets  # noqa: F401 (both import the same)

    from data_util import find_kor_nli_train_files, load_kor_nli

    paths, start = find_kor_nli_train_files(folder), time.process_time()
    triplets = load_plainly(paths) if loader == "plain" else load_kor_nli(paths, 0)
    seconds = time.process_time() - start
    status = Path("/proc/self/status").read_text()  # ru_maxrss starts from the parent's memory
    return len(triplets), seconds, int(status.split("VmHWM:")[1].split()[0])


def write_synthetic_kor_nli(path: Path, rows: int, seed: int) -> None:
    """Write sentences of random syllables, three rows per premise; the same arguments give the same file."""
    rng = random.Random(seed)
    lengths = rng.choices((1, 2, 2, 3), k=20_000)
    words = ["".join(chr(rng.randrange(0xAC00, 0xD7A4)) for _ in range(length)) for length in lengths]

    def sentence(shortest: int, longest: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(shortest, longest))) + "."

    old = [sentence(*HYPOTHESIS_WORDS) for _ in range(rows // 50 + 1)]
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write("sentence1\tsentence2\tgold_label\n")
        for row in range(rows):
            if row % 3 == 0:
                premise = sentence(*PREMISE_WORDS)
                labels = rng.sample(LABELS, 3) if rng.random() < DISTINCT_LABELS else rng.choices(LABELS, k=3)
            hypothesis = rng.choice(old) if rng.random() < OLD_HYPOTHESES else sentence(*HYPOTHESIS_WORDS)
            file.write(f"{premise}\t{hypothesis}\t{labels[row % 3]}\n")


def load_plainly(paths: list[Path]) -> list[tuple[str, str, str]]:
    """Build the same kind of triplets the usual way."""
    rng, triplets = random.Random(0), []
    for path in paths:
        partners = defaultdict(lambda: defaultdict(set))
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                sentence1, sentence2 = row["sentence1"].strip(), row["sentence2"].strip()
                partners[sentence1][row["gold_label"]].add(sentence2)
                partners[sentence2][row["gold_label"]].add(sentence1)
        for sentence, of_label in partners.items():
            entailed, contradicting = list(of_label["entailment"]), list(of_label["contradiction"])
            if entailed and contradicting:
                triplets.append((sentence, rng.choice(entailed), rng.choice(contradicting)))
                triplets.append((rng.choice(entailed), sentence, rng.choice(contradicting)))
    return triplets


if __name__ == "__main__":
    run(main)
