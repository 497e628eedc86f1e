"""From a model (hub name, directory or .onnx file) to benchmark records: encoded once, scored in every variant."""

import argparse
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from kf_deberta.cli import InputError
from kf_deberta.evaluation.results import Record
from kf_deberta.evaluation.scoring import encode_pairs, encode_sorted, pair_similarities, score, transform
from kf_deberta.model.hub import cached_commit
from kf_deberta.model.load import load_model
from kf_deberta.model.onnx_encoder import OnnxEncoder


def load_encoder(name: str, args: argparse.Namespace) -> tuple[Callable[[list[str]], np.ndarray], str, str]:
    """Load a model: the function that encodes sentences, its revision or full path, and how it runs."""
    revision = str(Path(name).resolve())
    if name.endswith(".onnx"):
        encoder = OnnxEncoder(name, device=args.device)
        size = args.batch_size or 64
        return lambda sentences: encoder.encode(sentences, size, show_progress_bar=True), revision, "onnxruntime"
    model = load_model(name, device=args.device, fast_attention=not args.no_fast_attention)
    device = model.device.type
    size = args.batch_size or (64 if device == "cpu" else 256)
    if not Path(name).is_dir():
        revision = cached_commit(name) or "unknown"

    def encode(sentences: list[str]) -> np.ndarray:
        with torch.autocast(device, torch.bfloat16, enabled=args.bf16):
            return encode_sorted(model, sentences, size)

    return encode, revision, f"{device}{' bfloat16' if args.bf16 else ''}"


def score_model(
    name: str, args: argparse.Namespace, data: dict[str, list], about: Record
) -> tuple[list[Record], list[np.ndarray | None]]:
    """Encode with one model once and score every asked truncation and precision of its embeddings.

    Returns the records, and for each its similarities, (4, pairs), or None where its `error` says why there are none.
    """
    records, similarities = [], []
    pairs = error = None
    about = about | {"model": name}
    try:
        print(f"{name}:", file=sys.stderr)
        encode, about["revision"], about["settings"] = load_encoder(name, args)
        start = time.perf_counter()
        pairs = encode_pairs(encode, data["sentence1"], data["sentence2"])
        about |= {"sentences": len(pairs.embeddings), "seconds": time.perf_counter() - start}
    except InputError as failure:
        error = str(failure)
    except torch.OutOfMemoryError:
        error = "out of memory; lower --batch_size"
    except Exception as failure:  # whatever a foreign model raises must not lose the results of the others
        error = f"encoding failed ({type(failure).__name__}: {' '.join(str(failure).split())[:200]})"
    variants = itertools.product(args.truncate_dims, args.precision) if pairs is not None else [(None, "float32")]
    for dimension, precision in variants:
        record = about | {"dimensions": dimension, "precision": precision, "error": error}
        values = None
        try:
            if pairs is not None:
                values = pair_similarities(transform(pairs, dimension, precision))
                record |= score(values, data["score"])
        except InputError as failure:
            record["error"] = str(failure)
        records.append(record)
        similarities.append(values)
    for message in dict.fromkeys(record["error"] for record in records if record["error"]):
        print(f"error: {message if message.startswith(name) else f'{name}: {message}'}", file=sys.stderr)
    return records, similarities
