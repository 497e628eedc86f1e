"""Bad data files: each gives one error that names the file, the line and a remedy."""

import os
import subprocess
import sys

import pytest

from data_util import load_kor_nli, load_kor_sts
from kf_deberta.cli import InputError

STS = "sentence1\tsentence2\tscore\n"
NLI = "sentence1\tsentence2\tgold_label\n"
PAIR = "비가 온다\t비가 내린다\t4.5\n"
ROW = "비가 온다\t비가 내린다\tentailment\n"
OTHER = "비가 온다\t맑다\tcontradiction\n"


def load_nli(path):
    return load_kor_nli([path], 0)


BAD = [  # name, loader, content (None: no file), line, what the message says
    ("sts-missing", load_kor_sts, None, None, "No such file"),
    ("sts-empty", load_kor_sts, "", None, "empty file"),
    ("sts-only-newline", load_kor_sts, "\n", 1, "no column sentence1"),
    ("sts-only-bom", load_kor_sts, "\ufeff", 1, "no column sentence1"),
    ("sts-binary", load_kor_sts, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 1, "not UTF-8"),
    ("sts-utf16", load_kor_sts, (STS + PAIR).encode("utf-16"), 1, "not UTF-8"),
    ("sts-utf16-without-bom", load_kor_sts, (STS + PAIR).encode("utf-16-le"), 1, "no column sentence1"),
    ("sts-cp949", load_kor_sts, (STS + PAIR).encode("cp949"), 2, "not UTF-8"),
    ("sts-cp949-after-good-rows", load_kor_sts, (STS + PAIR * 3).encode() + PAIR.encode("cp949"), 5, "not UTF-8"),
    ("sts-surrogate", load_kor_sts, STS.encode() + b"a\xed\xa0\x80\tb\t1\n", 2, "not UTF-8"),
    ("sts-broken-in-unused-column", load_kor_sts, b"id\t" + STS.encode() + b"\xff\ta\tb\t1\n", 2, "not UTF-8"),
    ("sts-cut-character", load_kor_sts, (STS + PAIR).encode() + "a\t가".encode()[:-1], 3, "not UTF-8"),
    ("sts-nul", load_kor_sts, STS + PAIR + "a\0\tb\t1\n", 3, "NUL byte"),
    ("sts-comma", load_kor_sts, "sentence1,sentence2,score\na,b,1\n", 1, "no column sentence1"),
    ("sts-comma-rows", load_kor_sts, STS + "a,b,1\n", 2, "1 columns, the header has 3"),
    ("sts-no-header", load_kor_sts, PAIR * 2, 1, "no column sentence1"),
    ("sts-score-missing-in-header", load_kor_sts, "sentence1\tsentence2\nа\tb\n", 1, "no column score"),
    ("sts-column-twice", load_kor_sts, "score\t" + STS + "1\ta\tb\t1\n", 1, "more than one column score"),
    ("sts-header-case", load_kor_sts, STS.title() + PAIR, 1, "no column sentence1"),
    ("sts-huge-line", load_kor_sts, "가" * 5_000_000, 1, "no column sentence1"),
    ("sts-header-only", load_kor_sts, STS, 1, "no rows"),
    ("sts-cr-line-ends", load_kor_sts, (STS + PAIR).replace("\n", "\r"), 1, "no column score"),
    ("sts-column-too-few", load_kor_sts, STS + PAIR + "a\t1\n", 3, "2 columns, the header has 3"),
    ("sts-column-too-many", load_kor_sts, STS + PAIR + "a\tb\tc\t1\n", 3, "4 columns, the header has 3"),
    ("sts-cut-last-line", load_kor_sts, STS + PAIR + "a\tb", 3, "2 columns, the header has 3"),
    ("sts-after-blank-lines", load_kor_sts, STS + "\n\r\n" + PAIR + "a\n", 5, "1 columns, the header has 3"),
    ("sts-score-text", load_kor_sts, STS + PAIR + "a\tb\t높음\n", 3, "score '높음' is not a number"),
    ("sts-score-empty", load_kor_sts, STS + "a\tb\t\n", 2, "score '' is not a number"),
    ("sts-score-comma", load_kor_sts, STS + "a\tb\t4,5\n", 2, "score '4,5' is not a number"),
    ("sts-score-high", load_kor_sts, STS + "a\tb\t5.001\n", 2, "score '5.001' is outside 0..5"),
    ("sts-score-negative", load_kor_sts, STS + "a\tb\t-0.1\n", 2, "score '-0.1' is outside 0..5"),
    ("sts-score-nan", load_kor_sts, STS + "a\tb\tnan\n", 2, "score 'nan' is outside 0..5"),
    ("sts-score-infinite", load_kor_sts, STS + "a\tb\t1e999\n", 2, "score '1e999' is outside 0..5"),
    ("sts-score-long", load_kor_sts, STS + "a\tb\t" + "x" * 9999 + "\n", 2, "…' is not a number"),
    ("sts-empty-sentence", load_kor_sts, STS + PAIR + "\tb\t1\n", 3, "sentence1 is empty"),
    ("sts-blank-sentence", load_kor_sts, STS + "a\t \u3000\t1\n", 2, "sentence2 is empty"),
    ("nli-missing", load_nli, None, None, "No such file"),
    ("nli-empty", load_nli, "", None, "empty file"),
    ("nli-header-only", load_nli, NLI, None, "no triplet"),
    ("nli-only-entailment", load_nli, NLI + ROW * 3, None, "no triplet"),
    ("nli-only-neutral", load_nli, NLI + "a\tb\tneutral\n", None, "no triplet"),
    ("nli-no-sentence-with-both", load_nli, NLI + ROW + "a\tb\tcontradiction\n", None, "no triplet"),
    ("nli-unknown-label", load_nli, NLI + ROW + "a\tb\tmaybe\n", 3, "unknown label 'maybe', must be entailment"),
    ("nli-label-without-consensus", load_nli, NLI + ROW + OTHER + "a\tb\t-\n", 4, "unknown label '-'"),
    ("nli-label-empty", load_nli, NLI + "a\tb\t\n", 2, "unknown label ''"),
    ("nli-label-case", load_nli, NLI + ROW.title(), 2, "unknown label 'Entailment'"),
    ("nli-label-number", load_nli, NLI + "a\tb\t0\n", 2, "unknown label '0'"),
    ("nli-quoted-label", load_nli, NLI + 'a\tb\t"neutral"\n', 2, "unknown label '\"neutral\"'"),
    ("nli-no-label", load_nli, NLI + ROW + OTHER + "a\tb\n", 4, "2 columns, the header has 3"),
    ("nli-stray-tab", load_nli, NLI + ROW + "a\tb\tc\tneutral\n", 3, "4 columns, the header has 3"),
    ("nli-sts-file", load_nli, STS + PAIR, 1, "no column gold_label"),
    ("nli-broken-utf8", load_nli, NLI.encode() + b"\xc3\x28\tb\tneutral\n", 2, "not UTF-8"),
    ("nli-nul", load_nli, NLI + ROW + OTHER + "\0" * 1000, 4, "NUL byte"),
    ("nli-json-lines", load_nli, '{"sentence1": "a"}\n', 1, "no column sentence1"),
]


