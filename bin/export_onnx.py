"""Export a sentence-embedding model as ONNX graphs that contain its pooling.

    python bin/export_onnx.py             # models/kf-deberta-multitask.onnx
    python bin/export_onnx.py --model_name_or_path output/my-model --quantize
    python bin/export_onnx.py --model_name_or_path output/my-model --quantize \\
        --into_model_dir                  # output/my-model/onnx/model.onnx

Each graph is compared with torch before anything is saved. The directory has
one model's graphs, its tokenizer and a README that says how to use them.
"""

import contextlib
import os
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from kf_deberta.errors import InputError, check_writable, remove, run, say, writing
from kf_deberta.flags import DATASET_PATH, Parser, add_model_flags, count, file_path, number

NAMES = {"float32": "{}.onnx", "int8": "{}-int8.onnx", "float16": "{}-fp16.onnx"}
# where hub clients look for them in a model's directory
HUB_NAMES = {"float32": "model.onnx", "int8": "model_quantized.onnx", "float16": "model_fp16.onnx"}
WORK = ".part-export"


def main() -> None:
    """Export into a temporary directory, check, move into place."""
    # 1. Flags, and what could be in the way
    parser = Parser(__doc__)
    add = parser.add_argument
    add_model_flags(parser, default="upskyy/kf-deberta-multitask")
    add("--max_seq_length", type=count, help="tokens after which a sentence is truncated (default: the model's)")
    add("--normalize", action="store_true", help="scale embeddings to length 1 inside the graph")
    add("--opset", type=number(int, least=18, most=22), default=18, help="ONNX operator set")
    add("--quantize", action="store_true", help="write an int8 graph for CPUs, too")
    bits = "int8 weights of 7 bits, for x86 processors without VNNI (before about 2019); auto asks this one"
    add("--reduce_range", choices=["auto", "yes", "no"], default="auto", help=bits)
    add("--fp16", action="store_true", help="write a float16 graph for GPUs, too")
    add("--force", action="store_true", help="keep an int8 graph that loses over 2 points of cosine Spearman")
    add("--output_dir", type=file_path, default=Path("models"), help="directory of the graphs, new or of this model")
    add("--into_model_dir", action="store_true", help="save the graphs in onnx/ of the model's own directory instead")
    data = "directory of sts-test.tsv, on which --quantize compares torch, float32 and int8"
    add("--sts_dataset_path", type=file_path, default=DATASET_PATH / "KorSTS", help=data)
    args = parser.parse_args()
    name = args.model_name_or_path
    local = Path(name).is_dir()
    title = Path(name).resolve().name if local else name
    if args.into_model_dir and not local:
        raise InputError(f"--into_model_dir: {name} is not a local directory; omit the flag")
    stem = Path(title).name
    names = HUB_NAMES if args.into_model_dir else {kind: text.format(stem) for kind, text in NAMES.items()}
    folder = Path(name) / "onnx" if args.into_model_dir else args.output_dir
    check_writable(folder)
    say("loading libraries")  # 5 seconds and more
    import torch

    from data_util import load_kor_sts
    from kf_deberta.evaluation.report import published_pooling
    from kf_deberta.evaluation.scoring import PairEvaluator
    from kf_deberta.export.check import check_graph, check_loss, expectation, score_graphs
    from kf_deberta.export.graph import check_modules, export_model, graph_bytes, graph_files, save_companions
    from kf_deberta.export.quantize import cpu_has_vnni, quantize_int8
    from kf_deberta.export.readme import readme
    from kf_deberta.model.load import check_no_prompt, describe, load_model
    from kf_deberta.model.onnx_encoder import MODEL_KEY, model_of
    from kf_deberta.training.card import add_onnx_usage

    others = [path for path in folder.glob("*") if path.name != WORK] if folder.is_dir() else []
    if others and model_of(folder / names["float32"]) != title:
        remedy = "move it away" if args.into_model_dir else f"choose another --output_dir, such as {folder / stem}"
        raise InputError(f"{folder}: has files that are not of an export of {title}; {remedy}")
    test = args.sts_dataset_path / "sts-test.tsv"
    scored = args.quantize and args.sts_dataset_path.exists()
    evaluator = PairEvaluator(load_kor_sts(test), "sts-test") if scored else None

    # 2. Model
    options = {"max_seq_length": args.max_seq_length, "normalize": args.normalize, "revision": args.revision}
    model = load_model(name, device="cpu", pooling=args.pooling or published_pooling(name), **options).eval()
    print(f"{name}: {describe(model)}")
    check_modules(model, name)
    check_no_prompt(model, name)

    # 3. Graphs in a temporary directory, each compared with torch
    work = folder / WORK
    remove(work)  # of an export that was killed
    try:
        with writing(folder):
            work.mkdir(parents=True)
            metadata = save_companions(model, work) | {MODEL_KEY: title}
        expected = expectation(model)
        kinds = ["float32"] + ["float16"] * args.fp16 + ["int8"] * args.quantize
        graphs = {kind: work / names[kind] for kind in kinds}
        for kind, path in graphs.items():
            say(f"writing {path.name} and comparing it with torch")
            if kind == "int8":
                reduce_range = args.reduce_range == "yes" or (args.reduce_range == "auto" and not cpu_has_vnni())
                quantize_int8(graphs["float32"], path, reduce_range=reduce_range)
            else:
                export_model(model, path, opset=args.opset, dtype=getattr(torch, kind), metadata=metadata)
            print(check_graph(path, kind, *expected))

        # 4. Figures of int8
        figures = {}
        if evaluator:
            figures = score_graphs(model, [graphs["float32"], graphs["int8"]], evaluator)
            check_loss(figures, graphs["int8"].name, force=args.force)
        elif args.quantize:
            say(f"warning: {test} does not exist, so what int8 loses on KorSTS is not measured")
        text = readme(model, title, graphs, figures, f"{test.parent.name}/{test.name}")
        (work / "README.md").write_text(text, encoding="utf-8")
        if figures:
            print(text[text.index(f"| {test.parent.name}/") :].partition("\n\n")[0])

        # 5. Into place: the old graphs of this model are removed first, the new ones come last
        for path in [file for old in names.values() for file in graph_files(folder / old)]:
            path.unlink()
        new = [file for path in graphs.values() for file in graph_files(path)]
        for path in new if args.into_model_dir else sorted(work.iterdir(), key=lambda path: path in new):
            if (target := folder / path.name).is_dir():
                remove(target)
            os.replace(path, target)
    finally:
        remove(work)
        with contextlib.suppress(OSError):  # not empty: the export went well
            folder.rmdir()
    for path in graphs.values():
        print(f"{folder / path.name}: {graph_bytes(folder / path.name) / 1e6:.1f} MB")
    if args.into_model_dir:
        add_onnx_usage(model, Path(name))


if __name__ == "__main__":
    run(main)
