"""KorSTS and KorNLI files load to the rows of a plain reading, or to an error that names every malformed line."""

import random
import re
import unicodedata
from collections import Counter, defaultdict
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

import data_util
from data_util import LABELS, find_kor_nli_train_files, load_kor_nli, load_kor_sts, say_overlap
from in_process import run_here
from kf_deberta.data.official import KOR_STS_ROWS
from kf_deberta.data.tsv import compose_hangul, read_sentences
from kf_deberta.errors import InputError

STS = "sentence1\tsentence2\tscore\n"
NLI = "sentence1\tsentence2\tgold_label\n"
PAIR = "비가 온다\t비가 내린다\t4.5\n"
ROW = "비가 온다\t비가 내린다\tentailment\n"
OTHER = "비가 온다\t맑다\tcontradiction\n"


def load_nli(path):
    return load_kor_nli([path], 0)


def rows_of(data):
    return list(zip(*(data[name] for name in data.column_names), strict=True))


BAD = [  # name, loader, content, line, what the message says
    ("sts-empty", load_kor_sts, "", 1, "no column sentence1 in ''"),
    ("sts-utf16", load_kor_sts, (STS + PAIR).encode("utf-16"), 1, "no column sentence1"),
    ("sts-cp949", load_kor_sts, (STS + PAIR * 3).encode() + PAIR.encode("cp949"), 5, "not UTF-8, perhaps CP949"),
    ("sts-broken-in-unused-column", load_kor_sts, b"id\t" + STS.encode() + b"\xff\ta\tb\t1\n", 2, "not UTF-8"),
    ("sts-comma", load_kor_sts, "sentence1,sentence2,score\na,b,1\n", 1, "in 'sentence1,sentence2,score'"),
    ("sts-column-twice", load_kor_sts, "score\t" + STS + "1\ta\tb\t1\n", 1, "more than one column score"),
    ("sts-huge-line", load_kor_sts, "가" * 5_000_000, 1, "no column sentence1"),
    ("sts-header-only", load_kor_sts, STS, None, "no rows"),
    ("sts-cr-line-ends", load_kor_sts, (STS + PAIR).replace("\n", "\r"), 1, "no column score"),
    ("sts-column-too-many", load_kor_sts, STS + PAIR + "a\tb\tc\t1\n", 3, "4 columns, the header has 3"),
    ("sts-after-blank-lines", load_kor_sts, STS + "\n\r\n" + PAIR + "a\n", 5, "1 columns, the header has 3"),
    ("sts-score-underscore", load_kor_sts, STS + "a\tb\t0_1\n", 2, "score '0_1' is not a number"),
    ("sts-score-arabic", load_kor_sts, STS + "a\tb\t٣\n", 2, "score '٣' is not a number"),
    ("sts-score-nan", load_kor_sts, STS + "a\tb\tnan\n", 2, "score 'nan' is not"),
    ("sts-score-long", load_kor_sts, STS + "a\tb\t" + "x" * 9999 + "\n", 2, "…' is not a number"),
    ("sts-scores-of-another-scale", load_kor_sts, STS + "a\tb\t1\na\tc\t0.5\n", None, "the highest score is 1; give"),
    ("sts-blank-sentence", load_kor_sts, STS + "a\t \u3000\t1\n", 2, "the second sentence is empty"),
    ("nli-header-only", load_nli, NLI, None, "no triplet"),
    ("nli-no-sentence-with-both", load_nli, NLI + ROW + "a\tb\tcontradiction\n", None, "no triplet"),
    ("nli-unknown-label", load_nli, NLI + ROW + "a\tb\tmaybe\n", 3, "unknown label 'maybe', must be entailment"),
    ("nli-sts-file", load_nli, STS + PAIR, 1, "no column gold_label"),
    ("text-not-utf8", read_sentences, b"a\n\xff\xfe\n", 2, "not UTF-8"),
    ("text-blank", read_sentences, "\n \n", None, "no sentence in it"),
]


