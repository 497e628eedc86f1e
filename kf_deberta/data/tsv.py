"""Read tab-separated text exactly, columnar and fast, with the file and line number of everything malformed.

What loads equals a plain reading: split the text at "\\n" (dropping one "\\r" before it), split each line at tabs.
There is no quoting, and no other character ends a line (csv readers also stop at a lone "\\r").
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kf_deberta.cli import InputError

TAB, NEWLINE = ord("\t"), ord("\n")
BLOCK_BYTES = 4 << 20  # bounds the parser's memory; changes no result
SHOWN_PROBLEMS = 5


def read_tsv(path: Path, columns: tuple[str, ...], *, strip: bool = False) -> tuple[pa.Table, dict[int, str]]:
    """Read the named columns of a UTF-8 TSV file whose first line is a header; blank lines are no rows.

    Args:
        path: the file.
        columns: names that the header must hold, in any order; other columns are left out.
        strip: strip every text as str.strip does.

    Returns:
        A table of the well-formed rows in file order, the columns as large_string and "line" (int64, the header is
        line 1), and the malformed lines: {line: what is wrong}.

    Raises:
        InputError: the file cannot be read or is empty, or a column is missing.
    """
    arrays: dict[str, list[pa.Array]] = {name: [] for name in (*columns, "line")}
    problems: dict[int, str] = {}
    try:
        with open(path, "rb") as file:
            header = _parse_header(path, file.readline(), columns)
            next_line = 2
            for block in _blocks_of_lines(file):
                fields, first_fields, line_problems, count = _parse_block(block, len(header))
                problems |= {next_line + i: text for i, text in line_problems.items()}
                good = np.flatnonzero(first_fields >= 0)
                for name in columns:
                    column = fields.take(pa.array(first_fields[good] + header.index(name)))
                    column = pc.utf8_trim_whitespace(column) if strip else pc.ascii_rtrim(column, characters="\t\n")
                    arrays[name].append(column)
                arrays["line"].append(pa.array(next_line + good))
                next_line += count
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the path of a readable TSV file") from error
    types = {name: pa.large_string() for name in columns} | {"line": pa.int64()}
    return pa.table({name: pa.chunked_array(chunks, types[name]) for name, chunks in arrays.items()}), problems


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


def _blocks_of_lines(file) -> Iterator[bytes]:
    """Yield the rest of a binary file in blocks of whole lines that all end with a bare newline."""
    while block := file.read(BLOCK_BYTES):
        block += file.readline()
        if not block.endswith(b"\n"):
            block += b"\n"
        yield block.replace(b"\r\n", b"\n")


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


def _parse_block(block: bytes, width: int) -> tuple[pa.Array, np.ndarray, dict[int, str], int]:
    """Split a block of lines into one flat array of fields, each with its separator still on it.

    Returns the fields, for each line the index of its first field (-1 for a line that is no row of `width` fields),
    the malformed lines by their index in the block, and the number of lines.
    """
    raw = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero((raw == TAB) | (raw == NEWLINE))
    last_fields = np.flatnonzero(raw[ends] == NEWLINE)
    first_fields = np.concatenate(([0], last_fields[:-1] + 1))
    line_ends = ends[last_fields]
    line_starts = np.concatenate(([0], line_ends[:-1] + 1))
    widths = last_fields - first_fields + 1
    blank = line_ends == line_starts

    offsets = np.concatenate(([0], ends + 1))
    fields = pa.LargeStringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(block))
    problems = {}
    try:
        fields.validate(full=True)
    except pa.ArrowInvalid:  # find the lines one by one, now that speed is no matter
        for i, (start, end) in enumerate(zip(line_starts, line_ends, strict=True)):
            try:
                block[start:end].decode()
            except UnicodeDecodeError as error:
                problems[i] = f"not UTF-8 ({error.reason})"
    if b"\0" in block:
        for i in np.searchsorted(line_ends, np.flatnonzero(raw == 0)):
            problems.setdefault(int(i), "a NUL byte in the text")
    for i in np.flatnonzero((widths != width) & ~blank):
        problems.setdefault(int(i), f"{widths[i]} columns, the header has {width}")
    is_row = ~blank
    is_row[list(problems)] = False
    return fields, np.where(is_row, first_fields, -1), problems, len(line_ends)
