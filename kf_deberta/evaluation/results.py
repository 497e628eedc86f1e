"""Benchmark results as records: one flat dict for each row of a table, written as .json and .csv.

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

from kf_deberta.cli import write_atomically
from kf_deberta.evaluation import bootstrap
from kf_deberta.evaluation.scoring import FIGURES

Record = dict[str, Any]


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
