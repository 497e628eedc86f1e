"""Sentence pairs from five file formats and from the hub: the same rows from each, and what is malformed located."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hub
from benchmark_script import run_benchmark
from kf_deberta.cli import InputError
from kf_deberta.data.pairs import HUB, load_pairs

ROWS = [
    {"sentence1": '그는 "네"라고, 답했다', "sentence2": "비가\u2028온다", "score": 0.0},
    {"sentence1": "나는 간다", "sentence2": "너는\x0b온다 | <b>", "score": 2.6},
    {"sentence1": "주식을 샀다", "sentence2": "주식을 팔았다", "score": 5.0},
]


def write(path, rows, names=("sentence1", "sentence2", "score")):
    """The same rows as a user's own tools write them."""
    if path.suffix == ".tsv":
        lines = ["\t".join(str(value) for value in line) for line in (names, *(row.values() for row in rows))]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([names, *(row.values() for row in rows)])
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_pairs(suffix, tmp_path):
    path = tmp_path / f"pairs{suffix}"
    write(path, ROWS)
    for name in (path, tmp_path):  # the file, and the folder that holds it alone
        pairs = load_pairs(str(name))
        assert pairs.name == str(path) and pairs.note == "" and pairs.revision is None
        assert pairs.sentences1 == [row["sentence1"] for row in ROWS]
        assert pairs.sentences2 == [row["sentence2"] for row in ROWS]
        assert pairs.gold.tolist() == [0.0, 2.6 / 5, 1.0]


def test_other_names_and_another_scale(tmp_path):
    path = tmp_path / "mine.csv"
    write(path, [{"a": "가", "b": "나", "s": -1}, {"a": "다", "b": "라", "s": 0.5}], names=("a", "b", "s"))
    pairs = load_pairs(str(path), ["b", "a", "s"], (-1, 1))
    assert pairs.sentences1 == ["나", "라"] and pairs.gold.tolist() == [0.0, 0.75]
    with pytest.raises(InputError, match=r"mine\.csv: no sentence1 in the first row; name both .* by --columns"):
        load_pairs(str(path))
    with pytest.raises(InputError, match=r"mine\.csv:2: score '-1' is outside 0\.\.5"):
        load_pairs(str(path), ["a", "b", "s"])


def klue(count):
    rows = []
    for i in range(count):
        labels = {"label": i % 50 / 10, "real-label": i % 50 / 10 + 0.003, "binary-label": 0}
        about = {"guid": f"klue-sts-v1_dev_{i:05}", "source": "policy-sampled"}
        rows.append(about | {"sentence1": f"가 {i}", "sentence2": f"나 {i % 7}", "labels": labels})
    return rows


