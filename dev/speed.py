"""Speed against the ordinary way, measured here and now in turns, as ratios.

    python dev/speed.py train --device cuda --bf16 --rounds 30
    python dev/speed.py load                   # KorNLI of its real size

Seconds of CPU on a CPU, of the clock on a GPU. The model has random weights.
"""

import csv
import itertools
import multiprocessing
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "sample")]
from data_util import LABELS, find_kor_nli_train_files, load_kor_nli, load_kor_sts
from kf_deberta.errors import run
from kf_deberta.flags import Parser, count, positive

KOR_NLI_ROWS = 942_854  # of its train files


def main() -> None:
    """Measure what the command line asks for and print Markdown tables."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("what", choices=["train", "load"], help="what is measured")
    add("--layers", type=count, default=12, help="layers of the encoder")
    add("--vocab", type=count, default=130_000, help="rows of its word embeddings")
    add("--rounds", type=count, default=5, help="measured rounds, after one that is not")
    add("--device", default="cpu", metavar="DEVICE", help="cpu or cuda")
    add("--bf16", action="store_true", help="bfloat16 autocast")
    add("--scale", type=positive, default=1.0, help="share of KorNLI's rows to load")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"train": train, "load": load}[args.what](args, Path(folder))


def in_turns(variants: dict[str, object], rounds: int, measure: Callable[[object], tuple[float, float]]) -> None:
    """Measure every variant in each round, A B A B: seconds, ratios to the first variant, MiB of memory (of a GPU)."""
    seconds, memory = defaultdict(list), {}
    for _ in range(rounds + 1):
        for name, variant in variants.items():
            taken, memory[name] = measure(variant)
            seconds[name].append(taken)
    print("| variant | seconds (median) | times as fast (range) | peak memory |\n|:--|--:|--:|--:|")
    _, *first = next(iter(seconds.values()))
    for name, (_, *values) in seconds.items():  # the first round is not measured
        ratios = [a / b for a, b in zip(first, values, strict=True)]
        span = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {median(values):.4f} | {span} | {memory[name]:,.0f} MiB |", flush=True)


def on_device(device: str, variant: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of a call, and on a GPU the memory that it adds."""
    import torch

    if device == "cpu":
        start = time.process_time()
        variant()
        return time.process_time() - start, 0
    torch.cuda.reset_peak_memory_stats()
    held, start = torch.cuda.memory_allocated(), time.perf_counter()
    variant()
    torch.cuda.synchronize()
    return time.perf_counter() - start, (torch.cuda.max_memory_allocated() - held) / 2**20


def train(args, folder: Path) -> None:
    """Time the optimizer steps of both objectives, tokenization included."""
    import torch
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.util import batch_to_device
    from transformers import AutoModel

    from build_base import build_base
    from kf_deberta.model import attention, cpu, packing
    from kf_deberta.model.load import load_model
    from kf_deberta.training import loop
    from kf_deberta.training.batches import ShuffledBatches, TripletBatches

    cpu.keep_freed_memory()
    # kf-deberta-base's shape
    sizes = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "position_buckets": 256}
    base = AutoModel.from_pretrained(build_base(folder := folder / "base", num_hidden_layers=args.layers, **sizes))
    base.resize_token_embeddings(max(args.vocab, base.config.vocab_size), mean_resizing=False)
    base.save_pretrained(folder)
    loaded = partial(load_model, str(folder), device=args.device, max_seq_length=128)
    plain, fast = loaded(fast_attention=False), loaded()
    packing.take_masks_from_host(fast)
    sts = load_kor_sts(ROOT / "sample" / "KorSTS" / "sts-train.tsv")
    nli = load_kor_nli(find_kor_nli_train_files(ROOT / "sample"), 0)
    optimizer = torch.optim.AdamW([*plain.parameters(), *fast.parameters()], lr=2e-5, fused=True)
    schedule, alone = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0), mock.Mock(spec=["average"])  # one process

    def usual(model, loss, features, labels):  # each column by itself, its mask on the device
        return loss([batch_to_device(column, model.device) for column in features], labels)

    def step(objective, model, patch, batches) -> None:
        batch = loop.collate(model, [objective.rows[row] for row in next(batches)])
        with patch, loop.bfloat16_forward(model, args.bf16):
            loop.step(model.train(), objective, loop.move(*batch, model.device), 1.0, alone)

    packed = torch.autocast("cuda", enabled=False)(packing.layout_of)  # autocast on a GPU does not pack
    ways = {
        "library": (plain, mock.patch.object(loop, "loss_of", usual)),
        "ours, padded": (fast, mock.patch.object(attention, "layout_of", lambda mask, pack: packed(mask, pack=False))),
        "ours, packed": (fast, mock.patch.object(attention, "layout_of", packed)),
    }
    objectives = [("STS", sts, ShuffledBatches(sts, 8, 0), losses.CosineSimilarityLoss)]
    objectives += [("NLI", nli, TripletBatches(nli, 128, 0), losses.MultipleNegativesRankingLoss)]
    for name, rows, batches, loss in objectives:
        print(f"\n{name} step, {args.layers} layers, {'bfloat16' if args.bf16 else 'float32'}, {args.device}\n")
        variants = {}
        for way, (model, patch) in ways.items():
            objective = loop.Objective(name, rows, batches, loss(model))
            objective.optimizer, objective.schedule = optimizer, schedule
            variants[way] = partial(step, objective, model, patch, iter(batches))
        in_turns(variants, args.rounds, partial(on_device, args.device))


def load(args, folder: Path) -> None:
    """Time data_util.py against csv.DictReader and a dict of sets, each in a fresh process, on synthetic rows."""
    rng, path = random.Random(0), folder / "synthetic.tsv"
    words = ["".join(map(chr, rng.choices(range(0xAC00, 0xD7A4), k=2))) for _ in range(20_000)]
    with open(path, "w", encoding="utf-8") as file:
        print("sentence1", "sentence2", "gold_label", sep="\t", file=file)
        for row in range(int(KOR_NLI_ROWS * args.scale)):
            if row % 3 == 0:
                premise = " ".join(rng.choices(words, k=rng.randint(6, 21)))
            hypothesis = " ".join(rng.choices(words, k=rng.randint(3, 11)))
            print(premise, hypothesis, LABELS[row % 3], sep="\t", file=file)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        in_turns({"plain": True, "data_util": False}, args.rounds, lambda plain: pool.apply(load_once, (path, plain)))


def load_once(path: Path, plain: bool) -> tuple[float, float]:
    """Return the CPU seconds of one loader in this process, and the peak of its memory in MiB."""
    import datasets  # noqa: F401 (both import the same)

    start = time.process_time()
    if not plain:
        load_kor_nli([path], 0)
    else:
        partners, triplets = defaultdict(lambda: defaultdict(set)), []
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                for one, other in itertools.permutations((row["sentence1"].strip(), row["sentence2"].strip())):
                    partners[one][row["gold_label"]].add(other)
        for sentence, of_label in partners.items():
            yes, no = (list(of_label[label]) for label in LABELS[:2])
            if yes and no:
                triplets += [(sentence, random.choice(yes), random.choice(no))]
                triplets += [(random.choice(yes), sentence, random.choice(no))]
    seconds = time.process_time() - start
    status = Path("/proc/self/status").read_text()  # ru_maxrss starts from the parent's memory
    return seconds, int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    run(main)
