"""Read tab-separated text exactly, with the file and line number of everything malformed.

What loads equals a plain reading: split the text at "\\n" (dropping one "\\r" before it), split each line at tabs.
There is no quoting, and no other character ends a line (csv readers also stop at a lone "\\r").
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from kf_deberta.cli import InputError, check_input_file
from kf_deberta.data.text import compose_hangul, say_composed

CHUNK_ROWS = 100_000  # bounds the memory for Python's strings; changes no result
SHOWN_PROBLEMS = 5


def read_tsv(path: Path, columns: tuple[str, ...], *, strip: bool = False) -> tuple[pa.Table, dict[int, str]]:
    """Read the named columns of a UTF-8 TSV file whose first line is a header; blank lines are no rows.

    Args:
        path: the file.
        columns: names that the header must hold, in any order; other columns are left out.
        strip: strip every text as str.strip does.

    Returns:
        A table of the well-formed rows in file order, the columns as large_string and "line" (int64, the header is
        line 1), and the malformed lines: {line: what is wrong}. Decomposed Hangul is composed.

    Raises:
        InputError: the file cannot be read or is empty, or a column is missing.
    """
    check_input_file(path)
    chunks, rows, lines, problems, composed = [], [], [], {}, 0
    with open(path, "rb") as file:
        header = _parse_header(path, file.readline(), columns)
        for line, raw in enumerate(file, start=2):
            raw = raw.removesuffix(b"\n").removesuffix(b"\r")
            try:
                fields = raw.decode().split("\t")
            except UnicodeDecodeError as error:
                problems[line] = f"not UTF-8 ({error.reason})"
                continue
            if not raw:
                continue
            if b"\0" in raw:
                problems[line] = "a NUL byte in the text"
            elif len(fields) != len(header):
                problems[line] = f"{len(fields)} columns, the header has {len(header)}"
            else:
                if b"\xe1" in raw:  # the first byte of every conjoining jamo
                    as_read, fields = fields, list(map(compose_hangul, fields))
                    composed += sum(map(str.__ne__, as_read, fields))
                rows.append(fields)
                lines.append(line)
                if len(rows) == CHUNK_ROWS:
                    chunks.append(_table(rows, lines, header, columns))
                    rows, lines = [], []
    say_composed(composed, path)
    table = pa.concat_tables([*chunks, _table(rows, lines, header, columns)])
    if strip:
        for name in columns:
            table = table.set_column(table.column_names.index(name), name, pc.utf8_trim_whitespace(table[name]))
    return table, problems


def _table(rows: list[list[str]], lines: list[int], header: list[str], columns: tuple[str, ...]) -> pa.Table:
    arrays = {}
    for name in columns:
        index = header.index(name)
        arrays[name] = pa.array([row[index] for row in rows], pa.large_string())
    return pa.table(arrays | {"line": pa.array(lines, pa.int64())})


def raise_if_malformed(path: Path, problems: dict[int, str]) -> None:
    """Raise one InputError for {line: what is wrong}: the first lines in full, and how many there are in all."""
    if not problems:
        return
    first, *others = [f"{path}:{line}: {problems[line]}" for line in sorted(problems)[:SHOWN_PROBLEMS]]
    total, them = ("1 malformed row", "it") if len(problems) == 1 else (f"{len(problems):,} malformed rows", "them")
    remedy = f"({total} in this file; correct or remove {them}, or use the official file)"
    raise InputError("\n  ".join((f"{first} {remedy}", *others)))


def shorten(text: str, length: int = 40) -> str:
    """Quote text for an error message, on one line, cut to `length` characters."""
    return repr(text if len(text) <= length else text[: length - 1] + "…")


def _parse_header(path: Path, line: bytes, columns: tuple[str, ...]) -> list[str]:
    if not line:
        raise InputError(f"{path}: empty file; give a TSV file with the columns {', '.join(columns)}")
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:1: not UTF-8 ({error.reason}); save the file as UTF-8 text") from error
    header = text.removesuffix("\n").removesuffix("\r").split("\t")
    for name in columns:
        if header.count(name) != 1:
            wrong = "no column" if name not in header else "more than one column"
            raise InputError(
                f"{path}:1: {wrong} {name} in the header {shorten(text, 60)}; "
                f"the first line must name the columns {', '.join(columns)}, separated by tabs"
            )
    return header