def test_klue_file_is_read_as_it_comes_and_a_shortened_one_is_named(tmp_path):
    path = tmp_path / "klue-sts-v1.1_dev.json"
    write(path, klue(519))
    pairs = load_pairs(str(path))
    assert pairs.gold[1] == pytest.approx(0.103 / 5) and len(pairs.gold) == 519 and pairs.note == ""
    write(path, klue(500))
    assert load_pairs(str(path)).note.startswith("500 rows, the official data 519: scores on this copy are not comp")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.tsv", None, "no such file or data set; give a file, or one of korsts, klue-sts, sts17"),
        ("pairs.txt", "x", "the name must end with .tsv, .csv, .json, .jsonl or .parquet"),
        ("pairs.tsv", "sentence1\tsentence2\n", ":1: no column score"),
        ("pairs.csv", "sentence1,sentence2,score\n가,나,1\n다,,x\n", ":3: score 'x' is not a number"),
        ("pairs.csv", "sentence1,sentence2,score\n가,나,1\n,라,1\n", ":3: sentence1 is empty"),
        ("pairs.csv", 'sentence1,sentence2,score\n"가,나,1\n', "cannot be read as .csv (unexpected end of data)"),
        ("pairs.csv", b"\xff\xfe", "cannot be read as .csv ('utf-8' codec"),
        ("pairs.csv", "", ":1: no rows"),
        ("pairs.json", "[1]", "no sentence1 in the first row"),
        ("pairs.json", "7", "cannot be read as .json ('int' object is not iterable)"),
        ("pairs.json", "[" * 99999, "cannot be read as .json (maximum recursion depth"),
        ("pairs.json", json.dumps([*ROWS, {"sentence1": 5}]), "pairs.json record:4: score 'None' is not a number"),
        ("pairs.json", json.dumps([*ROWS, ROWS[0] | {"score": True}]), "record:4: score 'True' is not a number"),
        ("pairs.json", json.dumps([*ROWS, ROWS[0] | {"sentence2": 5}]), "record:4: sentence2 is not text"),
        (
            "pairs.json",
            json.dumps([*ROWS, ROWS[0] | {"sentence2": "\ud800"}]),
            "record:4: sentence2 holds half a char",
        ),
        ("pairs.jsonl", "{}\n{", "cannot be read as .jsonl (Expecting property name"),
        ("pairs.jsonl", json.dumps(ROWS[0]) + "\n\n" + '{"score": 1e999}', "pairs.jsonl:3: score 'inf' is outside"),
        ("pairs.parquet", "PAR1", "cannot be read as .parquet"),
    ],
)
def test_what_cannot_be_used_is_one_line_with_its_place(name, content, message, tmp_path, capsys):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run_benchmark("--data", path) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(f"error: {tmp_path}") and message in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--columns", "a,b"], "--columns: must be three names, of both sentences and the score, not a,b"),
        (["--scale", "1,0", "--data", "x"], "--scale: must be the lowest and the highest score, such as 0,1, not 1,0"),
        (["--scale", "0,nan", "--data", "x"], "--scale: must be a finite number, not nan"),
        (["--columns", "a,b,c", "--data", "sts17"], "--columns and --scale describe files"),
        (["--split", "dev", "--data", "x.tsv"], "--split dev is of korsts"),
        (["--split", "dev", "--data", "sts17"], "--split dev is of korsts"),
        (["--bf16", "--model_name_or_path", "a", "b.onnx"], "b.onnx: a graph runs in the precision"),
        (["--revision", "v1", "--model_name_or_path", "b.onnx"], "graph is all that is loaded; leave out --revision"),
        (
            ["--trust_remote_code", "--no_fast_attention", "--model_name_or_path", "a.onnx", "b.onnx"],
            "a.onnx: the graph is all that is loaded; leave out --trust_remote_code, --no_fast_attention",
        ),
        (["--published", "--seed", "3", "--bf16"], "--published prints what was saved; leave out --bf16, --seed"),
        (["--data", "sts17"], "sts17: mteb/sts17-crosslingual-sts is neither cached nor to be had from the hub"),
        (["--data", "."], ".: found none; give a folder that holds one data file"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_benchmark(*arguments) == 2
    assert message in capsys.readouterr().err


def test_several_data_sets_give_a_table_each_and_their_average(toy_base, repo, tmp_path, capsys):
    sample = repo / "sample" / "KorSTS"
    write(tmp_path / "mine.jsonl", klue(30))
    arguments = ["--model_name_or_path", toy_base, tmp_path / "none", "--data", "korsts", tmp_path / "mine.jsonl"]
    arguments += ["--sts_dataset_path", sample, "--split", "dev", "--output", tmp_path / "out.json", "--errors", 1]
    arguments += ["--plot", tmp_path / "plot.png", "--bootstrap", 100]
    assert run_benchmark(*arguments) == 2  # of the model that is not there
    printed = capsys.readouterr().out
    records = json.loads((tmp_path / "out.json").read_text())
    assert [record["data"] for record in records] == 2 * [str(sample / "sts-dev.tsv"), str(tmp_path / "mine.jsonl")]
    assert [bool(record["error"]) for record in records] == [False, False, True, True]
    average = printed.split("Average over 2 data sets:")[1].split("\n\n")[1].splitlines()
    mean = 100 * np.mean([record["cosine_spearman"] for record in records[:2]])
    assert average[2].split(" | ")[2] == f"**{mean:.2f}**" and average[3].split(" | ")[2] == "–"
    assert printed.count("Pairs on ") == 2 and printed.count("| failed: ") == 2 and printed.count("95% intervals") == 2
    assert "compared_with" not in records[1]  # the first on its own data


class DataHub(hub.Handler):
    """The hub's routes for data sets: those of models under another prefix, and one more."""

    def _get(self, path):
        super()._get(path.removeprefix("datasets/").replace("/datasets/", "/models/"))


def test_data_by_name_from_the_hub_and_then_from_its_cache(repo, tmp_path):
    rows, data = klue(500), HUB["klue-sts"]
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    card = b"---\nconfigs:\n- config_name: sts\n  data_files:\n  - split: validation\n    path: validation-*\n---\n"
    files = {"README.md": card, "validation-00000-of-00001.parquet": parquet.getvalue()}
    code = "import json, sys; from kf_deberta.data.pairs import load_pairs\n"
    code += "for line in sys.stdin:\n pairs = load_pairs('klue-sts')\n"
    code += " print(json.dumps(vars(pairs) | {'gold': pairs.gold.tolist()}), flush=True)"
    with hub.serve() as server:
        server.RequestHandlerClass = DataHub
        server.add(data.repository, files)
        server.repositories[data.repository].commits[data.revision] = files
        server.add(data.repository, {"README.md": b"a later commit"})
        environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": server.url}
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=repo,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        process.stdin.write("\n")
        process.stdin.flush()
        loaded = json.loads(process.stdout.readline())
        assert server.asked(data.revision)
    assert (loaded["name"], loaded["revision"]) == ("klue-sts", data.revision)
    assert loaded["note"].startswith("500 rows, the official data 519: ")
    assert loaded["sentences1"] == [row["sentence1"] for row in rows]
    assert loaded["sentences2"] == [row["sentence2"] for row in rows]
    assert loaded["gold"] == pytest.approx([row["labels"]["real-label"] / 5 for row in rows])
    assert json.loads(process.communicate("\n")[0]) == loaded  # from the cache: the hub is gone
