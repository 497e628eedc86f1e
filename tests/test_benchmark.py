"""bin/benchmark.py as a user runs it: several models of which some fail, several data sets, bad input."""

import csv
import json
import shutil

import numpy as np
import pytest
from matplotlib.image import imread

from in_process import run_here
from kf_deberta.evaluation.scoring import FIGURES

HEADER = "score\tsentence1\tsentence2\n"
TWO_ROWS = HEADER + "1\t가\t나\n2\t다\t라\n"


def rows_of(text):
    """The first table of `text`: model to its other cells."""
    lines = text.split("\n\n")[1].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_everything_at_once(toy_base, repo, tmp_path, monkeypatch, capsys):
    """A model in two variants, one that is missing and one without weights, on two data sets."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").mkdir()
    shutil.copy(toy_base / "config.json", tmp_path / "broken")
    rows = [{"a": f"가 {i}", "b": f"나 {i % 7}", "gold": {"x": i % 50 / 10}} for i in range(30)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status = run_here(
        "bin/benchmark.py",
        *("--model_name_or_path", toy_base, "missing/", "--model_name_or_path", tmp_path / "broken"),
        *("--data", "korsts", "mine.jsonl", "--columns", "a,b", "gold.x", "--precision", "float32", "binary"),
        *("--sts_dataset_path", repo / "sample" / "KorSTS", "--split", "dev", "--bootstrap", 100, "--errors", 2),
        *("--plot", "plots/panels.png", "--output", "all.json", "out/all.csv"),
    )
    captured = capsys.readouterr()
    assert status == 2 and "nan" not in captured.out.lower()

    # 1. a failing model loses nothing of the others
    (korsts, mine), average = captured.out.split("correlations times 100")[1:], captured.out.split("Average over 2")[1]
    names = [str(toy_base), f"{toy_base} (binary)", "missing/", str(tmp_path / "broken")]
    assert list(rows_of(korsts)) == list(rows_of(mine)) == list(rows_of(average)) == names
    assert rows_of(korsts)[names[0]][-1] == "measured" and rows_of(korsts)["missing/"][:8] == ["–"] * 8
    assert all(rows_of(table)[name][8].startswith("failed: ") for table in (korsts, mine) for name in names[2:])
    assert captured.err.count("error: ") == 2 and captured.out.count("95% intervals") == 2

    # 2. cells and averages show the saved figures
    records = json.loads((tmp_path / "all.json").read_text())
    assert [cell.strip("*") for cell in rows_of(korsts)[names[0]][:8]] == [
        f"{100 * records[0][f]:.2f}" for f in FIGURES
    ]
    mean = 100 * np.mean([record["dot_pearson"] for record in records if record["label"] == names[0]])
    assert rows_of(average)[names[0]][6].strip("*") == f"{mean:.2f}" and rows_of(average)["missing/"] == ["–"] * 8

    # 3. saved results have what identifies them
    path = repo / "sample" / "KorSTS" / "sts-dev.tsv"
    assert [record["data"] for record in records[::2]] == [str(path), "mine.jsonl (a, b, gold.x)"] + [str(path)] * 2
    assert [bool(record["error"]) for record in records] == [False] * 4 + [True] * 4
    for record in records:
        assert record["rows"] == (30 if "mine" in record["data"] else len(path.read_bytes().splitlines()) - 1)
        assert len(record["blob_id"]) == 40 and "torch==" in record["versions"] and record["date"].endswith("+00:00")
    with open(tmp_path / "out" / "all.csv", encoding="utf-8", newline="") as file:
        saved = list(csv.DictReader(file))
    assert [float(row["dot_pearson"]) for row in saved[:4]] == [record["dot_pearson"] for record in records[:4]]
    assert [record.get("compared_with") for record in records[:4]] == [None, names[0]] * 2
    assert all(records[0][f"{name}_low"] < records[0][name] < records[0][f"{name}_high"] for name in FIGURES)

    # 4. worst pairs and the figure, of every row that has figures
    assert captured.out.count("\nPairs of ") == 4
    listing = captured.out.split(f" that {names[0]} ranks most wrongly by cosine:")[1].split("\n\n")[1]
    assert len(listing.splitlines()) == 4
    image = imread(tmp_path / "plots" / "panels.png")
    assert image.shape[1] > image.shape[0] > 300 and image[..., :3].std() > 0.05  # panels side by side, not blank
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json", "broken", "mine.jsonl", "out", "plots"]


def test_labels_tell_rows_apart(toy_base, tmp_path, capsys):
    path, output = tmp_path / "pairs.tsv", tmp_path / "out.json"
    path.write_text(HEADER + "".join(f"{i}\t가 {i}\t나 {'다' * i}\n" for i in range(5)), encoding="utf-8")
    flags = ["--model_name_or_path", toy_base, "--data", path, "--output", output, "--scale", "5,0", "--bf16"]
    assert run_here("bin/benchmark.py", *flags, "--prompt", "a, b: ", "--normalize", "--truncate_dims", 8, 16) == 0
    records = json.loads(output.read_text())
    about = f"{toy_base} (bfloat16, normalized, prompt 'a, b: ', first"
    assert [record["label"] for record in records] == [f"{about} 8 dimensions)", f"{about} 16 dimensions)"]
    for record in records:  # of length 1, so the dot product is the cosine
        assert record["dot_pearson"] == pytest.approx(record["cosine_pearson"], abs=1e-6)
    assert "resamples" not in records[0]  # five pairs are too few
    assert run_here("bin/benchmark.py", *flags, "--prompt", "") == 0  # none, which may not be the model's own
    assert f"| {toy_base} (bfloat16, prompt '') |" in capsys.readouterr().out


def test_official_test_file_is_compared_with_published_rows(kor_nlu, toy_base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kor-nlu-datasets").symlink_to(kor_nlu)  # the default path
    flags = ["--model_name_or_path", toy_base, "--reproduces", "upskyy/kf-deberta-multitask", "--bootstrap", 0]
    assert run_here("bin/benchmark.py", *flags, "--output", "out.json") == 0
    (record,) = json.loads((tmp_path / "out.json").read_text())
    assert record["rows"] == 1379 and record["blob_id"] == "d2a7c958d520ed84402c0042142a60d9a18ee3e4"
    assert record["model"] == record["label"] == str(toy_base) and record["revision"] == str(toy_base.resolve())
    out = capsys.readouterr().out
    assert rows_of(out)["kf-deberta-multitask"][1] == "**86.25**"
    assert f"- {toy_base}: NOT reproduced: 0 of eight figures within 0.05 of kf-deberta-multitask's" in out


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        ([], "score\tsentence1\n", "pairs.tsv:1: no column sentence2"),
        ([], HEADER + "2.0\t가\t나\n", "pairs.tsv: all 1 scores are 2; a correlation needs"),
        ([], HEADER + 3 * "2.0\t가\t나\n", "pairs.tsv: all 3 scores are 2"),
        (["--output", "results.txt"], TWO_ROWS, "results.txt: name a file that ends with .json or .csv"),
        (["--plot", "pairs.json"], TWO_ROWS, "pairs.json: name a file that ends with .png or .pdf or .svg"),
        (["--output", "pairs.csv", "--data", "pairs.csv"], TWO_ROWS, "pairs.csv: name a file"),
        (["--columns", "a,b"], TWO_ROWS, "--columns: must be 3 different values for a file of --data"),
        (["--scale", "1,1"], TWO_ROWS, "--scale: must be 2 different values for a file of --data, not [1.0]"),
        (["--scale", "0,nan"], TWO_ROWS, "--scale: must be a number, not nan"),
        (["--precision", "int8,int4"], TWO_ROWS, "--precision: must be float32, int8 or binary, not int4"),
        (["--truncate_dims", "64,0"], TWO_ROWS, "--truncate_dims: must be a whole number from 1, not 0"),
        (["--bf16", "--model_name_or_path", "a", "b.onnx"], TWO_ROWS, "--bf16 has no effect on b.onnx; omit it"),
        (["--revision", "v1", "--model_name_or_path", "b.onnx"], TWO_ROWS, "--revision has no effect on b.onnx"),
        (["--reproduces", "me/mine"], TWO_ROWS, "--reproduces: must be one of upskyy/kf-deberta-multitask, BM-K"),
    ],
)
def test_bad_input_is_one_line(arguments, content, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.tsv").write_text(content, encoding="utf-8")
    assert run_here("bin/benchmark.py", "--data", "pairs.tsv", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err
    assert captured.err.removeprefix("loading libraries\n").count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


def test_flags_about_files_need_one_and_data_is_not_cloned_to_a_typo(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flags, message in (
        (["--scale", "0,1"], "--scale: must be 2 different values for a file of --data"),
        (["--columns", "a,b,c", "--data", "sts17"], "--columns: must be 3 different values for a file of --data"),
        (["--sts_dataset_path", "typo/KorSTS"], "typo: no such directory; give "),
    ):
        assert run_here("bin/benchmark.py", *flags) == 2
        assert message in capsys.readouterr().err


def test_a_device_that_is_not_here_does_not_blame_the_model(toy_base, tmp_path, capsys):
    path = tmp_path / "pairs.tsv"
    path.write_text(TWO_ROWS, encoding="utf-8")
    assert run_here("bin/benchmark.py", "--data", path, "--model_name_or_path", toy_base, "--device", "xpu:9") == 2
    errors = capsys.readouterr().err
    assert "--device xpu:9: cannot be used here" in errors and "cannot be loaded" not in errors