@pytest.mark.parametrize(
    ("load", "content", "line", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_bad_file_is_refused_with_file_line_and_remedy(tmp_path, load, content, line, says):
    path = tmp_path / "데이터 파일.tsv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        load(path)
    (message,) = str(error.value).splitlines()  # one line
    assert message.startswith(f"{path}: " if line is None else f"{path}:{line}: ")
    assert says in message
    assert any(remedy in message for remedy in ("; give ", "; save ", "; the first line must ", "; correct or remove"))
    assert len(message) < 300 + len(str(path)) and message.isprintable()


def test_a_folder_is_refused(tmp_path):
    for load in (load_kor_sts, load_nli):
        with pytest.raises(InputError, match=r"Is a directory; give "):
            load(tmp_path)


def test_every_malformed_row_is_counted_and_the_first_five_are_shown(tmp_path):
    path = tmp_path / "pairs.tsv"
    bad = ["a\tb\t6", "a\tb", "a\tb\tx", "\tb\t1", "a\0\tb\t1", "a\tb\t-1", "a", "a\tb\t9\t9"]
    path.write_bytes((STS + "".join(PAIR + row + "\n" for row in bad)).encode() + b"\xff\tb\t1\n")
    with pytest.raises(InputError) as error:
        load_kor_sts(path)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"{path}:3: score '6' is outside 0..5 (9 malformed rows in this file; ")
    assert [line.strip() for line in lines[1:]] == [
        f"{path}:5: 2 columns, the header has 3",
        f"{path}:7: score 'x' is not a number",
        f"{path}:9: sentence1 is empty",
        f"{path}:11: a NUL byte in the text",
    ]


def test_a_script_ends_with_status_2_and_no_traceback(tmp_path, repo):
    path = tmp_path / "pairs.tsv"
    path.write_text(STS + PAIR + "a\tb\t7\n", encoding="utf-8")
    code = "import sys, data_util; from kf_deberta import cli; cli.run(lambda: data_util.load_kor_sts(sys.argv[1]))"
    command = [sys.executable, "-c", code, path]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(repo)}, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {path}:3: score '7' is outside 0..5 (1 malformed row in this file; ")
    assert len(result.stderr.splitlines()) == 1 and not result.stdout


def test_duplicates_only_are_accepted(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text(NLI + (ROW + OTHER) * 50, encoding="utf-8")
    assert list(load_nli(path)) == [
        {"anchor": "비가 온다", "positive": "비가 내린다", "negative": "맑다"},
        {"anchor": "비가 내린다", "positive": "비가 온다", "negative": "맑다"},
    ]
