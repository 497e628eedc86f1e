"""Score sentence-embedding models on KorSTS and other pairs: eight correlations as Markdown, beside published rows.

    python bin/benchmark.py                                       # upskyy/kf-deberta-multitask on the test file
    python bin/benchmark.py --model_name_or_path output/my-model jhgan/ko-sroberta-multitask
    python bin/benchmark.py --model_name_or_path models/kf-deberta-multitask.onnx --output onnx.json onnx.csv
    python bin/benchmark.py --model_name_or_path output/my-model --truncate_dims 768,256,64 --precision float32,int8
    python bin/benchmark.py --data korsts klue-sts sts17          # one table for each data set, and their average
    python bin/benchmark.py --data my.csv --columns text1,text2,similarity --scale 0,1
    python bin/benchmark.py --published                           # the table of the READMEs, published rows alone

A p-value is twice the smaller share of resamples in which the difference is at most, or at least, 0. Exit status 2
when a model could not be scored; the results of the others are printed and saved all the same.
"""

import argparse
import datetime
import importlib.metadata
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kf_deberta.cli import (
    INPUT_ERROR_STATUS,
    InputError,
    Parser,
    add_model_flags,
    check_writable,
    count,
    file_path,
    flags_first,
    is_out_of_memory,
    model_name,
    number,
    one_line,
    one_of,
    run,
    seed,
    several,
)
from kf_deberta.data.download import DEFAULT_PATH, check_data_set, ensure_kor_nlu_datasets

DEFAULT_MODEL = "upskyy/kf-deberta-multitask"
LIBRARIES = ("sentence-transformers", "transformers", "torch", "onnxruntime", "numpy", "scipy")
PLOT_FORMATS = (".png", ".pdf", ".svg")
RESAMPLES, MIN_RESAMPLES = 1000, 100
MIN_BOOTSTRAP_ROWS = 10  # fewer pairs often draw a resample of equal scores, which has no correlation
HUB_NAMES = ("klue-sts", "sts17")
FORMATS = (".json", ".csv")


