"""Read text files exactly: rows of a table with the file and line of everything malformed, and plain sentences.

A TSV file is UTF-8 with a header and no quoting: a `"` is text, and only "\\n" or "\\r\\n" ends a line.
"""

import functools
import operator
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from kf_deberta.errors import InputError, say

PAIR_COLUMNS = ("sentence1", "sentence2", "score")
SCALE = (0.0, 5.0)
NOT_UTF8 = "not UTF-8, perhaps CP949; save the file as UTF-8 text"
# a syllable or a leading consonant, and the vowel or final consonant that belongs to it
_DECOMPOSED = re.compile("[\u1100-\u1112\uac00-\ud7a3][\u1161-\u1175\u11a8-\u11c2]+")
_say_once = functools.cache(say)


def compose_hangul(text: str, source: object) -> str:
    """Compose decomposed syllables, as macOS writes them and tokenizers do not know; said once for each `source`."""
    composed = _DECOMPOSED.sub(lambda match: unicodedata.normalize("NFC", match[0]), text)
    if composed != text:
        _say_once(f"{source}: decomposed Hangul (NFD) is composed")
    return composed


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file; InputError names the line that is not UTF-8."""
    content = path.read_bytes()
    try:
        return compose_hangul(content.decode("utf-8-sig"), path)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: {NOT_UTF8}") from error


def read_sentences(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file that are not blank, stripped; InputError if there is none."""
    sentences = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if not sentences:
        raise InputError(f"{path}: no sentence in it; write one per line")
    return sentences


def read_rows(path: Path, columns: Sequence[str], problems: dict[int, str]) -> Iterator[tuple]:
    """Yield the line number and the values of `columns` of every row of a TSV file; blank lines are no rows.

    Malformed rows are added to `problems`, {line: what is wrong}. InputError if the header lacks one of `columns`.
    """

    def split() -> Iterator[tuple[int, list[str]]]:
        with open(path, "rb") as file:
            yield 1, file.readline().decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")
            for line, raw in enumerate(file, start=2):
                try:
                    text = raw.removesuffix(b"\n").removesuffix(b"\r").decode()
                except UnicodeDecodeError:
                    problems[line] = NOT_UTF8
                    continue
                if b"\xe1" in raw:  # the first byte of every conjoining jamo
                    text = compose_hangul(text, path)
                if text:
                    yield line, text.split("\t")

    return select(path, split(), columns, problems)


def select(path: Path, rows: Iterator, columns: Sequence[str], problems: dict[int, str]) -> Iterator[tuple]:
    """Do what `read_rows` does with the numbered rows of any file, of which the first is the header."""
    line, header = next(rows, (1, []))
    for name in columns:
        if header.count(name) != 1:
            wrong = f"{'more than one' if name in header else 'no'} column {name} in {shorten(', '.join(header), 80)}"
            raise InputError(f"{path}:{line}: {wrong}; give a file with the columns {', '.join(columns)}")
    pick = operator.itemgetter(*map(header.index, columns))
    for line, fields in rows:
        if len(fields) == len(header):
            yield line, pick(fields)
        else:
            problems[line] = f"{len(fields)} columns, the header has {len(header)}"


def check_pairs(source: object, rows: Iterable, problems: dict[int, str], scale: Sequence[float] = SCALE) -> dict:
    """Return {column: values} of pairs, `scale` made 0 to 1; InputError if one is malformed or there is none."""
    (low, high), pairs = scale, []
    for line, (first, second, score) in rows:
        text = str(score)
        try:
            value = float(text) if text.isascii() and "_" not in text else np.nan
        except ValueError:
            value = np.nan
        if not min(scale) <= value <= max(scale):  # NaN too
            problems[line] = f"score {shorten(text)} is not a number from {min(scale):g} to {max(scale):g}"
        for name, sentence in (("second", second), ("first", first)):
            if not isinstance(sentence, str) or not sentence.strip():
                problems[line] = f"the {name} sentence is empty or no text"
        pairs.append((first, second, (value - low) / (high - low)))
    raise_if_malformed(source, problems)
    if not pairs:
        raise InputError(f"{source}: no rows; give a file with sentence pairs")
    sentences1, sentences2, scores = map(list, zip(*pairs, strict=True))
    return {"sentence1": sentences1, "sentence2": sentences2, "score": np.array(scores)}


def raise_if_malformed(source: object, problems: dict[int, str]) -> None:
    """Raise InputError for {line: what is wrong}, if there is any: the first five lines, and how many there are."""
    if problems:
        first, *others = [f"{source}:{line}: {problems[line]}" for line in sorted(problems)[:5]]
        remedy = f"({len(problems):,} malformed row{'s' * (len(problems) > 1)}; correct or remove every such row)"
        raise InputError("\n  ".join((f"{first} {remedy}", *others)))


def shorten(text: str, length: int = 40) -> str:
    """Quote text for an error message, on one line of `length` characters."""
    return repr(text if len(text) <= length else text[: length - 1] + "…")
