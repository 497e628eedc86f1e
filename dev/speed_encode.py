"""Sentence embeddings in kf-deberta-base's shape, random weights: torch eager and fast, ONNX float32 and int8.

One process, the variants in turn on the same token ids (A B A B); tokenization is left out. Three workloads: one
sentence of 20 tokens, 32 of them, and KorSTS test sentences in length-sorted batches.

    python dev/speed.py encode
    python dev/speed.py encode --layers 2 --vocab 2000 --no_onnx
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn
from transformers import BertTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import speed_model as common

TOKENS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark to a parser."""
    common.add_model_arguments(parser)
    add = parser.add_argument
    add("--rounds", type=int, default=7, help="measured rounds of each variant (default: %(default)s)")
    add("--sentences", type=int, default=256, help="KorSTS test sentences per round (default: %(default)s)")
    add("--batch_size", type=int, default=32, help="of the sorted sentences (default: %(default)s)")
    add("--no_onnx", action="store_true", help="leave out the two ONNX graphs (default: off)")


def run(args: argparse.Namespace) -> None:
    """Measure and print Markdown tables."""
    common.check_positive(args)
    torch.set_num_threads(args.threads)
    ids = torch.Generator().manual_seed(args.seed)
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        # 1. The same weights for every variant
        model = common.base_model(args.layers, args.vocab, args.seed).eval().to(args.device)
        variants = common.variants_of(model, args.device)
        encoders = {f"torch, {name}": partial(_torch_embed, variant, args) for name, variant in variants.items()}
        if not args.no_onnx and args.device == "cpu":
            encoders |= _onnx_encoders(variants["fast attention"].model, Path(folder), args.threads)

        # 2. The workloads, each a list of batches that a round encodes
        lengths, source = common.sentence_lengths("test", args)
        chosen = np.random.default_rng(args.seed).permutation(lengths.reshape(-1))[: args.sentences]
        slices = np.split(np.sort(chosen), range(args.batch_size, len(chosen), args.batch_size))
        workloads = {
            f"1 sentence of {TOKENS} tokens": [common.padded_batch(np.full(1, TOKENS), args.vocab, ids)] * 8,
            f"32 sentences of {TOKENS} tokens": [common.padded_batch(np.full(32, TOKENS), args.vocab, ids)],
            f"{len(chosen)} sentences sorted by length, batches of {args.batch_size}": [
                common.padded_batch(lengths, args.vocab, ids) for lengths in slices
            ],
        }
        print(f"{common.machine(args)}; {args.layers} layers.")
        print(f"Sorted sentences: {source}.")
        for name, batches in workloads.items():
            steps = {variant: [partial(_encode, run, batches)] * args.rounds for variant, run in encoders.items()}
            _print_table(name, sum(len(batch["input_ids"]) for batch in batches), steps, args)


def _torch_embed(variant: common.Variant, args: argparse.Namespace, batch: dict[str, Tensor]) -> np.ndarray:
    batch = batch | {"input_ids": batch["input_ids"].to(args.device, non_blocking=True)}
    with torch.inference_mode(), torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
        return variant.embed(batch).float().cpu().numpy()


def _onnx_encoders(encoder: nn.Module, folder: Path, threads: int) -> dict[str, Callable]:
    """The graphs that bin/export_onnx.py writes, and what onnxruntime's own optimizer makes of the float32 one."""
    import onnxruntime
    from onnxruntime.transformers.optimizer import optimize_model

    from kf_deberta.export.graph import export_model
    from kf_deberta.export.quantize import cpu_has_vnni, quantize_int8

    print(f"onnxruntime {onnxruntime.__version__}")
    model = _as_sentence_transformer(encoder, folder)
    paths = {"ONNX, float32": folder / "float32.onnx", "ONNX, int8": folder / "int8.onnx"}
    export_model(model, paths["ONNX, float32"])
    optimizer = optimize_model(str(paths["ONNX, float32"]), "bert", common.HEADS, common.HIDDEN)
    paths["ONNX, float32, onnxruntime's transformer optimizer"] = folder / "optimized.onnx"
    optimizer.save_model_to_file(str(folder / "optimized.onnx"))
    quantize_int8(paths["ONNX, float32"], paths["ONNX, int8"], reduce_range=not cpu_has_vnni())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    sessions = {
        name: onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for name, path in paths.items()
    }
    return {name: partial(_onnx_embed, session) for name, session in sessions.items()}


def _as_sentence_transformer(encoder: nn.Module, folder: Path) -> SentenceTransformer:
    """What the exporter takes: the encoder with mean pooling. Its tokenizer is never used."""
    small = common.base_model(layers=1, vocab=8, seed=0)
    small.save_pretrained(folder / "small")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")), encoding="utf-8")
    BertTokenizerFast(vocab=str(vocabulary)).save_pretrained(folder / "small")
    transformer = Transformer(str(folder / "small"))
    transformer.model = encoder
    return SentenceTransformer(modules=[transformer, Pooling(common.HIDDEN, pooling_mode="mean")], device="cpu")


def _onnx_embed(session, batch: dict[str, Tensor]) -> np.ndarray:
    return session.run(["sentence_embedding"], {name: tensor.numpy() for name, tensor in batch.items()})[0]


def _encode(embed: Callable, batches: list[dict[str, Tensor]]) -> None:
    for batch in batches:
        embed(batch)


def _print_table(name: str, sentences: int, steps: dict[str, list[Callable]], args: argparse.Namespace) -> None:
    baseline = f"torch, {common.LIBRARY}"
    seconds = common.interleave(steps, args, name, baseline)
    print(f"\n### {name}\n")
    print("| variant | ms per sentence (median) | times as fast as library eager (range) |")
    print("|---|---|---|")
    for variant, values in seconds.items():
        ratio = "1" if variant == baseline else common.ratio_of(seconds, variant, baseline)
        print(f"| {variant} | {1000 * median(values) / sentences:.2f} | {ratio} |")
