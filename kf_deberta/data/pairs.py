"""Sentence pairs with gold scores, from files of five formats or from the hub; whatever is malformed is located."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet
from huggingface_hub.utils.sha import git_hash

from kf_deberta.cli import HUB_TIMEOUT_SECONDS, InputError, check_input_file, one_line
from kf_deberta.data.official import KOR_STS_ROWS, git_blob_id
from kf_deberta.data.text import compose_hangul, say_composed
from kf_deberta.data.tsv import raise_if_malformed, read_tsv, shorten

FORMATS = (".tsv", ".csv", ".json", ".jsonl", ".parquet")
COLUMNS = ("sentence1", "sentence2", "score")
KLUE_COLUMNS = ("sentence1", "sentence2", "labels.real-label")
SCALE = (0.0, 5.0)
ROWS = KOR_STS_ROWS | {"klue-sts-v1.1_train.json": 11668, "klue-sts-v1.1_dev.json": 519}
# KorSTS train, dev and test read with CSV quoting, and de-duplicated
LOSSY_ROWS = {5703: 5749, 1471: 1500, 5691: 5749, 1465: 1500, 1376: 1379}


@dataclass(frozen=True)
class HubData:
    """A data set on the hub at a fixed commit, and how many pairs it holds there."""

    repository: str
    config: str
    split: str
    revision: str
    columns: tuple[str, str, str]
    rows: int


# commits and numbers of rows as in mteb 2.26.24's tasks KLUE-STS and STS17
KLUE = ("klue/klue", "sts", "validation", "349481ec73fff722f88e0453ca05c77a447d967c")
STS17 = ("mteb/sts17-crosslingual-sts", "ko-ko", "test", "faeb762787bd10488a50c8b5be4a3b82e411949c")
HUB = {"klue-sts": HubData(*KLUE, KLUE_COLUMNS, 519), "sts17": HubData(*STS17, COLUMNS, 2846)}


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs and what identifies them.

    Attributes:
        name: the file, or the name on the hub.
        sentences1: first sentences, as they are.
        sentences2: second sentences.
        gold: (pairs,) gold scores in 0..1.
        scale: lowest and highest score of the file.
        blob_id: git's id of the file; for data from the hub, of its pairs as lines of JSON.
        revision: commit on the hub, None for a file.
        note: how this copy differs from the official one; empty where it does not.
    """

    name: str
    sentences1: list[str]
    sentences2: list[str]
    gold: np.ndarray
    scale: tuple[float, float]
    blob_id: str
    revision: str | None = None
    note: str = ""


def load_pairs(name: str, columns: Sequence[str] | None = None, scale: tuple[float, float] = SCALE) -> Pairs:
    """Load sentence pairs by the name of a data set on the hub, from a file, or from the one such file of a folder.

    Args:
        name: a key of HUB, or the path of a .tsv, .csv, .json, .jsonl or .parquet file, or of a folder.
        columns: the two sentences and the score; dots lead into objects. None: sentence1, sentence2 and score or, in
            KLUE's files, labels.real-label.
        scale: lowest and highest score.

    Raises:
        InputError: the data is not there, cannot be read or has malformed rows (the first five are named).
    """
    path = Path(name)
    if name in HUB:
        return load_from_hub(name)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in FORMATS)
        if len(files) != 1:
            found = ", ".join(file.name for file in files) or "none"
            raise InputError(f"{path}: found {found}; give a folder that holds one data file, or the file itself")
        path = files[0]
    elif not path.is_file():
        raise InputError(f"{path}: no such file or data set; give a file, or one of korsts, {', '.join(HUB)}")
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: the name must end with {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    return load_file(path, path.suffix, columns, scale)


def load_file(
    path: Path, form: str = ".tsv", columns: Sequence[str] | None = None, scale: tuple[float, float] = SCALE
) -> Pairs:
    """Load sentence pairs from a file of the format `form`; arguments and errors as for load_pairs."""
    if form == ".tsv":
        columns = columns or COLUMNS
        table, problems = read_tsv(path, tuple(columns))
        texts = zip(*(table[name].to_pylist() for name in columns), strict=True)
        numbered = zip(table["line"].to_pylist(), texts, strict=True)
    else:
        records, problems = read_records(path, form), {}
        first = records[0][1] if records else None
        if columns is None:
            columns = KLUE_COLUMNS if isinstance(first, dict) and "labels" in first else COLUMNS
        for name in columns if records else ():
            if pick(first, name) is None:
                raise InputError(f"{path}: no {name} in the first row; name both sentences and the score by --columns")
        numbered = ((number, [pick(record, name) for name in columns]) for number, record in records)
    where = f"{path} record" if form in (".json", ".parquet") else path
    sentences1, sentences2, gold = check_rows(where, numbered, columns, problems, scale)
    note = ""
    if path.name in ROWS:
        note = lossy(len(gold), ROWS[path.name])
    elif len(gold) in LOSSY_ROWS and scale == SCALE:
        note = f"{len(gold):,} rows, as in copies of KorSTS that lost some of its {LOSSY_ROWS[len(gold)]:,}."
    return Pairs(str(path), sentences1, sentences2, gold, scale, git_blob_id(path), note=note)


def load_from_hub(name: str) -> Pairs:
    """Load a data set of HUB from the hub or its cache, at its fixed commit."""
    import datasets
    from huggingface_hub import HfApi

    data, reason = HUB[name], None
    try:
        HfApi().dataset_info(data.repository, revision=data.revision, timeout=HUB_TIMEOUT_SECONDS)
    except Exception as error:
        reason = one_line(error)
        datasets.config.HF_HUB_OFFLINE = True  # else the library tries for half a minute before it reads its cache
    try:
        table = datasets.load_dataset(data.repository, data.config, split=data.split, revision=data.revision)
    except Exception as error:  # the library raises a type of its own for each way to fail
        raise InputError(
            f"{name}: {data.repository} is neither cached nor to be had from the hub ({reason or one_line(error)}); "
            f"give its file to --data: {', '.join(FORMATS)}"
        ) from error
    numbered = ((number, [pick(row, column) for column in data.columns]) for number, row in enumerate(table, start=1))
    sentences1, sentences2, gold = check_rows(f"{data.repository} record", numbered, data.columns, {}, SCALE)
    pairs = zip(sentences1, sentences2, gold.tolist(), strict=True)
    text = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs).encode()
    return Pairs(name, sentences1, sentences2, gold, SCALE, git_hash(text), data.revision, lossy(len(gold), data.rows))


