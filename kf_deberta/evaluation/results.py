"""Benchmark results as records: one flat dict for each row of the table, kept in JSON or CSV files.

A record holds `model`, `revision` (the hub commit, or the full local path), `dimensions` (None: all), `precision`,
`error` (None, or why there are no figures), `data`, `rows` and `blob_id` (the git blob id of the data file), `date`,
library `versions`, `settings`, `sentences`, `seconds` of encoding and the eight figures of scoring.FIGURES, -1..1 in
full precision. After a bootstrap also <figure>_low and <figure>_high and, where there is another row to compare with,
`compared_with` (the first row's label) and <figure>_difference, _difference_low, _difference_high and _p.
"""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from kf_deberta.cli import InputError, write_atomically
from kf_deberta.evaluation import bootstrap
from kf_deberta.evaluation.scoring import FIGURES

Record = dict[str, Any]
TEXTS = {"model", "revision", "precision", "error", "data", "blob_id", "date", "versions", "settings", "compared_with"}
COUNTS = {"dimensions", "rows", "sentences", "resamples", "seed"}
REQUIRED = ("model", "dimensions", "precision", "error", "data", "rows", "blob_id")
FORMATS = (".json", ".csv")


def label(record: Record) -> str:
    """Name a record's row: the model as the user gave it, and how its embeddings were made, cut or quantised."""
    details = ["bfloat16"] if "bfloat16" in (record.get("settings") or "") else []
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
        temporary.write_text(content, encoding="utf-8")


def read_results(paths: list[Path]) -> list[Record]:
    """Read the records of several files that write_results wrote, in order.

    Raises:
        InputError: a file is unreadable or no result file, or two files are about different data.
    """
    records: list[Record] = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
            if path.suffix == ".csv":
                rows = [
                    {name: parse_cell(name, cell) for name, cell in row.items()}
                    for row in csv.DictReader(io.StringIO(text))
                ]
            else:
                rows = json.loads(text)
            if not rows or any(not is_record(row) for row in rows):
                raise ValueError("not a list of result records")
        except (OSError, ValueError, TypeError, AttributeError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise InputError(f"{path}: no readable results ({reason}); give files that --output wrote") from error
        records += rows
        for row in rows:
            if row["blob_id"] != records[0]["blob_id"]:
                raise InputError(
                    f"{path}: scored on {row['data']}, but {paths[0]} on {records[0]['data']} "
                    f"(git blobs {row['blob_id'][:7]} and {records[0]['blob_id'][:7]}); figures on different data "
                    "do not compare: print them one by one"
                )
    return records


def parse_cell(name: str, cell: str) -> str | float | int | None:
    """Undo what CSV does to a value: an empty cell is None, and columns outside TEXTS hold numbers."""
    if not cell or name in TEXTS:
        return cell or None
    number = float(cell)
    return int(number) if name in COUNTS else number


def is_record(row: Record) -> bool:
    """Tell whether `row` has what a table needs: the REQUIRED fields, and finite figures or an error."""
    if any(name not in row for name in REQUIRED) or not row["model"] or not row["blob_id"]:
        return False
    texts = [row[name] for name in ("model", "precision", "data", "blob_id")]
    if not all(isinstance(text, str) for text in texts) or not isinstance(row["rows"], int):
        return False
    needed = [f"{name}_{end}" for name in FIGURES for end in ("low", "high")] if row.get("resamples") else []
    if row.get("compared_with"):
        ends = ("difference", "difference_low", "difference_high", "p")
        needed += [f"{name}_{end}" for name in FIGURES for end in ends]
    if any(not isinstance(row.get(name), int | float) for name in needed):
        return False
    figures = [row.get(name) for name in FIGURES]
    return bool(row["error"]) or all(isinstance(value, int | float) and math.isfinite(value) for value in figures)


def add_bootstrap(
    records: list[Record], similarities: list[np.ndarray | None], gold: np.ndarray, resamples: int, seed: int
) -> None:
    """Add 95% intervals to each record and, to all but the first, the paired difference to the first.

    Args:
        records: one for each row; those with an error are passed over.
        similarities: (4, pairs) for each record, None for one with an error.
        gold: (pairs,) gold scores.
        resamples: number of bootstrap resamples.
        seed: seed of the resamples.
    """
    first, first_samples = None, np.empty(0)
    for record, values in zip(records, similarities, strict=True):
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