def parse_args() -> argparse.Namespace:
    """Read the command line; raise InputError for what can never work, before anything is loaded."""
    parser = Parser(__doc__)
    model = parser.add_argument_group("model")
    add = model.add_argument
    models = f"hub names, directories, .onnx files (default: {DEFAULT_MODEL})"
    add("--model_name_or_path", type=model_name, nargs="+", action="extend", default=[], help=models)
    add("--device", help="torch device (default: the accelerator where there is one)")
    add("--batch_size", type=count, help="sentences per batch (default: 64 on a CPU, else 256)")
    add("--bf16", action="store_true", help="encode in bfloat16 autocast")
    add("--normalize", action="store_true", help="scale embeddings to length 1")
    add_model_flags(model)

    add = parser.add_argument_group("data").add_argument
    sets = f"korsts, {', '.join(HUB_NAMES)}, .tsv, .csv, .json, .jsonl, .parquet files (default: korsts)"
    add("--data", type=model_name, nargs="+", action="extend", default=[], metavar="NAME_OR_FILE", help=sets)
    korsts = "folder with sts-dev.tsv and sts-test.tsv"
    add("--sts_dataset_path", type=file_path, default=DEFAULT_PATH / "KorSTS", help=korsts)
    add("--download", action="store_true", help="clone the data set to --sts_dataset_path, as is done for the default")
    add("--split", type=one_of("dev", "test"), help="file of that folder (default: test)")
    names = "both sentences and the score in a file (default: sentence1,sentence2,score)"
    add("--columns", type=columns, metavar="A,B,SCORE", help=names)
    add("--scale", type=scale, metavar="LOW,HIGH", help="lowest and highest score in a file (default: 0,5)")

    add = parser.add_argument_group("scores").add_argument
    add("--truncate_dims", type=several(count), default=[None], help="score the first N dimensions (default: all)")
    precisions = "score the embeddings as float32, int8 or binary, several as float32,int8"
    add("--precision", type=several(one_of("float32", "int8", "binary")), default=["float32"], help=precisions)
    resamples = number(int, least=0, most=10**6)
    add("--bootstrap", type=resamples, help=f"resamples for intervals and p-values; 0: none (default: {RESAMPLES})")
    add("--seed", type=seed, default=0, help="seed of the bootstrap")

    add = parser.add_argument_group("report").add_argument
    add("--errors", type=number(int, least=0), default=0, help="list the N worst-ranked pairs")
    add("--plot", type=file_path, help="draw cosine on gold into a .png, .pdf or .svg file")
    add("--output", type=file_path, nargs="+", default=[], help="save the results as .json or .csv")
    add("--reproduces", metavar="NAME", help="hub name of the published row that a model of yours is to reach")
    add("--no_published", action="store_true", help="leave the published rows out")
    add("--published", action="store_true", help="print the published rows alone and stop")
    args = parser.parse_args()
    given = [name for name, value in vars(args).items() if value != parser.get_default(name)]
    if args.published and (others := [name for name in given if name != "published"]):
        raise InputError(f"--published prints what was saved; leave out --{', --'.join(others)}")
    if args.revision and len(args.model_name_or_path) > 1:
        raise InputError(f"--revision {args.revision}: goes with one model; score the others in a call of their own")
    if 0 < (args.bootstrap or 0) < MIN_RESAMPLES:
        raise InputError(f"--bootstrap: must be 0, or {MIN_RESAMPLES} or more, not {args.bootstrap}")
    files = [name for name in args.data if name not in ("korsts", *HUB_NAMES)]
    if (args.columns or args.scale) and not files:
        raise InputError("--columns and --scale describe files; give one with --data")
    if args.split and "korsts" not in (args.data or ["korsts"]):
        raise InputError(f"--split {args.split} is of korsts; leave it out, or add korsts to --data")
    graphs = [name for name in args.model_name_or_path if name.endswith(".onnx")]
    if args.bf16 and graphs:
        raise InputError(f"{graphs[0]}: a graph runs in the precision it was exported in; leave --bf16 out")
    of_torch = [name for name in ("revision", "trust_remote_code", "no_fast_attention") if name in given]
    if of_torch and graphs and graphs == args.model_name_or_path:
        raise InputError(f"{graphs[0]}: the graph is all that is loaded; leave out --{', --'.join(of_torch)}")
    for path, formats in [(path, FORMATS) for path in args.output] + [(args.plot, PLOT_FORMATS)]:
        if path is not None and path.suffix not in formats:
            raise InputError(f"{path}: the name must end with {' or '.join(formats)}")
        if path is not None and path.is_dir():
            raise InputError(f"{path}: a directory; name a file")
        if path is not None and path.resolve() in [Path(file).resolve() for file in files]:
            raise InputError(f"{path}: holds the pairs to score; give the result another name")
        if path is not None:
            check_writable(path.parent)
    korsts = "korsts" in (args.data or ["korsts"])
    if korsts and args.sts_dataset_path.name == "KorSTS":
        check_data_set(args.sts_dataset_path.parent, args.download)
    return args


def columns(text: str) -> list[str]:
    """Parse `a,b,score` for argparse, whose error line names the flag."""
    values = text.split(",")
    if len(values) != 3 or not all(values):
        raise argparse.ArgumentTypeError(f"must be three names, of both sentences and the score, not {text}")
    return values


def scale(text: str) -> tuple[float, float]:
    """Parse `0,1` for argparse, whose error line names the flag."""
    ends = several(number(float))(text)
    if len(ends) != 2 or ends[0] > ends[1]:
        raise argparse.ArgumentTypeError(f"must be the lowest and the highest score, such as 0,1, not {text}")
    return tuple(ends)


flags_first(parse_args)

import numpy as np

