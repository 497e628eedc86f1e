"""Export a sentence-embedding model as ONNX: pooling inside, compared with torch, with its tokenizer and a README.

    python bin/export_onnx.py                                            # models/kf-deberta-multitask.onnx
    python bin/export_onnx.py --model_name_or_path output/my-model --quantize
    python bin/export_onnx.py --model_name_or_path output/my-model --fp16 --into_model_dir

All files are written to a temporary directory, checked there and then moved into place. Exit status: 1 when a check
fails (nothing is left of the export), 2 for input that cannot be used.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from data_util import load_kor_sts
from kf_deberta.cli import InputError, check_writable, run
from kf_deberta.evaluation.scoring import check_gold
from kf_deberta.export import check as onnx_check
from kf_deberta.export import readme as onnx_readme
from kf_deberta.export.graph import (
    OPSETS,
    ExportError,
    check_modules,
    export_model,
    graph_files,
    save_tokenizer,
)
from kf_deberta.export.quantize import cpu_has_vnni, quantize_int8
from kf_deberta.model.load import load_model


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Export a sentence-embedding model as ONNX, pooling inside.")
    add = parser.add_argument
    default = "upskyy/kf-deberta-multitask"
    add("--model_name_or_path", default=default, metavar="M", help="hub name or directory (default: %(default)s)")
    add("--output_dir", type=Path, default=Path("models"), metavar="DIR", help="default: %(default)s")
    add("--opset", type=int, choices=OPSETS, default=OPSETS[0], help="ONNX operator set (default: %(default)s)")
    add("--max_seq_length", type=int, metavar="N", help="tokens tokenizer.json truncates to (default: the model's)")
    add("--quantize", action="store_true", help="also write <name>-int8.onnx, dynamic int8 for CPUs (default: off)")
    add(
        "--reduce_range",
        choices=("auto", "yes", "no"),
        default="auto",
        help="int8 weights in 7 bits, for target CPUs without VNNI (x86 before about 2019): there sums of 8-bit "
        "products overflow and embeddings degrade; with VNNI 8 bits are exact. auto asks this CPU (default: auto)",
    )
    add("--fp16", action="store_true", help="also write <name>-fp16.onnx, for GPU runtimes (default: off)")
    add("--into_model_dir", action="store_true", help="also put onnx/model.onnx into the model's directory")
    add(
        "--sts_dataset_path",
        type=Path,
        default=Path("kor-nlu-datasets/KorSTS"),
        metavar="DIR",
        help="where sts-test.tsv is; with --quantize the KorSTS figures of torch, float32 and int8 are compared, "
        "if the directory is there (default: %(default)s)",
    )
    add("--force", action="store_true", help="keep int8 that loses over 2 points of cosine Spearman (default: off)")
    add("--no_fast_attention", action="store_true", help="export the library's DeBERTa attention (default: off)")
    args = parser.parse_args()
    if args.max_seq_length is not None and args.max_seq_length < 2:
        raise InputError(f"--max_seq_length {args.max_seq_length}: 2 is the least, for the first and the last token")
    if args.into_model_dir and not Path(args.model_name_or_path).is_dir():
        raise InputError(f"--into_model_dir: {args.model_name_or_path} is not a local directory; leave the flag out")
    return args


def check_output_dir(directory: Path, stem: str) -> None:
    """Raise InputError where the export would overwrite the tokenizer or README of anything but an older export."""
    check_writable(directory)
    own = {f"{stem}{suffix}.onnx" for suffix in onnx_readme.KINDS}
    others = sorted(path.name for path in directory.glob("*.onnx") if path.name not in own)
    if others:
        other = f"{directory}: holds {others[0]}, which needs its own tokenizer.json"
        raise InputError(f"{other}; give --output_dir {directory / stem}")
    readme = directory / "README.md"
    ours = readme.is_file() and readme.read_text(encoding="utf-8", errors="replace").startswith(onnx_readme.TITLE)
    for path in (readme, directory / "tokenizer.json", directory / "tokenizer_config.json"):
        if path.exists() and not ours:
            raise InputError(f"{path}: no export wrote it, and it would be overwritten; choose another --output_dir")


def load_test_pairs(directory: Path) -> Dataset | None:
    """KorSTS test in a data directory, or None without the directory; InputError where it cannot be scored on."""
    if not directory.exists():
        print(f"warning: {directory} is not there, so the loss on KorSTS is not measured")
        return None
    path = directory / "sts-test.tsv"
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the directory that holds it with --sts_dataset_path")
    pairs = load_kor_sts(path)
    check_gold(np.asarray(pairs["score"]), path)
    return pairs


def write_graphs(
    model: SentenceTransformer, work: Path, stem: str, args: argparse.Namespace, pairs: Dataset | None
) -> None:
    """Write and check the graphs and their tokenizer in the directory `work`; ExportError where a check fails."""
    # 1. float32, embeddings within 1e-4 of torch's
    save_tokenizer(model, work)
    sentences = onnx_check.check_sentences(model.max_seq_length)
    expected = onnx_check.torch_embeddings(model, sentences)
    full = work / f"{stem}.onnx"
    export_model(model, full, opset=args.opset)
    difference = onnx_check.check_graph(full, sentences, expected)
    print(f"{full.name}: embeddings differ from torch's by at most {difference:.1e}")

    # 2. float16
    if args.fp16:
        half = work / f"{stem}-fp16.onnx"
        export_model(model, half, opset=args.opset, dtype=torch.float16)
        cosine = onnx_check.check_reduced_graph(half, sentences, expected, onnx_check.FP16_MIN_COSINE)
        print(f"{half.name}: cosine with torch's embeddings at least {cosine:.6f} (run on the CPU)")

    # 3. int8, judged by KorSTS where it is there
    if args.quantize:
        small = work / f"{stem}-int8.onnx"
        reduce_range = args.reduce_range == "yes" or (args.reduce_range == "auto" and not cpu_has_vnni())
        quantize_int8(full, small, reduce_range=reduce_range)
        cosine = onnx_check.check_reduced_graph(small, sentences, expected, onnx_check.INT8_MIN_COSINE)
        bits = 7 if reduce_range else 8
        print(f"{small.name}: cosine with torch's embeddings at least {cosine:.4f} ({bits}-bit weights)")
        if pairs is None:
            return
        title = str(args.sts_dataset_path / "sts-test.tsv")
        figures = onnx_check.compare_on_kor_sts(model, [full, small], pairs, title)
        warning = onnx_check.check_loss(figures, small.name, force=args.force)
        if warning:
            print(f"warning: {warning}")


def move_into_place(work: Path, target: Path) -> None:
    """Move the files of `work` over those of `target`, each graph after everything it needs."""
    for file in sorted(work.iterdir(), key=lambda file: file.suffix == ".onnx"):
        if file.suffix == ".onnx" and not (work / f"{file.name}_data").exists():
            (target / f"{file.name}_data").unlink(missing_ok=True)
        os.replace(file, target / file.name)


def main() -> int:
    """Export, check, deliver; 1 where a check failed."""
    args = parse_args()
    name, output_dir = args.model_name_or_path, args.output_dir
    stem = Path(name).resolve().name if Path(name).is_dir() else Path(name).name
    check_output_dir(output_dir, stem)
    pairs = load_test_pairs(args.sts_dataset_path) if args.quantize else None
    fast = not args.no_fast_attention
    model = load_model(name, device="cpu", fast_attention=fast, max_seq_length=args.max_seq_length).eval()
    check_modules(model, name)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=output_dir) as directory:
        work = Path(directory)
        try:
            write_graphs(model, work, stem, args, pairs)
        except ExportError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        suffixes = [suffix for suffix in onnx_readme.KINDS if (work / f"{stem}{suffix}.onnx").exists()]
        text = onnx_readme.readme(model, stem if Path(name).is_dir() else name, stem, suffixes, args.opset)
        (work / "README.md").write_text(text, encoding="utf-8")
        if args.into_model_dir:
            inner = Path(name) / "onnx"
            check_writable(inner)
            with tempfile.TemporaryDirectory(prefix=".export-", dir=inner) as copies:
                shutil.copyfile(work / f"{stem}.onnx", Path(copies) / "model.onnx")
                if (work / f"{stem}.onnx_data").exists():  # the graph names its data file
                    shutil.copyfile(work / f"{stem}.onnx_data", Path(copies) / f"{stem}.onnx_data")
                move_into_place(Path(copies), inner)
        move_into_place(work, output_dir)
    for suffix in onnx_readme.KINDS:
        path = output_dir / f"{stem}{suffix}.onnx"
        if suffix in suffixes:
            print(f"{path}: {sum(file.stat().st_size for file in graph_files(path)) / 1e6:.1f} MB")
        elif path.exists():  # of an earlier export, with another tokenizer and length
            path.unlink()
            print(f"{path}: of an earlier export, removed")
    return 0


if __name__ == "__main__":
    run(main)
