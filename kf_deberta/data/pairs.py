"""Sentence pairs with gold scores to evaluate on: files of five formats, and two data sets of the hub."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet

from kf_deberta.data.official import git_blob_id, not_official
from kf_deberta.data.tsv import PAIR_COLUMNS, SCALE, check_pairs, compose_hangul, read_rows, read_text, select
from kf_deberta.errors import InputError, one_line

FORMATS = (".tsv", ".csv", ".json", ".jsonl", ".parquet")
# path, name, split and commit, as in mteb 2.26.24's tasks KLUE-STS and STS17, and the column of the score
HUB = {
    "klue-sts": ("klue/klue", "sts", "validation", "349481ec73fff722f88e0453ca05c77a447d967c", "labels.real-label"),
    "sts17": ("mteb/sts17-crosslingual-sts", "ko-ko", "test", "faeb762787bd10488a50c8b5be4a3b82e411949c", "score"),
}


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs and what identifies them."""

    name: str  # the file, with its columns if they were named, or the data set on the hub
    sentences1: list[str]
    sentences2: list[str]
    gold: np.ndarray  # (pairs,) gold scores in 0..1
    scale: tuple[float, float] = SCALE  # the scores of the data that became 0 and 1
    blob_id: str | None = None  # git's id of the file
    revision: str | None = None  # commit on the hub
    note: str = ""  # how the file differs from the official one of its name


def load_pairs(name: str, columns: Sequence[str] | None = None, scale: tuple[float, float] = SCALE) -> Pairs:
    """Load sentence pairs from a file, or by the name of a data set on the hub.

    `columns` name the two sentences and the score, `a.b` is field b of the object a; `scale` has the scores of unlike
    and of equal sentences. InputError if the data cannot be read, or have malformed rows (the first five are named).
    """
    if name in HUB:
        return _load_from_hub(name)
    path, wanted, problems = Path(name), columns or PAIR_COLUMNS, {}
    if path.suffix not in FORMATS:
        raise InputError(f"{name}: no such data; give korsts, {', '.join(HUB)}, or a file ({', '.join(FORMATS)})")
    if path.suffix == ".tsv":
        rows = read_rows(path, wanted, problems)
    else:
        rows = select(path, _read_csv(path) if path.suffix == ".csv" else _read_records(path), wanted, problems)
    data = check_pairs(path, rows, problems, scale)
    name += f" ({', '.join(columns)})" if columns else ""
    return Pairs(name, *data.values(), scale, git_blob_id(path), note=not_official(path, len(data["score"])))


def _read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        yield from ((reader.line_num, fields) for fields in reader if fields)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV ({error}); correct the file") from error


def _read_records(path: Path) -> Iterator[tuple[int, list]]:
    try:
        if path.suffix == ".parquet":
            records = dict(enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1))
        elif (text := read_text(path)).lstrip().startswith("["):
            records = dict(enumerate(json.loads(text), start=1))
        else:
            records = {line: json.loads(row) for line, row in enumerate(text.split("\n"), start=1) if row.strip()}
        table = pandas.json_normalize(list(records.values()))
    except (ValueError, TypeError, AttributeError, NotImplementedError, RecursionError) as error:
        kind = "Parquet" if path.suffix == ".parquet" else "a list of JSON objects or one object per line"
        raise InputError(f"{path}: not {kind} ({one_line(error)}); correct the file") from error
    yield 1, list(table.columns)
    for number, row in zip(records, table.values.tolist(), strict=True):
        yield number, [compose_hangul(value, path) if isinstance(value, str) else value for value in row]


def _load_from_hub(name: str) -> Pairs:
    import datasets  # a second to import, which --help does not need

    path, subset, split, revision, score = HUB[name]
    try:
        table = datasets.load_dataset(path=path, name=subset, split=split, revision=revision).flatten()
    except Exception as error:  # the library raises a type of its own for each way to fail
        reason = f"{path} is not cached and cannot be downloaded ({one_line(error)}); give a file to --data"
        raise InputError(f"{name}: {reason}") from error
    rows = enumerate(zip(table["sentence1"], table["sentence2"], table[score], strict=True), start=1)
    return Pairs(name, *check_pairs(path, rows, {}).values(), revision=revision)
