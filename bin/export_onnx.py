"""Export a sentence-embedding model as ONNX: pooling inside, compared with torch, with its tokenizer and a README.

    python bin/export_onnx.py                                            # models/kf-deberta-multitask.onnx
    python bin/export_onnx.py --model_name_or_path output/my-model --quantize
    python bin/export_onnx.py --quantize --hub_layout --output_dir models/hub  # onnx/model.onnx, model_quantized.onnx
    python bin/export_onnx.py --model_name_or_path output/my-model --quantize --into_model_dir

All files are written to a temporary directory, checked there and then moved into place. Exit status: 1 when a check
fails (nothing is left of the export), 2 for input that cannot be used.
"""

import argparse
import contextlib
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from kf_deberta.cli import (
    InputError,
    Parser,
    add_model_flags,
    count,
    file_path,
    flags_first,
    model_name,
    model_options,
    number,
    one_of,
    run,
    say,
)
from kf_deberta.data.download import DEFAULT_PATH


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    model = parser.add_argument_group("model")
    add = model.add_argument
    add("--model_name_or_path", type=model_name, default="upskyy/kf-deberta-multitask", help="hub name or directory")
    add("--max_seq_length", type=count, help="tokens that tokenizer.json truncates to (default: the model's)")
    add("--normalize", action="store_true", help="scale embeddings to length 1 inside the graph")
    add_model_flags(model)
    add = parser.add_argument_group("graph").add_argument
    add("--opset", type=number(int, least=18, most=22), default=18, help="ONNX operator set")
    add("--quantize", action="store_true", help="write <name>-int8.onnx too, dynamic int8 for CPUs")
    why = (
        "int8 weights in 7 bits, for CPUs without VNNI (x86 before about 2019), where sums of 8-bit products overflow"
    )
    add("--reduce_range", type=one_of("auto", "yes", "no"), default="auto", help=f"{why}; auto asks this CPU")
    add("--fp16", action="store_true", help="write <name>-fp16.onnx too, for GPU runtimes")
    add("--force", action="store_true", help="keep int8 that loses over 2 points of cosine Spearman")
    add = parser.add_argument_group("run").add_argument
    add("--output_dir", type=file_path, default=Path("models"), help="folder of graphs, tokenizer and README")
    names = "name the graphs as hub clients look for them: onnx/model.onnx, model_quantized.onnx, model_fp16.onnx"
    add("--hub_layout", action="store_true", help=names)
    add("--into_model_dir", action="store_true", help="put the graphs into the model's directory too, by these names")
    data = "folder of sts-test.tsv; if it is there, --quantize compares the figures of torch, float32 and int8"
    add("--sts_dataset_path", type=file_path, default=DEFAULT_PATH / "KorSTS", help=data)
    args = parser.parse_args()
    if args.into_model_dir and not Path(args.model_name_or_path).is_dir():
        raise InputError(f"--into_model_dir: {args.model_name_or_path} is not a local directory; leave the flag out")
    of_int8 = [name for name in ("reduce_range", "force") if getattr(args, name) != parser.get_default(name)]
    if of_int8 and not args.quantize:
        raise InputError(f"--{', --'.join(of_int8)}: only for int8; add --quantize or leave them out")
    return args


flags_first(parse_args)

