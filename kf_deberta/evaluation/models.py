"""From a model (hub name, directory or .onnx file) to benchmark records: encoded once, scored in every variant."""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kf_deberta.cli import InputError, is_out_of_memory, model_options, one_line
from kf_deberta.data.pairs import Pairs
from kf_deberta.evaluation.published import published_pooling
from kf_deberta.evaluation.results import Record
from kf_deberta.evaluation.scoring import encode_pairs, encode_sorted, pair_similarities, score, transform
from kf_deberta.model.load import describe, load_model
from kf_deberta.model.onnx_encoder import OnnxEncoder, describe_prompt


def load_encoder(name: str, args: argparse.Namespace) -> tuple[Callable[[list[str]], np.ndarray], str, str]:
    """Load a model: the function that encodes sentences, its revision or full path, and how it runs."""
    place = str(Path(name).resolve())
    if name.endswith(".onnx"):
        if args.pooling:
            raise InputError(f"{name}: pooling is inside the graph; leave --pooling {args.pooling} out")
        encoder = OnnxEncoder(name, device=args.device, prompt=args.prompt, normalize=args.normalize)
        size = args.batch_size or 64
        settings = f"onnxruntime{describe_prompt(encoder.prompt)}"
        return lambda sentences: encoder.encode(sentences, size, show_progress_bar=True), place, settings
    options = model_options(args) | {"pooling": args.pooling or published_pooling(name)}
    model = load_model(name, device=args.device, normalize=args.normalize, **options)
    device = model.device.type
    size = args.batch_size or (64 if device == "cpu" else 256)

    def encode(sentences: list[str]) -> np.ndarray:
        with torch.autocast(device, torch.bfloat16, enabled=args.bf16):
            return encode_sorted(model, sentences, size)

    settings = f"{device}{', bfloat16' if args.bf16 else ''}, {describe(model)}"
    return encode, model.revision or place, settings


def score_model(
    name: str, args: argparse.Namespace, data: Sequence[Pairs], about: Record
) -> list[tuple[Record, np.ndarray | None]]:
    """Encode each data set with one model once and score every asked truncation and precision of its embeddings.

    Returns the records, each with its similarities, (4, pairs), or None where its `error` says why there are none.
    """
    results: list[tuple[Record, np.ndarray | None]] = []
    about = about | {"model": name}
    loaded, load_error = attempt(lambda: load_encoder(name, args))
    if loaded is not None:
        encode, about["revision"], about["settings"] = loaded
        print(f"{name}: {about['settings']}", file=sys.stderr)
    for pairs in data:
        facts = about | describe_data(pairs)
        embedded, error, start = None, load_error, time.perf_counter()
        if loaded is not None:
            embedded, error = attempt(lambda p=pairs: encode_pairs(encode, p.sentences1, p.sentences2))
        if embedded is not None:
            facts |= {"sentences": len(embedded.embeddings), "seconds": time.perf_counter() - start}
            if np.allclose(np.linalg.norm(embedded.embeddings, axis=1), 1, atol=0.01):  # by whatever makes them so
                facts["settings"] += ", normalized"
        variants = itertools.product(args.truncate_dims, args.precision) if embedded else [(None, "float32")]
        for dimension, precision in variants:
            values = None
            if embedded is not None:
                cut = (embedded, dimension, precision)
                values, error = attempt(lambda cut=cut: pair_similarities(transform(*cut)))
            figures = {} if values is None else score(values, pairs.gold)
            results.append(
                (facts | {"dimensions": dimension, "precision": precision, "error": error} | figures, values)
            )
    for message in dict.fromkeys(record["error"] for record, _ in results if record["error"]):
        print(f"error: {message if message.startswith(name) else f'{name}: {message}'}", file=sys.stderr)
    return results


def attempt(action: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return what `action` returns and None, or None and why not: a bad model loses nothing of the others' results."""
    try:
        return action(), None
    except InputError as failure:
        return None, str(failure)
    except Exception as failure:  # a foreign model's code may raise anything
        if is_out_of_memory(failure):
            return None, "out of memory; lower --batch_size"
        return None, f"encoding failed ({type(failure).__name__}: {one_line(failure)})"


def describe_data(pairs: Pairs) -> Record:
    """Return what identifies a data set in a record."""
    facts = {"data": pairs.name, "rows": len(pairs.gold), "blob_id": pairs.blob_id}
    return facts | {"data_revision": pairs.revision, "note": pairs.note or None}