def lossy(rows: int, official: int) -> str:
    """Say so where a copy has another number of rows than the official data."""
    reasons = "Copies lose rows to readers that take quotes for quoting, or to de-duplication."
    text = (
        f"{rows:,} rows, the official data {official:,}: scores on this copy are not comparable with others. {reasons}"
    )
    return "" if rows == official else text


def read_records(path: Path, form: str) -> list[tuple[int, object]]:
    """Read a .csv, .json, .jsonl or .parquet file as records, each with the number of its line or record."""
    check_input_file(path)
    try:
        if form == ".parquet":
            return list(enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1))
        text = path.read_text(encoding="utf-8-sig")
        if form == ".csv":
            reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            return [(reader.line_num, row) for row in reader]
        if form == ".jsonl":
            lines = enumerate(text.split("\n"), start=1)
            return [(number, json.loads(line)) for number, line in lines if line.strip()]
        return list(enumerate(json.loads(text), start=1))
    except (OSError, ValueError, TypeError, RecursionError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{path}: cannot be read as {form} ({reason}); give a readable {form} file") from error


def pick(record: object, name: str) -> object:
    """Return the value of a column in a record, None where it has none; `a.b` is b of the object a."""
    for part in (name,) if isinstance(record, dict) and name in record else name.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    return record


def check_rows(
    where: Path | str,
    numbered: Iterable[tuple[int, Sequence]],
    columns: Sequence[str],
    problems: dict[int, str],
    scale: tuple[float, float],
) -> tuple[list[str], list[str], np.ndarray]:
    """Return both sentences of all rows, and their scores in 0..1; InputError locates every malformed row."""
    low, high = scale
    rows, composed = [], 0
    for number, row in numbered:
        first, second, score = (compose_hangul(value) if isinstance(value, str) else value for value in row)
        composed += (first != row[0]) + (second != row[1])
        for name, text in ((columns[1], second), (columns[0], first)):
            if not isinstance(text, str):
                problems[number] = f"{name} is not text"
            elif not text.strip():
                problems[number] = f"{name} is empty"
            elif text != text.encode("utf-8", "ignore").decode():
                problems[number] = f"{name} holds half a character (a lone surrogate)"
        try:
            value = float("no" if score is None or isinstance(score, bool) else score)
        except (TypeError, ValueError, OverflowError):
            problems[number] = f"score {shorten(str(score))} is not a number"
            continue
        if not low <= value <= high:  # NaN too
            problems[number] = f"score {shorten(str(score))} is outside {low:g}..{high:g}"
        rows.append((first, second, (value - low) / (high - low)))
    say_composed(composed, where)
    raise_if_malformed(where, problems)
    if not rows:
        raise InputError(f"{where}:1: no rows after the header; give a file with sentence pairs")
    sentences1, sentences2, gold = map(list, zip(*rows, strict=True))
    return sentences1, sentences2, np.array(gold)
