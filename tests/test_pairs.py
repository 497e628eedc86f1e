"""Sentence pairs from five file formats and from the hub: the same rows from each, and what is malformed located."""

import csv
import json
import unicodedata

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from kf_deberta.data.official import git_blob_id
from kf_deberta.data.pairs import load_pairs
from kf_deberta.errors import InputError

ROWS = [
    {"sentence1": '그는 "네"라고, 답했다', "sentence2": "비가\u2028온다", "score": 0.0},
    {"sentence1": "나는 간다", "sentence2": "너는\x0b온다 | <b>", "score": 2.6},
    {"sentence1": "주식을 샀다", "sentence2": "주식을 팔았다", "score": 5.0},
]
HEADER = "sentence1,sentence2,score\n"


def write(path, rows):
    """The same rows as a user's own tools write them."""
    if path.suffix == ".tsv":
        lines = ["\t".join(str(value) for value in line) for line in (rows[0], *(row.values() for row in rows))]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([rows[0], *(row.values() for row in rows)])
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name", ["pairs.tsv", "pairs.csv", "pairs.json", "pairs.jsonl", "pairs.parquet", "lines.json"]
)
def test_every_format_gives_the_same_pairs(name, tmp_path, capsys):
    path = tmp_path / name
    write(tmp_path / "lines.jsonl", ROWS).rename(path) if name == "lines.json" else write(path, ROWS)
    pairs = load_pairs(str(path))
    assert (pairs.name, pairs.note, pairs.revision, pairs.blob_id) == (str(path), "", None, git_blob_id(path))
    assert pairs.sentences1 == [row["sentence1"] for row in ROWS]
    assert pairs.sentences2 == [row["sentence2"] for row in ROWS]
    assert pairs.gold.tolist() == [0.0, 2.6 / 5, 1.0]

    decomposed = {key: unicodedata.normalize("NFD", value) for key, value in ROWS[2].items() if key != "score"}
    write(path, [decomposed | {"score": 1}])
    assert load_pairs(str(path)).sentences1 == ["주식을 샀다"]
    assert capsys.readouterr().err == f"{path}: decomposed Hangul (NFD) is composed\n"


def klue(count):
    labels = [{"label": i % 50 / 10, "real-label": i % 50 / 10 + 0.003, "binary-label": 0} for i in range(count)]
    return [{"guid": i, "sentence1": f"가 {i}", "sentence2": f"나 {i % 7}", "labels": labels[i]} for i in range(count)]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_nested_fields_and_two_gold_columns_of_one_file(suffix, tmp_path):
    path = str(write(tmp_path / f"klue{suffix}", klue(60)))
    real, binary = (load_pairs(path, ["sentence1", "sentence2", f"labels.{name}"]) for name in ("real-label", "label"))
    assert real.gold[1] == pytest.approx(0.103 / 5) and binary.gold[1] == pytest.approx(0.1 / 5)
    assert real.name == f"{path} (sentence1, sentence2, labels.real-label)" != binary.name
    with pytest.raises(InputError, match="no column score in 'guid, sentence1, sentence2, labels.label, labels.real"):
        load_pairs(path)


def test_another_scale_and_a_reversed_one(tmp_path):
    path = str(write(tmp_path / "mine.csv", [{"a": "가", "b": "나", "s": -1}, {"a": "다", "b": "라", "s": 0.5}]))
    pairs = load_pairs(path, ["b", "a", "s"], (-1, 1))
    assert pairs.sentences1 == ["나", "라"] and pairs.gold.tolist() == [0.0, 0.75]
    assert load_pairs(path, ["a", "b", "s"], (1, -1)).gold.tolist() == [1.0, 0.25]
    with pytest.raises(InputError, match=r"mine\.csv:2: score '-1' is not a number from 0 to 5"):
        load_pairs(path, ["a", "b", "s"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", "", "no such data; give korsts, klue-sts, sts17, or a file (.tsv, .csv, .json, .jsonl, .parquet)"),
        ("pairs.tsv", "sentence1\tsentence2\n", ":1: no column score"),
        ("pairs.csv", HEADER + "가,나,1\n다,라,x\n", ":3: score 'x' is not a number"),
        ("pairs.csv", HEADER + "가,나,1\n,라,1\n", ":3: the first sentence is empty"),
        ("pairs.csv", HEADER + "가,아니요, 나,1\n", ":2: 4 columns, the header has 3"),
        ("pairs.csv", "score," + HEADER + "1,가,나,1\n", ":1: more than one column score"),
        ("pairs.csv", HEADER.replace(",", ";") + "가;나;1\n", "no column sentence1 in 'sentence1;sentence2;score'"),
        ("pairs.csv", HEADER.replace(",", "\t") + "가\t나\t1\n", "in 'sentence1\\tsentence2\\tscore'"),
        ("pairs.csv", HEADER + '"가,나,1\n', "not CSV (unexpected end of data)"),
        ("pairs.csv", (HEADER + "가,나,1\n").encode("cp949"), ":2: not UTF-8, perhaps CP949"),
        ("pairs.csv", "", ":1: no column sentence1"),
        ("pairs.csv", HEADER, "no rows"),
        ("pairs.json", "[1]", "not a list of JSON objects"),
        ("pairs.json", "7", "not a list of JSON objects"),
        ("pairs.json", "[" * 99999, "not a list of JSON objects or one object per line (maximum recursion depth"),
        ("pairs.json", json.dumps({"sentence1": {"0": "가"}}), ":1: no column sentence1 in 'sentence1.0'"),
        ("pairs.json", json.dumps([*ROWS, {"sentence1": "가", "sentence2": "나"}]), ":4: score 'nan' is not a number"),
        ("pairs.json", json.dumps([*ROWS, ROWS[0] | {"score": True}]), ":4: score 'True' is not a number"),
        ("pairs.json", json.dumps([*ROWS, ROWS[0] | {"sentence2": 5}]), ":4: the second sentence is empty or no text"),
        ("pairs.jsonl", "{}\n{", "not a list of JSON objects or one object per line (Expecting property name"),
        ("pairs.jsonl", json.dumps(ROWS[0]) + "\n\n" + '{"score": 1e999}', "pairs.jsonl:3: the first sentence is"),
        ("pairs.parquet", "PAR1", "not Parquet"),
    ],
)
def test_what_cannot_be_used_is_one_line_with_its_place(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        load_pairs(str(path))
    assert str(error.value).startswith(str(path)) and message in str(error.value) and "\n" not in str(error.value)


def test_data_by_name_comes_from_the_hub_at_its_commit(monkeypatch):
    asked = []
    rows = Dataset.from_list(klue(50))
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: asked.append((names, options)) or rows)
    pairs = load_pairs("klue-sts")
    commit = "349481ec73fff722f88e0453ca05c77a447d967c"
    assert asked == [((), {"path": "klue/klue", "name": "sts", "split": "validation", "revision": commit})]
    assert (pairs.name, pairs.revision, pairs.blob_id) == ("klue-sts", commit, None)
    assert pairs.sentences1 == rows["sentence1"][:] and pairs.sentences2 == rows["sentence2"][:]
    assert pairs.gold == pytest.approx([row["labels"]["real-label"] / 5 for row in rows])


def test_data_of_the_hub_that_is_not_cached_is_one_line(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="sts17: mteb/sts17-crosslingual-sts is not cached and cannot be downloaded"):
        load_pairs("sts17")
