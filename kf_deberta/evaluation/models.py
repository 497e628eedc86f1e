"""A hub name, directory or .onnx file as a function from sentences to embeddings."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from kf_deberta.cli import InputError, model_options, say
from kf_deberta.evaluation.published import published_pooling
from kf_deberta.evaluation.scoring import encode_sorted
from kf_deberta.model.load import describe, load_model
from kf_deberta.model.onnx_encoder import OnnxEncoder, describe_prompt


def load_encoder(name: str, args: argparse.Namespace) -> tuple[Callable[[list[str]], np.ndarray], str, str]:
    """Load a model: the function that encodes sentences, its revision or full path, and how it runs."""
    place = str(Path(name).resolve())
    if name.endswith(".onnx"):
        if args.pooling:
            raise InputError(f"{name}: pooling is inside the graph; leave --pooling {args.pooling} out")
        say(f"loading {name}")
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
