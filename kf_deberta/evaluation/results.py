"""Benchmark results as records: one flat dict for each row of a table, written as .json and .csv and read from .json.

A record holds `model`, `revision` (the hub commit, or the full local path), `dimensions` (None: all), `precision`,
`error` (None, or why there are no figures), `data`, `rows`, `blob_id` (git's id of the data), `data_revision` (the
commit of data from the hub), `note` (how the data differs from the official one), `date`, library `versions`,
`settings`, `sentences`, `seconds` of encoding and the eight figures of scoring.FIGURES, -1..1 in full precision. After
a bootstrap also <figure>_low and <figure>_high and, where there is another row on the same data to compare with,
`compared_with` (the first row's label) and <figure>_difference, _difference_low, _difference_high and _p.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kf_deberta.cli import InputError, one_line, write_atomically
from kf_deberta.evaluation import bootstrap
from kf_deberta.evaluation.scoring import FIGURES

Record = dict[str, Any]
TEXT, COUNT, FIGURE = "text", "a whole number", "a number in -2..2"  # a difference of two correlations reaches 2
REQUIRED = {"model": TEXT, "precision": TEXT, "data": TEXT, "blob_id": TEXT, "rows": COUNT}
NULLABLE = {"dimensions": COUNT, "error": TEXT}  # there, but null where they say nothing
OPTIONAL = {
    "settings": TEXT,
    "note": TEXT,
    "data_revision": TEXT,
    "compared_with": TEXT,
    "resamples": COUNT,
    "seed": COUNT,
}


def label(record: Record) -> str:
    """Name a record's row: the model as the user gave it, and how its embeddings were made, cut or quantized."""
    settings = (record.get("settings") or "").split(", ")
    details = [word for word in settings if word in ("bfloat16", "normalized", "cls pooling")]
    details += [f"first {record['dimensions']} dimensions"] if record["dimensions"] else []
    details += [record["precision"]] if record["precision"] != "float32" else []
    return record["model"] + (f" ({', '.join(details)})" if details else "")


def write_results(path: Path, records: list[Record]) -> None:
    """Write records as .json or .csv by the file's suffix; an existing file is replaced only by a complete one."""
    if path.suffix == ".csv":
        columns = list(dict.fromkeys(name for record in records for name in record))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        content = text.getvalue()
    else:
        content = json.dumps(records, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    with write_atomically(path) as temporary:
        # a name that is not UTF-8 holds lone surrogates; escaped, they are still valid JSON
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")


def read_results(paths: list[Path]) -> list[Record]:
    """Read the records of several .json files that write_results wrote, in order.

    Raises:
        InputError: a file is unreadable or no result file, or two files are about different data.
    """
    records: list[Record] = []
    for path in paths:
        try:
            rows = json.loads(path.read_text(encoding="utf-8-sig"))  # an editor may have added a byte order mark
            if not isinstance(rows, list) or not rows:
                raise ValueError("not a list of result records")
            for number, row in enumerate(rows, start=1):
                check_record(row, f"record {number}")
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise InputError(
                f"{path}: no readable results ({reason}); give .json files that --output wrote"
            ) from error
        records += rows
        known = {record["blob_id"] for record in records[: len(records) - len(rows)] or rows}
        for row in rows:
            if row["blob_id"] not in known:
                raise InputError(
                    f"{path}: scored on {row['data']}, but {paths[0]} on {records[0]['data']} "
                    f"(git blobs {row['blob_id'][:7]} and {records[0]['blob_id'][:7]}); figures on different data "
                    "do not compare: print them one by one"
                )
    return records


def check_record(record: object, name: str) -> None:
    """Raise ValueError, which names the key, where a record lacks what a report needs or holds another type."""
    if not isinstance(record, dict):
        raise ValueError(f"{name} is not an object")
    needed = dict(REQUIRED)
    if not record.get("error"):
        needed |= dict.fromkeys(FIGURES, FIGURE)
    if record.get("resamples"):
        needed |= {"seed": COUNT} | {f"{figure}_{end}": FIGURE for figure in FIGURES for end in ("low", "high")}
    if record.get("compared_with"):
        ends = ("difference", "difference_low", "difference_high", "p")
        needed |= {f"{figure}_{end}": FIGURE for figure in FIGURES for end in ends}
    if missing := [key for key in (*needed, *NULLABLE) if key not in record]:
        raise ValueError(f"{name} has no {missing[0]}")
    kinds = needed | {key: kind for key, kind in (NULLABLE | OPTIONAL).items() if record.get(key) is not None}
    fits = {
        TEXT: lambda value: isinstance(value, str) and value != "",
        COUNT: lambda value: type(value) is int and 0 <= value < 2**64,
        FIGURE: lambda value: type(value) in (int, float) and -2 <= value <= 2,
    }
    for key, kind in kinds.items():
        if not fits[kind](record[key]):
            raise ValueError(f"{name}: {key} is {repr(record[key])[:40]}, not {kind}")


def by_data(records: Sequence[Record]) -> list[list[Record]]:
    """Group records by what they were scored on, in the order in which the data comes."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["blob_id"], []).append(record)
    return list(groups.values())


def add_bootstrap(
    results: Sequence[tuple[Record, np.ndarray | None]], gold: np.ndarray, resamples: int, seed: int
) -> None:
    """Add 95% intervals to each record and, to all but the first, the paired difference to the first.

    Args:
        results: records on the same data, each with its similarities, (4, pairs); None for one with an error.
        gold: (pairs,) gold scores.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.
    """
    first, first_samples = None, np.empty(0)
    for record, values in results:
        if values is None:
            continue
        samples = bootstrap.resampled_figures(values, gold, resamples, seed)
        record |= {"resamples": resamples, "seed": seed}
        for name, low, high in zip(FIGURES, *bootstrap.interval(samples).tolist(), strict=True):
            record |= {f"{name}_low": low, f"{name}_high": high}
        if first is None:
            first, first_samples = record, samples
            continue
        record["compared_with"] = label(first)
        differences = samples - first_samples
        lows, highs = bootstrap.interval(differences).tolist()
        for name, low, high, p in zip(FIGURES, lows, highs, bootstrap.p_value(differences).tolist(), strict=True):
            record |= {
                f"{name}_difference": record[name] - first[name],
                f"{name}_difference_low": low,
                f"{name}_difference_high": high,
                f"{name}_p": p,
            }
