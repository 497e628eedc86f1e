"""bin/benchmark.py as a user runs it: several models of which some fail, bad input."""

import csv
import json
import shutil

import matplotlib.pyplot as plt
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from benchmark_script import run_benchmark
from data_util import load_kor_sts
from kf_deberta.evaluation.scoring import FIGURES

HEADER = "genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2\n"


@pytest.fixture(scope="module")
def full_run(toy_base, repo, run_script, tmp_path_factory):
    """One run with everything: a good model in two variants, one that is missing, and a directory without weights."""
    directory = tmp_path_factory.mktemp("benchmark")
    broken = directory / "broken"
    broken.mkdir()
    shutil.copy(toy_base / "config.json", broken)
    result = run_script(
        "bin/benchmark.py",
        *("--model_name_or_path", toy_base, directory / "missing", "--model_name_or_path", broken),
        *("--sts_dataset_path", repo / "sample" / "KorSTS", "--split", "dev", "--precision", "float32,binary"),
        *("--bootstrap", 200, "--errors", 2, "--plot", "plots/panels.png", "--output", "all.json", "out/all.csv"),
        cwd=directory,
    )
    return directory, result


def rows_of(stdout: str) -> dict[str, list[str]]:
    """The first table of a report: model to its other cells."""
    lines = stdout.split("\n\n")[1].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_a_failing_model_loses_nothing_of_the_others(full_run, toy_base):
    directory, result = full_run
    assert result.returncode == 2 and "Traceback" not in result.stderr
    rows = rows_of(result.stdout)
    assert list(rows) == [f"{toy_base}", f"{toy_base} (binary)", f"{directory / 'missing'}", f"{directory / 'broken'}"]
    assert rows[str(toy_base)][-1] == "measured"
    assert rows[str(directory / "missing")][:8] == ["–"] * 8
    assert "not a model directory" in rows[str(directory / "missing")][-1]
    assert "no .safetensors weights" in rows[str(directory / "broken")][-1]
    assert result.stderr.count("error: ") == 2
    assert "nan" not in result.stdout.lower()


def test_figures_are_the_library_evaluators_with_its_defaults(full_run, toy_base, repo):
    directory, result = full_run
    pairs = load_kor_sts(repo / "sample" / "KorSTS" / "sts-dev.tsv")
    evaluator = EmbeddingSimilarityEvaluator(
        *(list(pairs[name]) for name in ("sentence1", "sentence2", "score")),
        similarity_fn_names=["cosine", "euclidean", "manhattan", "dot"],
    )
    metrics = evaluator(SentenceTransformer(str(toy_base), device="cpu"))
    record = json.loads((directory / "all.json").read_text())[0]
    shown = rows_of(result.stdout)[str(toy_base)]
    for name, cell in zip(FIGURES, shown, strict=False):
        similarity, kind = name.split("_")
        # padding differs by batch, and on a few pairs a rounding that swaps two ranks shows in Spearman
        tolerance = 1e-6 if kind == "pearson" else 2e-3
        assert record[name] == pytest.approx(metrics[f"{kind}_{similarity}"], abs=tolerance), name
        assert cell.strip("*") == f"{100 * record[name]:.2f}"


def test_saved_results_have_what_identifies_them(full_run, repo):
    directory, _ = full_run
    records = json.loads((directory / "all.json").read_text())
    path = repo / "sample" / "KorSTS" / "sts-dev.tsv"
    assert [bool(record["error"]) for record in records] == [False, False, True, True]
    for record in records:
        assert record["rows"] == len(path.read_bytes().splitlines()) - 1
        assert len(record["blob_id"]) == 40 and "torch==" in record["versions"] and record["date"].endswith("+00:00")
    with open(directory / "out" / "all.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["dot_pearson"]) for row in rows[:2]] == [record["dot_pearson"] for record in records[:2]]
    assert records[1]["compared_with"] == records[0]["model"]
    for name in FIGURES:
        difference = records[1][name] - records[0][name]
        assert records[1][f"{name}_difference"] == pytest.approx(difference, abs=1e-12)
        assert records[0][f"{name}_low"] < records[0][name] < records[0][f"{name}_high"]
        low, high = (records[1][f"{name}_difference_{end}"] for end in ("low", "high"))
        assert low < difference < high


def test_errors_and_plot(full_run, toy_base):
    directory, result = full_run
    listing = result.stdout.split(f"Pairs that {toy_base} ranks most wrongly by cosine:")[1].split("\n\n")[1]
    assert len(listing.splitlines()) == 4
    image = plt.imread(directory / "plots" / "panels.png")
    assert image.shape[1] > image.shape[0] > 300 and image[..., :3].std() > 0.05  # two panels side by side, not blank
    assert not list((directory / "plots").glob(".*"))


def test_published_model_by_its_hub_name(kor_nlu, toy_base, run_script, tmp_path):
    """The default model and path, served from a hub cache that holds the toy model under the published name."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hf" / "hub" / "models--upskyy--kf-deberta-multitask"
    shutil.copytree(toy_base, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    (tmp_path / "kor-nlu-datasets").symlink_to(kor_nlu)
    result = run_script(
        "bin/benchmark.py", "--output", "hub.json", env={"HF_HOME": str(tmp_path / "hf")}, cwd=tmp_path, check=True
    )
    (record,) = json.loads((tmp_path / "hub.json").read_text())
    assert record["model"] == "upskyy/kf-deberta-multitask" and record["revision"] == commit
    assert record["rows"] == 1379 and record["blob_id"] == "d2a7c958d520ed84402c0042142a60d9a18ee3e4"
    assert rows_of(result.stdout)["kf-deberta-multitask"][1] == "**86.25**"
    assert "upskyy/kf-deberta-multitask: NOT reproduced: 0 of eight figures" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "content", "message"),
    [
        ([], "genre\tscore\tsentence1\n", "pairs.tsv:1: no column sentence2"),
        ([], HEADER + "g\tf\ty\t1\t2.0\t가\t나\n", "pairs.tsv: one sentence pair; a correlation needs at least two"),
        ([], HEADER + 3 * "g\tf\ty\t1\t2.0\t가\t나\n", "pairs.tsv: all 3 scores are 2"),
        (["--bootstrap", "100"], HEADER + "g\tf\ty\t1\t2\t가\t나\ng\tf\ty\t1\t3\t다\t나\n", "--bootstrap needs 10"),
        (["--bootstrap", "7"], HEADER, "--bootstrap: must be 0, or 100 or more, not 7"),
        (["--output", "results.txt"], HEADER, "results.txt: the name must end with .json or .csv"),
    ],
)
def test_bad_input_is_one_line(arguments, content, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.tsv").write_text(content, encoding="utf-8")
    status = run_benchmark("--data", "pairs.tsv", *arguments)
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    assert message in captured.err and captured.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]
