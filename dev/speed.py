"""Speed against the ordinary way, measured here and now in turns, as ratios.

    python dev/speed.py train                  # steps in kf-deberta-base's shape
    python dev/speed.py train --device cuda --bf16 --rounds 30
    python dev/speed.py encode                 # sentences, torch and ONNX
    python dev/speed.py load                   # KorNLI of its real size

CPU seconds on a CPU, of one thread; seconds between events on a GPU. Random
weights of the base's shape, texts of sample/.
"""

import csv
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("", "sample")]
from kf_deberta.errors import run
from kf_deberta.flags import Parser, count, positive

SAMPLE = Path(__file__).resolve().parents[1] / "sample"
LIBRARY = "library attention"
ROWS = {"snli_1.0_train.ko.tsv": 550_152, "multinli.train.ko.tsv": 392_702}  # KorNLI's train files
LABELS = ("entailment", "contradiction", "neutral")


def get_parser() -> Parser:
    """The shape of the model, and how often to measure."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("what", choices=["train", "encode", "load"], help="what to measure")
    add("--layers", type=count, default=12, help="layers of the encoder")
    add("--vocab", type=count, default=130_000, help="rows of the word embeddings")
    add("--rounds", type=count, default=5, help="measured rounds of each variant")
    add("--device", default="cpu", metavar="DEVICE", help="cpu or cuda")
    add("--bf16", action="store_true", help="bfloat16 autocast")
    add("--sts_batch_size", type=count, default=8, help="pairs of a step")
    add("--nli_batch_size", type=count, default=128, help="triplets of a step")
    add("--nli_mini_batch_size", type=count, help="triplets in memory at once (default: the batch)")
    add("--compile", action="store_true", help="measure torch.compile too, which takes minutes to compile")
    add("--scale", type=positive, default=1.0, help="share of the real number of rows to load")
    return parser


def build_model(args, folder: Path, fast: bool):
    """A SentenceTransformer of kf-deberta-base's shape; the same random weights at each call."""
    import torch
    from build_base import build_base
    from transformers import AutoModel

    from kf_deberta.model.load import load_model

    if not folder.exists():
        build_base(
            folder,
            hidden_size=768,
            num_hidden_layers=args.layers,
            num_attention_heads=12,
            intermediate_size=3072,
            position_buckets=256,
        )
        base = AutoModel.from_pretrained(folder)
        torch.manual_seed(0)
        base.resize_token_embeddings(max(args.vocab, base.config.vocab_size), mean_resizing=False)
        base.save_pretrained(folder)
    return load_model(str(folder), device=args.device, max_seq_length=128, fast_attention=fast)


def in_turns(variants: dict[str, Callable[[int], object]], args, unit: float = 1.0) -> None:
    """Time every variant in each round, A B A B after one unmeasured round, and print a table; the first is the measure."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(-1, args.rounds):
        for name, variant in variants.items():
            if args.device == "cpu":
                start = time.process_time()
                variant(max(number, 0))
                spent = time.process_time() - start
            else:
                torch.cuda.synchronize()
                start = time.perf_counter()
                variant(max(number, 0))
                torch.cuda.synchronize()
                spent = time.perf_counter() - start
            if number >= 0:
                seconds[name].append(spent)
    first = next(iter(variants))
    print("| variant | seconds (median) | times as fast (range) |\n|:--|--:|--:|")
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(seconds[first], values, strict=True)]
        print(
            f"| {name} | {median(values) / unit:.4f} | {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


def train(args, folder: Path) -> None:
    """Time the optimizer steps of the training loop, forward to AdamW, tokenization left out."""
    import torch
    from datasets import Dataset
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        CosineSimilarityLoss,
        MultipleNegativesRankingLoss,
    )
    from transformers import get_scheduler

    from data_util import load_kor_nli, load_kor_sts
    from kf_deberta.model.cpu import keep_freed_memory
    from kf_deberta.model.packing import take_masks_from_host
    from kf_deberta.training import loop

    keep_freed_memory()
    data = {"sts": load_kor_sts(SAMPLE / "KorSTS" / "sts-train.tsv"), "nli": load_kor_nli(SAMPLE.glob("KorNLI/*"), 0)}
    sizes = {"sts": args.sts_batch_size, "nli": args.nli_batch_size}

    class OneProcess:
        def average(self, tensors) -> None:
            pass

    def variant(name: str, objective: str) -> Callable[[int], object]:
        model = build_model(args, folder, fast=name != LIBRARY).train()
        ...

    for name, rows in data.items():
        ...
