"""Decomposed Hangul, as macOS writes it, is composed on input, and nothing else in a text changes."""

import os
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_util import find_kor_nli_train_files, load_kor_nli, load_kor_sts
from kf_deberta.cli import InputError
from kf_deberta.data.text import compose_hangul, compose_texts

SENTENCE = "각종 금융 상품을 읽었다 . 값이 올랐다 ! Ａ１ ﬁ é e\u0301 か\u3099 ㄱㅏ \u1100 \u1161\u11a8 ①"


def test_all_syllables_come_back_and_nothing_else_changes():
    syllables = "".join(map(chr, range(0xAC00, 0xD7A4)))
    assert compose_hangul(unicodedata.normalize("NFD", syllables)) == syllables
    assert compose_hangul(" ".join(unicodedata.normalize("NFD", syllables))).count("\u1100") > 0  # apart, they stay
    assert compose_hangul(SENTENCE) == SENTENCE
    assert compose_hangul("가\u11a8 \uac00\u11a8") == "각 각"  # a syllable and its final consonant alone


@given(st.text(st.sampled_from("가각힣 aé\u0301\u1100\u1112\u1161\u1175\u11a8\u11c2ㄱ①ﬁ"), max_size=12))
def test_only_jamo_differ_from_the_text(text):
    composed = compose_hangul(text)
    assert unicodedata.normalize("NFC", composed) == unicodedata.normalize("NFC", text)
    others = re.compile("[\u1100-\u11ff가-힣]+")
    assert others.sub("", composed) == others.sub("", text)


def test_data_files_load_as_their_composed_selves(tmp_path, kor_nlu, capsys):
    official = kor_nlu / "KorSTS" / "sts-dev.tsv"
    whole = load_kor_sts(official)
    assert "decomposed" not in capsys.readouterr().err
    path = tmp_path / "sts-dev.tsv"
    text = official.read_text(encoding="utf-8")  # its accents, as in äôs, stay as they are
    text = re.sub("[가-힣]+", lambda match: unicodedata.normalize("NFD", match[0]), text)
    path.write_text(text, encoding="utf-8")
    decomposed = load_kor_sts(path)
    assert list(decomposed) == list(whole)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "decomposed" in line]
    assert re.fullmatch(rf"{re.escape(str(path))}: [\d,]+ texts held decomposed Hangul \(NFD\) .*", line)

    rows = "sentence1\tsentence2\tgold_label\n비가 온다\t맑다\tcontradiction\n비가 온다\t비가 내린다\tentailment\n"
    (tmp_path / "a.train.ko.tsv").write_text(unicodedata.normalize("NFD", rows), encoding="utf-8")
    assert load_kor_nli([tmp_path / "a.train.ko.tsv"], 0)[0]["anchor"] == "비가 온다"
    assert "4 texts held" in capsys.readouterr().err


def test_texts_are_counted_once_each(capsys):
    texts = ["비", unicodedata.normalize("NFD", "비가 온다"), "rain"]
    assert compose_texts(texts, "queries") == ["비", "비가 온다", "rain"]
    assert capsys.readouterr().err == "queries: 1 texts held decomposed Hangul (NFD) and were composed\n"
    assert compose_texts(["비"], "queries") == ["비"] and not capsys.readouterr().err


def test_loading_shows_signs_of_life(tmp_path, capsys):
    rows = "sentence1\tsentence2\tgold_label\n" + "비\t눈\tcontradiction\n비\t물\tentailment\n" * 3
    paths = [tmp_path / "b.train.ko.tsv", tmp_path / "a.train.ko.tsv"]
    for path in paths:
        path.write_text(rows, encoding="utf-8")
    load_kor_nli(paths, 0)
    assert capsys.readouterr().err.splitlines() == [
        f"loading {paths[1]}",
        f"{paths[1]}: 6 rows",
        f"loading {paths[0]}",
        f"{paths[0]}: 6 rows",
        "KorNLI: 4 triplets from 2 files",
    ]


@pytest.mark.parametrize("kind", ["fifo", "device", "missing"])
def test_what_is_no_file_is_refused_not_waited_for(tmp_path, kind):
    path = {"fifo": tmp_path / "pipe.tsv", "device": "/dev/zero", "missing": tmp_path / "none.tsv"}[kind]
    if kind == "fifo":
        os.mkfifo(path)
    for load in (load_kor_sts, lambda path: load_kor_nli([path], 0)):
        with pytest.raises(InputError, match="No such file" if kind == "missing" else "a pipe or a device; give"):
            load(path)


def test_folders_are_no_patterns(tmp_path):
    root = tmp_path / "a[1] *'가"
    (root / "KorNLI").mkdir(parents=True)
    path = root / "KorNLI" / "x[0].train.ko.tsv"
    path.write_text("sentence1\tsentence2\tgold_label\n비\t눈\tcontradiction\n비\t물\tentailment\n", encoding="utf-8")
    assert find_kor_nli_train_files(root) == [path]
    assert len(load_kor_nli([path], 0)) == 2
