"""Time the training steps of both objectives against the library's, in turns.

    python dev/speed.py --device cuda --bf16 --rounds 30

Seconds of CPU on a CPU, of the clock on a GPU. The model has random weights.
"""

import contextlib
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
from data_util import find_kor_nli_train_files, load_kor_nli, load_kor_sts
from kf_deberta.errors import run
from kf_deberta.flags import Parser, count


def main() -> None:
    """Measure what the command line asks for and print Markdown tables."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--layers", type=count, default=12, help="layers of the encoder")
    add("--vocab", type=count, default=130_000, help="rows of its word embeddings")
    add("--rounds", type=count, default=5, help="measured rounds, after one that is not")
    add("--device", default="cpu", metavar="DEVICE", help="cpu or cuda")
    add("--bf16", action="store_true", help="bfloat16 autocast")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train(args, Path(folder) / "base")


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


def build_shape(folder: Path, layers: int, vocab: int) -> None:
    """Save a base of kf-deberta-base's shape but for its layers and vocabulary, with random weights."""
    from transformers import AutoModel

    from build_base import build_base

    sizes = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "position_buckets": 256}
    base = AutoModel.from_pretrained(build_base(folder, num_hidden_layers=layers, **sizes))
    base.resize_token_embeddings(max(vocab, base.config.vocab_size), mean_resizing=False)
    base.save_pretrained(folder)


def train(args, folder: Path) -> None:
    """Time the optimizer steps of both objectives, tokenization included."""
    import torch
    from sentence_transformers.sentence_transformer import losses

    from kf_deberta.model import cpu
    from kf_deberta.model.load import load_model
    from kf_deberta.training import loop
    from kf_deberta.training.batches import ShuffledBatches, TripletBatches

    cpu.keep_freed_memory()
    build_shape(folder, args.layers, args.vocab)
    loaded = partial(load_model, str(folder), device=args.device, max_seq_length=128)
    plain, fast = loaded(fast_attention=False), loaded()
    sts = load_kor_sts(ROOT / "sample" / "KorSTS" / "sts-train.tsv")
    nli = load_kor_nli(find_kor_nli_train_files(ROOT / "sample"), 0)
    optimizer = torch.optim.AdamW([*plain.parameters(), *fast.parameters()], lr=2e-5, fused=True)
    schedule, alone = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0), mock.Mock(spec=["average"])  # one process

    def step(objective, model, patch, batches) -> None:
        batch = loop.collate(model, [objective.rows[row] for row in next(batches)])
        with patch, loop.bfloat16_forward(model, args.bf16):
            loop.step(model.train(), objective, loop.move(*batch, model.device), 1.0, alone)

    usual = mock.patch.object(loop, "loss_of", lambda model, loss, *batch: loss(*batch))
    ways = {"library": (plain, usual), "here": (fast, contextlib.nullcontext())}
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


if __name__ == "__main__":
    run(main)
