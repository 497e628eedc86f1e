import logging

import pytest

from data_util import load_kor_sts
from kf_deberta.data import tsv
from kf_deberta.data.official import KOR_STS_ROWS

HEADER = "sentence1\tsentence2\tscore"
ROWS = [("비가 온다.", "비가 내린다.", "4.8"), ("주가가 올랐다.", "금리가 내렸다.", "0.600"), ("같다", "같다", "5")]
EXPECTED = [
    ("비가 온다.", "비가 내린다.", 4.8 / 5),
    ("주가가 올랐다.", "금리가 내렸다.", 0.6 / 5),
    ("같다", "같다", 1.0),
]


def lines(rows=ROWS, header=HEADER):
    return [header, *("\t".join(row) for row in rows)]


def load(path):
    data = load_kor_sts(path)
    assert data.column_names == ["sentence1", "sentence2", "score"]
    return list(zip(data["sentence1"], data["sentence2"], data["score"], strict=True))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("\n".join(lines()) + "\n", id="plain"),
        pytest.param("\n".join(lines()), id="no-final-newline"),
        pytest.param("\r\n".join(lines()) + "\r\n", id="crlf"),
        pytest.param("\r\n".join(lines()), id="crlf-no-final-newline"),
        pytest.param("\ufeff" + "\n".join(lines()) + "\n", id="bom"),
        pytest.param("\ufeff" + "\r\n".join(lines()) + "\r\n", id="bom-crlf"),
        pytest.param("\n".join(lines()) + "\n\n\n", id="blank-lines-at-the-end"),
        pytest.param("\r\n\r\n".join(lines()), id="blank-lines-between-crlf"),
        pytest.param(
            "\n".join(lines([(c, "x", a, "", b) for a, b, c in ROWS], "score\tgenre\tsentence1\tid\tsentence2")),
            id="extra-columns-and-another-order",
        ),
    ],
)
def test_layouts_load_to_the_same_rows(tmp_path, text):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(text.encode())
    assert load(path) == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        '"따옴표로 시작',
        '따옴표가 "가운데" 있다',
        'a""b"',
        "한 줄\r에 CR",
        "끝에 CR\r",
        "행\u2028구분\u2029자",
        "가\x0b\x0c\x1c\x1d\x1e\x85나",
        " 앞뒤 공백 ",
        "\ufeff안의 BOM",
        "쉼표, 세미콜론; 역슬래시\\ \\t \\n '",
        "😀 한글 자모 ㅋㅋ 각",
        "N/A",
        "긴 문장 " * 1_000_000,
    ],
)
def test_text_is_kept_as_it_is(tmp_path, text):
    path = tmp_path / "pairs.tsv"
    path.write_bytes("\n".join(lines([(text, "b", "2.5"), ("a", text, "0"), ("끝", "끝", "1")])).encode())
    assert load(path) == [(text, "b", 0.5), ("a", text, 0.0), ("끝", "끝", 0.2)]


def test_official_files_equal_a_plain_reading(kor_nlu, caplog):
    for name, rows in KOR_STS_ROWS.items():
        path = kor_nlu / "KorSTS" / name
        header, *body = path.read_bytes().decode().removesuffix("\n").split("\n")
        columns = [header.split("\t").index(column) for column in ("sentence1", "sentence2", "score")]
        cells = [line.split("\t") for line in body]
        a, b, score = ([row[column] for row in cells] for column in columns)
        assert load(path) == list(zip(a, b, [float(text) / 5 for text in score], strict=True))
        assert len(body) == rows
    assert not caplog.records


def test_number_of_rows_is_that_of_the_reference(kor_nlu):
    counts = [len(load_kor_sts(kor_nlu / "KorSTS" / f"sts-{split}.tsv")) for split in ("train", "dev", "test")]
    assert counts == [5749, 1500, 1379]


@pytest.mark.parametrize("name", KOR_STS_ROWS)
def test_an_incomplete_copy_of_an_official_file_is_loaded_with_a_warning(tmp_path, caplog, name):
    path = tmp_path / name
    path.write_text("\n".join(lines()), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert load(path) == EXPECTED
    (record,) = caplog.records
    assert all(part in record.getMessage() for part in (str(path), "3 rows", f"{KOR_STS_ROWS[name]:,}", "comparable"))


def test_a_file_under_another_name_is_loaded_without_a_warning(tmp_path, caplog):
    path = tmp_path / "mine.tsv"
    path.write_text("\n".join(lines()), encoding="utf-8")
    assert load(path) == EXPECTED
    assert not caplog.records


def test_rows_do_not_depend_on_the_block_size(kor_nlu, monkeypatch):
    path = kor_nlu / "KorSTS" / "sts-test.tsv"
    whole = load_kor_sts(path)
    monkeypatch.setattr(tsv, "CHUNK_ROWS", 1000)
    assert load_kor_sts(path).to_dict() == whole.to_dict()