import numpy as np
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from data_util import load_kor_sts
from kf_deberta.evaluation.published import published_pooling
from kf_deberta.evaluation.scoring import check_gold
from kf_deberta.export import check as onnx_check
from kf_deberta.export.folder import HUB_NAMES, check_alone, check_free, deliver, plain_names, reserved
from kf_deberta.export.graph import (
    ExportError,
    check_modules,
    copy_graph,
    export_model,
    graph_files,
    save_companions,
)
from kf_deberta.export.quantize import cpu_has_vnni, quantize_int8
from kf_deberta.export.readme import readme
from kf_deberta.model.load import describe, load_model
from kf_deberta.training.card import add_onnx_usage


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
    model: SentenceTransformer,
    graphs: dict[str, Path],
    metadata: dict[str, str],
    args: argparse.Namespace,
    pairs: Dataset | None,
) -> None:
    """Write and check the asked kinds of graph beside their tokenizer; ExportError where a check fails."""
    # 1. float32, embeddings within 1e-4 of torch's
    sentences = onnx_check.check_sentences(model.max_seq_length)
    # without special tokens the empty sentence has none at all
    sentences = [text for text in sentences if model.tokenizer(text, verbose=False)["input_ids"]]
    expected = onnx_check.torch_embeddings(model, sentences)
    full = graphs["float32"]
    say(f"writing {full.name}")
    export_model(model, full, opset=args.opset, metadata=metadata)
    say(f"checking {full.name} against torch")
    difference = onnx_check.check_graph(full, sentences, expected)
    print(f"{full.name}: embeddings differ from torch's by at most {difference:.1e}")

    # 2. float16
    if "float16" in graphs:
        half = graphs["float16"]
        say(f"writing and checking {half.name}")
        export_model(model, half, opset=args.opset, dtype=torch.float16, metadata=metadata)
        cosine = onnx_check.check_reduced_graph(half, sentences, expected, onnx_check.FP16_MIN_COSINE)
        print(f"{half.name}: cosine with torch's embeddings at least {cosine:.6f} (run on the CPU)")

    # 3. int8, judged by KorSTS where it is there
    if "int8" in graphs:
        small = graphs["int8"]
        say(f"writing and checking {small.name}")
        reduce_range = args.reduce_range == "yes" or (args.reduce_range == "auto" and not cpu_has_vnni())
        quantize_int8(full, small, reduce_range=reduce_range)
        cosine = onnx_check.check_reduced_graph(small, sentences, expected, onnx_check.INT8_MIN_COSINE)
        bits = 7 if reduce_range else 8
        print(f"{small.name}: cosine with torch's embeddings at least {cosine:.4f} ({bits}-bit weights)")
        if pairs is None:
            return
        title = str(args.sts_dataset_path / "sts-test.tsv")
        say(f"scoring torch, {full.name} and {small.name} on {title}")
        figures = onnx_check.compare_on_kor_sts(model, [full, small], pairs, title)
        warning = onnx_check.check_loss(figures, small.name, force=args.force)
        if warning:
            print(f"warning: {warning}")


def main() -> int:
    """Export, check, deliver; 1 where a check failed."""
    args = parse_args()
    name, output_dir = args.model_name_or_path, args.output_dir
    stem = re.sub(r"[\x00-\x1f]", "_", Path(name).resolve().name if Path(name).is_dir() else Path(name).name)
    kinds = ["float32"] + ["int8"] * args.quantize + ["float16"] * args.fp16
    names = HUB_NAMES if args.hub_layout else plain_names(stem)
    pairs = load_test_pairs(args.sts_dataset_path) if args.quantize else None
    with contextlib.ExitStack() as stack:
        # 1. What could be in the way, before the work
        work = stack.enter_context(reserved(output_dir))
        check_alone(output_dir, names.values(), stem)
        check_free(output_dir, [*names.values(), "README.md", "tokenizer.json", "tokenizer_config.json"])
        if args.into_model_dir:
            inner = Path(name) / "onnx"
            copies = stack.enter_context(reserved(inner))
            check_free(inner, [Path(HUB_NAMES[kind]).name for kind in kinds])

        # 2. Everything into the working directory
        options = model_options(args) | {"pooling": args.pooling or published_pooling(name)}
        length = args.max_seq_length
        model = load_model(name, device="cpu", max_seq_length=length, normalize=args.normalize, **options).eval()
        print(f"{name}: {describe(model)}")
        check_modules(model, name)
        graphs = {kind: work / names[kind] for kind in kinds}
        try:
            metadata = save_companions(model, work)
            graphs["float32"].parent.mkdir(exist_ok=True)
            write_graphs(model, graphs, metadata, args, pairs)
        except ExportError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        text = readme(model, stem if Path(name).is_dir() else name, {k: names[k] for k in kinds}, args.opset)
        (work / "README.md").write_text(text, encoding="utf-8")

        # 3. Into place
        if args.into_model_dir:
            for kind in kinds:
                copy_graph(graphs[kind], copies / Path(HUB_NAMES[kind]).name)
            report(copies, inner)
            add_onnx_usage(model, Path(name))
        report(work, output_dir)
    return 0


def report(work: Path, directory: Path) -> None:
    """Deliver `work` into `directory` and print the graphs that came, with their sizes, and those that are gone."""
    graphs = [path.relative_to(work) for path in sorted(work.rglob("*.onnx"))]
    gone = deliver(work, directory)
    for path in (directory / graph for graph in graphs):
        print(f"{path}: {sum(file.stat().st_size for file in graph_files(path)) / 1e6:.1f} MB")
    for path in gone:
        print(f"{path}: of an earlier export, removed")


if __name__ == "__main__":
    run(main)
