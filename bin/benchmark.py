"""Score sentence-embedding models on KorSTS and other pairs of sentences.

    python bin/benchmark.py                # the published model, KorSTS test
    python bin/benchmark.py --model_name_or_path output/my-model my-model.onnx
    python bin/benchmark.py --truncate_dims 768,256,64 --precision float32,int8
    python bin/benchmark.py --data korsts klue-sts sts17  # and their average
    python bin/benchmark.py --data my.csv --columns a,b,score --scale 0,1

Prints eight correlations times 100 as Markdown, with published rows, 95%
intervals, and paired differences to the first model with two-sided p-values.
The exit status is 2 if a model could not be scored; the others still are.
"""

import argparse
import datetime
import importlib.metadata
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kf_deberta.errors import STATUS, InputError, check_writable, is_out_of_memory, one_line, run, say
from kf_deberta.flags import DATASET_PATH, Parser, Several, add_model_flags, count, file_path, model_name, number, seed

DEFAULT_MODEL = "upskyy/kf-deberta-multitask"
LIBRARIES = ("sentence-transformers", "transformers", "torch", "onnxruntime", "numpy", "scipy")


def main() -> int:
    """Score, print, save; 0, or 2 if a row has no figures."""
    # 1. Flags; what can never work is refused before anything is loaded
    parser = Parser(__doc__)
    add = parser.add_argument
    several = {"nargs": "+", "action": "extend", "default": []}
    add_model_flags(parser, help=f"hub names, directories, .onnx files (default: {DEFAULT_MODEL})", **several)
    add("--prompt", help="text put before every sentence, '' for none (default: the model's own)")
    add("--normalize", action="store_true", help="scale the embeddings to length 1, after truncation")
    add("--device", help="torch device (default: GPU if available)")
    add("--batch_size", type=count, default=64, help="sentences per batch")
    add("--bf16", action="store_true", help="encode in bfloat16 autocast")
    data = "korsts, klue-sts, sts17, or .tsv, .csv, .json, .jsonl, .parquet files (default: korsts)"
    add("--data", type=model_name, metavar="NAME_OR_FILE", help=data, **several)
    add("--sts_dataset_path", type=file_path, default=DATASET_PATH / "KorSTS", help="directory of sts-test.tsv")
    add("--download", action="store_true", help="clone the data to --sts_dataset_path, as is done for its default")
    add("--split", choices=["dev", "test"], default="test", help="file of that directory")
    columns = "both sentences and the score of a file (default: sentence1,sentence2,score)"
    add("--columns", type=str, action=Several, metavar="NAME", help=columns)
    add("--scale", type=number(float), action=Several, help="scores of different and equal sentences (default: 0,5)")
    add("--truncate_dims", type=count, action=Several, default=[None], help="first N dimensions only (default: all)")
    add("--precision", type=str, action=Several, default=["float32"], metavar="NAME", help="float32, int8, binary")
    add("--bootstrap", type=number(int, least=0), default=1000, help="resamples for intervals and p-values; 0: none")
    add("--seed", type=seed, default=0, help="seed of the bootstrap")
    add("--errors", type=number(int, least=0), default=0, help="list the N worst-ranked pairs")
    add("--plot", type=file_path, help="scatter plot of cosine against gold score: .png, .pdf or .svg")
    add("--output", type=file_path, help="save the results as .json or .csv (default: none)", **several)
    add("--reproduces", metavar="NAME", help="compare models without a published row with this one (a hub name)")
    add("--no_published", action="store_true", help="leave the published rows out")
    args = parser.parse_args()
    models, names = list(dict.fromkeys(args.model_name_or_path or [DEFAULT_MODEL])), args.data or ["korsts"]
    for name, flag in itertools.product(models, ("revision", "pooling", "bf16")):
        if name.endswith(".onnx") and getattr(args, flag):
            raise InputError(f"--{flag} has no effect on {name}; omit it")
    has_files = any(Path(name).suffix for name in names)
    for flag, length in (("columns", 3), ("scale", 2)):
        if (values := getattr(args, flag)) and not (has_files and len(values) == length):
            raise InputError(f"--{flag}: must be {length} different values for a file of --data, not {values}")
    if unknown := set(args.precision) - {"float32", "int8", "binary"}:
        raise InputError(f"--precision: must be float32, int8 or binary, not {', '.join(unknown)}")
    for path in [*args.output, *filter(None, [args.plot])]:
        endings = (".png", ".pdf", ".svg") if path == args.plot else (".json", ".csv")
        if path.suffix not in endings or path in map(Path, names):
            raise InputError(f"{path}: name a file that ends with {' or '.join(endings)} and is not one of --data")
        check_writable(path.parent)
    from kf_deberta.data.official import BLOB_IDS, ensure_kor_nlu_datasets
    from kf_deberta.data.pairs import SCALE, load_pairs
    from kf_deberta.evaluation.bootstrap import add_bootstrap
    from kf_deberta.evaluation.report import COMPARABLE_ROWS, errors_table, report, write_results
    from kf_deberta.evaluation.scatter import plot
    from kf_deberta.evaluation.scoring import check_gold, encode_pairs, pair_similarities, score, transform

    if args.reproduces and args.reproduces not in (known := [row.hub_name for row in COMPARABLE_ROWS]):
        raise InputError(f"--reproduces: must be one of {', '.join(known)}, not {args.reproduces}")

    # 2. Pairs and their gold scores (0..1)
    data, korsts = {}, args.sts_dataset_path
    if "korsts" in names and korsts.name == "KorSTS":
        ensure_kor_nlu_datasets(korsts.parent, args.download)
    for name in names:
        options = () if name == "korsts" else (args.columns, args.scale or SCALE)
        pairs = load_pairs(str(korsts / f"sts-{args.split}.tsv") if name == "korsts" else name, *options)
        check_gold(pairs.gold, pairs.name, pairs.scale)
        data[pairs.name] = pairs
    official = BLOB_IDS["KorSTS/sts-test.tsv"] in [pairs.blob_id for pairs in data.values()]
    if args.reproduces and not (official and None in args.truncate_dims and "float32" in args.precision):
        raise InputError("--reproduces compares whole float32 embeddings on KorSTS test; omit it, or what differs")
    sentences = [text for pairs in data.values() for text in (*pairs.sentences1, *pairs.sentences2)]

    # 3. Every model once, on all data; what is done is saved before the next one starts
    say("loading libraries")  # 5 seconds and more
    details = ["bfloat16"] * args.bf16 + ["normalized"] * args.normalize
    details += [f"{args.pooling} pooling"] * bool(args.pooling)
    details += [f"prompt {args.prompt!r}"] * (args.prompt is not None)  # '' is none, in place of the model's own
    versions = " ".join(f"{library}=={importlib.metadata.version(library)}" for library in LIBRARIES)
    about = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "versions": versions}
    results = []  # records, each with its similarities, (4, pairs), or None if its `error` says why there are none
    for name in models:
        of_model = about | {"model": name, "error": None}
        loaded = attempt(of_model, load_encoder, name, args, sentences)
        encode, of_model["revision"], of_model["settings"] = loaded or (None, None, None)
        for pairs in data.values():
            facts = of_model | {"data": pairs.name, "blob_id": pairs.blob_id, "data_revision": pairs.revision}
            facts, start = facts | {"rows": len(pairs.gold), "note": pairs.note or None}, time.perf_counter()
            if embedded := attempt(facts, encode_pairs, encode, pairs.sentences1, pairs.sentences2):
                facts |= {"sentences": len(embedded.embeddings), "seconds": time.perf_counter() - start}
            variants = itertools.product(args.truncate_dims, args.precision)
            for dimension, precision in variants if embedded else [(None, "float32")]:
                words = details + [f"first {dimension} dimensions"] * bool(dimension)
                words += [precision] * (precision != "float32")
                record = facts | {"dimensions": dimension, "precision": precision}
                record["label"] = f"{name} ({', '.join(words)})" if words else name
                changed = attempt(record, transform, embedded, dimension, precision, args.normalize)
                values = attempt(record, pair_similarities, changed)
                results.append((record | ({} if values is None else score(values, pairs.gold)), values))
        records = [record for record, _ in results]
        for path in args.output:
            write_results(path, records)
    for name, error in dict.fromkeys((record["model"], record["error"]) for record in records if record["error"]):
        say(f"error: {name}: {error.removeprefix(f'{name}: ')}")
    scored = [(record, values) for record, values in results if values is not None]
    if not scored:
        return STATUS

    # 4. Intervals and paired differences
    for pairs in data.values() if args.bootstrap else []:
        on_these = [(record, values) for record, values in scored if record["data"] == pairs.name]
        if on_these and len(pairs.gold) >= 10:  # fewer often draw a resample of equal scores, without a correlation
            add_bootstrap(*zip(*on_these, strict=True), pairs.gold, args.bootstrap, args.seed)
    for path in args.output:
        write_results(path, records)

    # 5. The report
    print(report(records, not args.no_published, args.reproduces))
    for record, values in scored if args.errors else []:
        print(f"\n{errors_table(args.errors, record['label'], values[0], data[record['data']])}")
    if args.plot:
        plot(args.plot, [(record, values[0], data[record["data"]]) for record, values in scored])
    return STATUS if len(scored) < len(results) else 0