from kf_deberta.data.pairs import SCALE, Pairs, load_file, load_pairs
from kf_deberta.evaluation.models import load_encoder
from kf_deberta.evaluation.published import COMPARABLE_ROWS
from kf_deberta.evaluation.report import errors_table, one_cell, published_table, report
from kf_deberta.evaluation.results import Record, add_bootstrap, label, write_results
from kf_deberta.evaluation.scoring import check_gold, encode_pairs, pair_similarities, score, transform


def main() -> int:
    """Score, print, save; 0, or 2 when a row has no figures."""
    args = parse_args()
    if args.reproduces and args.reproduces not in (names := [row.hub_name for row in COMPARABLE_ROWS]):
        raise InputError(f"--reproduces: must be one of {', '.join(names)}, not {args.reproduces}")
    if args.published:
        print(published_table())
        return 0

    # 1. the pairs and their gold scores (0..1)
    data = load_data(args)
    about = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    about["versions"] = " ".join(f"{name}=={importlib.metadata.version(name)}" for name in LIBRARIES)

    # 2. every model once; what is done is saved before the next one starts
    results: list[tuple[Record, np.ndarray | None]] = []
    for name in args.model_name_or_path or [DEFAULT_MODEL]:
        results += score_model(name, args, data, about)
        if any(values is not None for _, values in results):
            save(args.output, [record for record, _ in results])
    if all(values is None for _, values in results):
        return INPUT_ERROR_STATUS

    # 3. intervals and paired differences
    for pairs in data:
        enough = args.bootstrap is not None or len(pairs.gold) >= MIN_BOOTSTRAP_ROWS
        if resamples := (RESAMPLES if args.bootstrap is None else args.bootstrap) if enough else 0:
            on_these = [result for result in results if result[0]["blob_id"] == pairs.blob_id]
            add_bootstrap(on_these, pairs.gold, resamples, args.seed)
    records = [record for record, _ in results]
    status = save(args.output, records)

    # 4. the report
    print(report(records, not args.no_published, args.reproduces))
    of = {pairs.blob_id: pairs for pairs in data}
    scored = [(record, values[0], of[record["blob_id"]]) for record, values in results if values is not None]
    for record, cosine, pairs in scored if args.errors else []:
        table = errors_table(args.errors, cosine, pairs.gold, pairs.sentences1, pairs.sentences2, pairs.scale)
        on = f" on {one_cell(pairs.name)}" if len(data) > 1 else ""
        print(f"\nPairs{on} that {one_cell(label(record))} ranks most wrongly by cosine:\n\n{table}")
    if args.plot:
        from kf_deberta.evaluation.scatter import plot  # matplotlib only where it is asked for

        plot(args.plot, scored)
    return status


def load_data(args: argparse.Namespace) -> list[Pairs]:
    """Load every data set that was asked for; InputError where one cannot be scored, before any model is loaded."""
    data = []
    for name in args.data or ["korsts"]:
        if name != "korsts":
            data.append(load_pairs(name, args.columns, args.scale or SCALE))
            continue
        folder = args.sts_dataset_path
        if folder.name == "KorSTS" and not folder.exists():
            ensure_kor_nlu_datasets(folder.parent)
        data.append(load_file(folder / f"sts-{args.split or 'test'}.tsv"))
    for pairs in data:
        check_gold(pairs.gold, pairs.name, pairs.scale)
        if args.bootstrap and len(pairs.gold) < MIN_BOOTSTRAP_ROWS:
            raise InputError(f"{pairs.name}: {len(pairs.gold)} rows; --bootstrap needs {MIN_BOOTSTRAP_ROWS} or more")
    if len({pairs.blob_id for pairs in data}) < len(data):
        raise InputError(f"{', '.join(pairs.name for pairs in data)}: the same data twice; give it once")
    return data


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


def save(paths: list[Path], records: list[Record]) -> int:
    """Write the records to every file of --output; 2 when a record has an error, else 0."""
    for path in paths:
        write_results(path, records)
    return INPUT_ERROR_STATUS if any(record["error"] for record in records) else 0


if __name__ == "__main__":
    run(main)
