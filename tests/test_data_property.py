"""Random files load to exactly the rows of a plain reading, or to an error that names exactly the malformed lines."""

import re
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_kor_nli import as_tuples, check_triplets, plain_partners

from data_util import LABELS, load_kor_nli, load_kor_sts
from kf_deberta.cli import InputError
from kf_deberta.data import tsv

TRICKY = [
    "\t",
    "\n",
    "\r",
    "\r\n",
    '"',
    "'",
    ",",
    " ",
    "\0",
    "\x0b",
    "\x1c",
    "\x85",
    "\u2028",
    "\u3000",
    "\ufeff",
    "가",
    "a",
]
text = st.lists(st.sampled_from([token for token in TRICKY if token not in "\t\r\n\0"]) | st.characters(
    exclude_categories=["Cs"], exclude_characters="\t\n\0"), max_size=5).map("".join)  # fmt: skip
junk = st.lists(st.sampled_from([*TRICKY, "1", "neutral"]), max_size=8).map("".join)
scores = st.sampled_from(["0", "5", "2.500", " 1 ", "1e-1", "-0"] * 3 + ["5.1", "nan", "x", ""])
blocks = st.sampled_from([1, 7, 64, 1 << 20])


def file_of(header, last_cells):
    """Files of mostly well-formed rows (last column from `last_cells`), with junk between, and now and then bytes."""
    row = st.tuples(st.just("x") | text.map("x".__add__), text.map("y".__add__), last_cells).map("\t".join)
    line = st.one_of(row, row, row, junk).map(str.encode) | st.binary(max_size=6)
    lines = st.lists(st.one_of(row.map(str.encode), row.map(str.encode), line), max_size=6)
    ends = st.sampled_from([b"\n", b"\r\n"])
    start = st.sampled_from([b"", b"\xef\xbb\xbf"])
    parts = st.tuples(start, ends, lines, st.booleans())
    return parts.map(lambda p: p[0] + p[1].join([header.encode(), *p[2]]) + (p[1] if p[3] else b""))


def plain_rows(content, is_valid):
    """Split at newlines and tabs as one would by hand: (well-formed rows, numbers of the malformed lines)."""
    rows, malformed = [], []
    for number, line in enumerate(content.split(b"\n"), start=1):
        line = line.removesuffix(b"\r")
        if number == 1 or not line:
            continue
        try:
            row = line.decode().split("\t")
        except UnicodeDecodeError:
            row = []
        if len(row) == 3 and "\0" not in "".join(row) and is_valid(row):
            rows.append(row)
        else:
            malformed.append(number)
    return rows, malformed


def check_located(error, path, malformed):
    message = str(error.value)
    found = [int(number) for number in re.findall(re.escape(str(path)) + r":(\d+): ", message)]
    assert found == malformed[:5]
    assert f"({len(malformed)} malformed row{'s' * (len(malformed) > 1)} in this file" in message


def is_pair(row):
    try:
        return bool(row[0].strip() and row[1].strip()) and 0 <= float(row[2]) <= 5
    except ValueError:
        return False


@settings(max_examples=300, deadline=None)
@given(content=file_of("sentence1\tsentence2\tscore", scores), block=blocks)
def test_kor_sts_equals_a_plain_reading(tmp_path_factory, content, block):
    path = tmp_path_factory.getbasetemp() / "random-sts.tsv"
    path.write_bytes(content)
    rows, malformed = plain_rows(content, is_pair)
    with mock.patch.object(tsv, "CHUNK_ROWS", block):
        if malformed:
            with pytest.raises(InputError) as error:
                load_kor_sts(path)
            check_located(error, path, malformed)
        elif rows:
            data = load_kor_sts(path)
            loaded = list(zip(data["sentence1"], data["sentence2"], data["score"], strict=True))
            assert loaded == [(a, b, float(score) / 5) for a, b, score in rows]
        else:
            with pytest.raises(InputError, match="no rows"):
                load_kor_sts(path)


@settings(max_examples=300, deadline=None)
@given(
    content=file_of("sentence1\tsentence2\tgold_label", st.sampled_from([*LABELS[:2]] * 8 + ["neutral", "-"])),
    block=blocks,
)
def test_kor_nli_equals_a_plain_reading(tmp_path_factory, content, block):
    path = tmp_path_factory.getbasetemp() / "random-nli.tsv"
    path.write_bytes(content)
    rows, malformed = plain_rows(content, lambda row: row[2].strip() in LABELS)
    with mock.patch.object(tsv, "CHUNK_ROWS", block):
        if malformed:
            with pytest.raises(InputError) as error:
                load_kor_nli([path], 0)
            check_located(error, path, malformed)
            return
        partners = plain_partners(rows)
        if any(of["entailment"] and of["contradiction"] for of in partners.values()):
            check_triplets(as_tuples(load_kor_nli([path], 0)), partners)
        else:
            with pytest.raises(InputError, match="no triplet"):
                load_kor_nli([path], 0)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=60) | junk.map(str.encode))
def test_a_random_file_is_an_input_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "random.tsv"
    path.write_bytes(content)
    for load in (load_kor_sts, lambda path: load_kor_nli([path], 0)):
        with pytest.raises(InputError, match=re.escape(str(path))):
            load(path)