@pytest.mark.parametrize("case", BAD, ids=lambda case: case[0])
def test_bad_file_is_refused_with_file_line_and_remedy(tmp_path, case):
    _, load, content, line, says = case
    path = tmp_path / "데이터 파일.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        load(path)
    (message,) = str(error.value).splitlines()
    assert message.startswith(f"{path}: " if line is None else f"{path}:{line}: ")
    assert says in message
    assert any(remedy in message for remedy in ("; give ", "; save ", "; write ", "; correct or remove"))
    assert len(message) < 300 + len(str(path)) and message.isprintable()


# KorSTS

TEXTS = ['"따옴표로 "가', "한\r에 CR\r", "\u2028행", "가\x0b\x1c\x85나", " 앞뒤 ", "\ufeffBOM", "N/A"]
PAIRS = [(text, f"{text}와 {text}", "4.8") for text in [*TEXTS, "긴 " * 10**6]]
LAYOUTS = {
    "plain": STS + "".join("\t".join(row) + "\n" for row in PAIRS),
    "bom-crlf-blank-lines-no-final-newline": "\ufeff" + "\r\n\r\n".join([STS.strip(), *map("\t".join, PAIRS)]),
    "another-order": "score\tsentence1\tsentence2\tid\n" + "".join(f"{c}\t{a}\t{b}\t\n" for a, b, c in PAIRS),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_load_to_the_same_rows_with_texts_as_they_are(tmp_path, layout, capsys):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(LAYOUTS[layout].encode())
    data = load_kor_sts(path)
    assert data.column_names == ["sentence1", "sentence2", "score"]
    assert rows_of(data) == [(a, b, float(score) / 5) for a, b, score in PAIRS]
    assert capsys.readouterr().err == f"{path}: 8 pairs\n"


def test_official_files_equal_a_plain_reading_and_their_overlap_is_told(kor_nlu, capsys):
    loaded = {}
    for name, rows in KOR_STS_ROWS.items():
        path = kor_nlu / "KorSTS" / name
        header, *body = (line.split("\t") for line in path.read_bytes().decode().removesuffix("\n").split("\n"))
        a, b, score = ([cells[header.index(column)] for cells in body] for column in STS.split())
        loaded[name] = load_kor_sts(path)
        assert rows_of(loaded[name]) == list(zip(a, b, [float(text) / 5 for text in score], strict=True))
        assert len(body) == rows
    assert "not the official" not in capsys.readouterr().err
    say_overlap(loaded["sts-train.tsv"], loaded["sts-test.tsv"], "KorSTS test")
    assert "KorSTS test: 2 of its 1,379 pairs" in capsys.readouterr().err


def test_overlap_counts_pairs_in_any_order_and_another_file_of_an_official_name_is_told(tmp_path, capsys):
    train, other = (tmp_path / name for name in ("a.tsv", "sts-test.tsv"))
    train.write_text(STS + PAIR + "a\tb\t1\nc\td\t1\n", encoding="utf-8")
    other.write_text(STS + "b\ta\t3\nc\td\t3\nc\tb\t5\n", encoding="utf-8")
    data = [load_kor_sts(path) for path in (train, other)]
    said = capsys.readouterr().err.splitlines()
    assert said[1].startswith(f"{other}: 3 pairs; not the official KorSTS file of 1,379 pairs, so its ")
    say_overlap(*data, "KorSTS test")
    say_overlap(data[0], data[0].select([]), "nothing")
    assert capsys.readouterr().err == "KorSTS test: 2 of its 3 pairs are training pairs, too\n"


# KorNLI


def read_plainly(path):
    return [line.split("\t") for line in path.read_bytes().decode().split("\n")[1:-1]]


def plain_partners(rows):
    """{sentence: {label: set of partners}}, both directions, from rows of (sentence1, sentence2, label)."""
    partners = defaultdict(lambda: defaultdict(set))
    for a, b, label in rows:
        partners[a.strip()][label.strip()].add(b.strip())
        partners[b.strip()][label.strip()].add(a.strip())
    return partners


def check_triplets(triplets, partners):
    """The triplets are two for each sentence with both kinds of partners, built from its own partners."""
    anchors = {sentence for sentence, of in partners.items() if of["entailment"] and of["contradiction"]}
    assert len(triplets) == 2 * len(anchors)
    forward, backward = triplets[::2], triplets[1::2]
    assert {a for a, _, _ in forward} == {p for _, p, _ in backward} == anchors
    for sentence, positive, negative in [*forward, *((p, a, n) for a, p, n in backward)]:
        assert positive in partners[sentence]["entailment"]
        assert negative in partners[sentence]["contradiction"]


def write_nli(path, rows):
    path.write_bytes((NLI + "".join("\t".join(row) + "\n" for row in rows)).encode())
    return path


def small_corpus(path, seed, rows=400):
    """Few sentences in many rows: duplicates, both directions, conflicting labels, texts with spaces and quotes."""
    rng = random.Random(seed)
    sentences = [f'문장 "{i}' for i in range(60)]
    pad = ("", " ", "\u3000", "\xa0\r ")
    pick = lambda: (rng.choice(sentences) + rng.choice(pad), rng.choice(pad) + rng.choice(sentences))  # noqa: E731
    return write_nli(path, [(*pick(), rng.choice(LABELS)) for _ in range(rows)])


def test_triplets_are_those_of_a_plain_reading(tmp_path, kor_nlu):
    for seed in range(4):
        path = small_corpus(tmp_path / "a.tsv", seed, rows=(30, 100, 400)[seed % 3])
        check_triplets(rows_of(load_kor_nli([path], seed)), plain_partners(read_plainly(path)))
    paths = find_kor_nli_train_files(kor_nlu)
    data = load_kor_nli(paths, 42)
    assert data.column_names == ["anchor", "positive", "negative"] and len(data) == 4998
    check_triplets(rows_of(data), plain_partners(read_plainly(paths[0])))


def test_files_are_processed_one_by_one_and_sentences_keep_their_order(tmp_path, capsys):
    a = write_nli(tmp_path / "a.tsv", [("가", "나", "entailment"), ("다", "라", "contradiction")])
    rows = [("가", "마", "contradiction"), ("다", "바", "entailment"), ("다", "사", "contradiction")]
    b = write_nli(tmp_path / "b.tsv", rows)
    assert rows_of(load_kor_nli([b, a], 0)) == [("다", "바", "사"), ("바", "다", "사")]
    said = capsys.readouterr().err.splitlines()
    assert said == [f"loading {a}", f"loading {b}", "KorNLI: 2 triplets from 2 files"]
    rows = [("하", "가", "entailment"), ("가", "마", "contradiction"), ("마", "나", "entailment")]
    path = write_nli(tmp_path / "c.tsv", [*rows, ("바", "나", "contradiction"), ("하", "파", "contradiction")])
    assert [positive for _, positive, _ in rows_of(load_kor_nli([path], 0))[1::2]] == ["하", "가", "마", "나"]
    path = write_nli(tmp_path / "d.tsv", [("가", "나", "entailment"), ("가", " ", "contradiction")] * 50)
    assert rows_of(load_kor_nli([path], 0)) == [("가", "나", ""), ("나", "가", "")]  # an empty sentence is one, too


def test_partners_are_uniform_over_the_distinct_ones_and_drawn_independently(tmp_path):
    size, rows = 3000, []
    for i in range(size):  # 3 distinct entailed partners, one of them in 9 rows; 4 contradicting ones
        rows += [(f"전제 {i}", f"{i} 함의 {j}", "entailment") for j in (0, 0, 0, 0, 0, 0, 0, 0, 1, 2)]
        rows += [(f"{i} 함의 0 ", f"전제 {i}", "entailment")]
        rows += [(f"{i} 모순 {j}", f"전제 {i}", "contradiction") for j in range(4)]
        rows += [(f"전제 {i}", f"{i} 중립", "neutral")]
    triplets = rows_of(load_kor_nli([write_nli(tmp_path / "a.tsv", rows)], 7))
    assert len(triplets) == 2 * size
    forward = [(int(p[-1]), int(n[-1])) for _, p, n in triplets[::2]]
    backward = [(int(a[-1]), int(n[-1])) for a, _, n in triplets[1::2]]
    for cells in (Counter(forward), Counter(backward)):
        assert chisquare([cells[i, j] for i in range(3) for j in range(4)]).pvalue > 1e-3
    for i in range(2):  # the second triplet does not repeat the draws of the first
        pairs = Counter((f[i], b[i]) for f, b in zip(forward, backward, strict=True))
        options = range((3, 4)[i])
        assert chi2_contingency([[pairs[x, y] for y in options] for x in options]).pvalue > 1e-3


def test_only_seed_and_content_decide(tmp_path, monkeypatch):
    a, b = small_corpus(tmp_path / "a.tsv", 1), small_corpus(tmp_path / "b.tsv", 2)
    triplets = rows_of(load_kor_nli([a, b], 3))
    assert rows_of(load_kor_nli([str(b), str(a)], 3)) == triplets
    assert rows_of(load_kor_nli([a, b], 4)) != triplets
    monkeypatch.setattr(data_util, "CHUNK_ROWS", 100)
    assert rows_of(load_kor_nli(iter([b, a]), 3)) == triplets

    elsewhere = tmp_path / "0"  # a folder that sorts before the other files' names
    elsewhere.mkdir()
    for path in (a, b):  # the same rows in another layout: BOM, CRLF, other columns, no final newline
        rows = [NLI.strip().split("\t"), *read_plainly(path)]
        text = "\r\n".join(f"{label}\t{s2}\tid\t{s1}" for s1, s2, label in rows)
        (elsewhere / path.name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert rows_of(load_kor_nli([elsewhere / "b.tsv", a], 3)) == triplets


def test_train_files_are_found_in_sorted_order(tmp_path):
    folder = tmp_path / "a[1] *'가" / "KorNLI"  # not a pattern
    folder.mkdir(parents=True)
    names = ["multinli.train.ko.tsv", "snli_1.0_train.ko.tsv"]
    for name in (*names[::-1], "xnli.dev.ko.tsv", "b.train.ko.tsv.bak", "._a.train.ko.tsv"):
        (folder / name).touch()
    assert [path.name for path in find_kor_nli_train_files(folder.parent)] == names
    for missing in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError, match=r"no KorNLI train file .*; give "):
            find_kor_nli_train_files(missing)


def test_verify_compares_with_gits_ids(kor_nlu, tmp_path, capsys):
    status = run_here("data_util.py", "--verify", kor_nlu)
    *lines, verdict = capsys.readouterr().out.splitlines()
    verdicts = dict(line.split(": ", 1) for line in lines)
    assert verdicts == {name: "ok" if (kor_nlu / name).exists() else "missing" for name in verdicts}
    assert len(verdicts) == 7 and status == (0 if verdict == "the official data set" else 2)
    (tmp_path / "KorSTS").mkdir()
    (tmp_path / "KorSTS" / "sts-dev.tsv").write_bytes(b"changed\n")
    assert run_here("data_util.py", "--verify", tmp_path) == 2
    said = capsys.readouterr().out
    assert "sts-dev.tsv: differs (git blob 5ea2ed416fbd4a4cbe227b75fe255dd7fa6bd4d6, official 3686d93" in said
    assert said.endswith("not the official data set\n")


# random files

TRICKY = [*"\t\n\r\"', \0\x0b\x1c\x85\u2028\u3000\ufeff가", "\r\n"]
text = st.lists(st.sampled_from([token for token in TRICKY if token not in "\t\r\n"]) | st.characters(
    exclude_categories=["Cs"], exclude_characters="\t\n"), max_size=5).map("".join)  # fmt: skip
junk = st.lists(st.sampled_from([*TRICKY, "1", "neutral"]), max_size=8).map("".join)
scores = st.sampled_from(["0", "5", "2.500", " 1 ", "1e-1", "-0"] * 3 + ["5.1", "nan", "x", "", "1_0", "٣"])
labels = st.sampled_from([*LABELS[:2]] * 8 + ["neutral", "-"])


def file_of(header, last_cells):
    """Files of mostly well-formed rows (last column from `last_cells`), with junk between, and now and then bytes."""
    row = st.tuples(st.just("x") | text.map("x".__add__), text.map("y".__add__), last_cells).map("\t".join)
    line = st.one_of(row, row, row, junk).map(str.encode) | st.binary(max_size=6)
    lines = st.lists(st.one_of(row.map(str.encode), row.map(str.encode), line), max_size=6)
    parts = st.tuples(st.sampled_from([b"", b"\xef\xbb\xbf"]), st.sampled_from([b"\n", b"\r\n"]), lines, st.booleans())
    return parts.map(lambda p: p[0] + p[1].join([header.strip().encode(), *p[2]]) + (p[1] if p[3] else b""))


def plain_rows(content, is_valid):
    """Split at newlines and tabs as one would by hand: (well-formed rows, numbers of the malformed lines)."""
    rows, malformed = [], []
    for number, line in enumerate(content.split(b"\n")[1:], start=2):
        line = line.removesuffix(b"\r")
        try:
            row = line.decode().split("\t")
        except UnicodeDecodeError:
            row = []
        if len(row) == 3 and is_valid(row):
            rows.append(row)
        elif line:
            malformed.append(number)
    return rows, malformed


def is_pair(row):
    number = row[2].isascii() and "_" not in row[2]
    try:
        return bool(number and row[0].strip() and row[1].strip()) and 0 <= float(row[2]) <= 5
    except ValueError:
        return False


@settings(max_examples=100, deadline=None)
@given(sts=file_of(STS, scores), nli=file_of(NLI, labels), block=st.sampled_from([1, 7, 1 << 20]))
def test_random_files_equal_a_plain_reading(tmp_path_factory, sts, nli, block):
    path = tmp_path_factory.getbasetemp() / "random.tsv"
    for content, load, is_valid in ((sts, load_kor_sts, is_pair), (nli, load_nli, lambda r: r[2].strip() in LABELS)):
        path.write_bytes(content)
        rows, malformed = plain_rows(content, is_valid)
        with mock.patch.object(data_util, "CHUNK_ROWS", block):
            try:
                loaded = rows_of(load(path))
            except InputError as error:
                located = [int(line) for line in re.findall(re.escape(str(path)) + r":(\d+): ", str(error))]
                assert located == malformed[:5] and (not malformed or f"({len(malformed)} malformed row" in str(error))
                assert malformed or any(reason in str(error) for reason in ("no rows", "no triplet", "highest score"))
                continue
        assert not malformed
        if load is load_kor_sts:
            assert loaded == [(a, b, float(score) / 5) for a, b, score in rows]
        else:
            check_triplets(loaded, plain_partners(rows))


# decomposed Hangul


def test_all_syllables_come_back_and_nothing_else_changes(capsys):
    syllables = "".join(map(chr, range(0xAC00, 0xD7A4)))
    assert compose_hangul(unicodedata.normalize("NFD", syllables), "a file") == syllables
    assert compose_hangul("가\u11a8 \uac00\u11a8", "a file") == "각 각"  # a syllable and its final consonant alone
    assert capsys.readouterr().err == "a file: decomposed Hangul (NFD) is composed\n"  # once
    others = "각종 금융 상품 . Ａ１ ﬁ é e\u0301 か\u3099 ㄱㅏ \u1100 \u1161\u11a8 ①"  # NFC would change some
    assert compose_hangul(others, "another") == others and not capsys.readouterr().err


def test_decomposed_files_load_as_their_composed_selves(tmp_path, capsys):
    paths = [tmp_path / name for name in ("sts.tsv", "nli.tsv", "text.txt")]
    for path, content in zip(paths, (STS + PAIR, NLI + ROW + OTHER, "\ufeff비가 온다 \r\n\n 각 é\n"), strict=True):
        path.write_bytes(unicodedata.normalize("NFD", content).replace("e\u0301", "é").encode())
    assert rows_of(load_kor_sts(paths[0])) == [("비가 온다", "비가 내린다", 0.9)]
    assert load_nli(paths[1])[0] == {"anchor": "비가 온다", "positive": "비가 내린다", "negative": "맑다"}
    assert read_sentences(paths[2]) == ["비가 온다", "각 é"]
    said = capsys.readouterr().err
    assert all(said.count(f"{path}: decomposed Hangul") == 1 for path in paths)