def load_encoder(name: str, args: argparse.Namespace, sentences: list[str]) -> tuple[Callable, str, str]:
    """Load a model: the function that encodes sentences, its revision or full path, and how it runs."""
    place, progress = str(Path(name).resolve()), sys.stderr.isatty()
    if name.endswith(".onnx"):
        from kf_deberta.model.onnx_encoder import OnnxEncoder

        encoder = OnnxEncoder(name, device=args.device, prompt=args.prompt or "")
        settings = f"onnxruntime, prompt {encoder.prompt!r}"
        return lambda texts: encoder.encode(texts, args.batch_size, progress), place, settings
    import torch

    from kf_deberta.evaluation.report import published_pooling
    from kf_deberta.model.load import check_vocabulary, describe, load_model

    options = {"pooling": args.pooling or published_pooling(name), "prompt": args.prompt}
    model = load_model(name, revision=args.revision, device=args.device, **options)
    check_vocabulary(model, sentences, name)

    def encode(texts: list[str]):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=args.bf16):
            return model.encode(texts, batch_size=args.batch_size, show_progress_bar=progress)

    settings = f"{model.device.type}{', bfloat16' * args.bf16}, {describe(model)}"
    say(f"{name}: {settings}")
    return encode, model.revision or place, settings


def attempt(record: dict, action: Callable, *arguments) -> object:
    """Return what `action` returns, or note in `record` why not, so that one model's failure loses no results."""
    if record["error"]:
        return None
    try:
        return action(*arguments)
    except Exception as failure:  # a foreign model's modules may raise anything
        oom = is_out_of_memory(failure)
        record["error"] = "out of memory; lower --batch_size" if oom else one_line(failure, 500)


if __name__ == "__main__":
    run(main)
