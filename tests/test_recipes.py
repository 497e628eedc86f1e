"""dev/recipes.py: stages follow each other, the ingredient reaches the scripts, the table says what the runs say."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from kf_deberta.cli import InputError
from kf_deberta.training.trainer import PerObjectiveAdamW


@pytest.fixture
def recipes(repo, monkeypatch):
    monkeypatch.syspath_prepend(str(repo / "dev"))
    import recipes

    return recipes


def process(status):
    """A process that an interrupt reaches once, and that then ends by itself."""
    waits = iter([KeyboardInterrupt, None])

    def wait():
        if error := next(waits):
            raise error
        started.returncode = status

    started = SimpleNamespace(returncode=None, wait=wait)
    return started


def test_a_stage_starts_from_the_one_before_and_runs_once(recipes, monkeypatch, tmp_path):
    calls, status = [], ["unfinished"]

    def train(command, stdout):
        calls.append(command[3:])
        output = Path(command[command.index("--output_dir") + 1])
        run = output / "kor_x-2026-01-01_00-00-00"
        run.mkdir(parents=True, exist_ok=True)
        (run / recipes.RUN_FILE).write_text(json.dumps({"status": status[0], "seed": 3}))
        return process(status=1 if status[0] == "unfinished" else 0)

    monkeypatch.setattr(recipes.subprocess, "Popen", train)
    stages = ["training_nli.py --batch_size 2", "training_sts.py"]
    with pytest.raises(InputError, match="stage0 ended with status 1"):
        recipes.train_recipe(stages, "base", ["--seed", "3"], tmp_path)
    status[0] = "finished"
    model, facts, _ = recipes.train_recipe(stages, "base", ["--seed", "3"], tmp_path)
    first = tmp_path / "stage0" / "kor_x-2026-01-01_00-00-00"
    base = ["--model_name_or_path", "base", "--output_dir", str(tmp_path / "stage0")]
    assert calls[:2] == [
        ["training_nli.py", "--seed", "3", "--batch_size", "2", *base],
        ["training_nli.py", "--seed", "3", "--batch_size", "2", *base, "--resume"],
    ]
    assert calls[2][3:5] == ["--model_name_or_path", str(first)]
    assert model == tmp_path / "stage1" / first.name and facts["seed"] == 3
    recipes.train_recipe(stages, "base", ["--seed", "3"], tmp_path)
    assert len(calls) == 3
    with pytest.raises(InputError, match="stage0: begun with training_nli.py --seed 3"):
        recipes.train_recipe(stages, "base", ["--seed", "4"], tmp_path)


def test_a_stage_of_several_runs_ends_with_their_average(recipes, monkeypatch, tmp_path):
    calls = []

    def run(command, stdout):
        calls.append(command[1:])
        output = Path(command[command.index("--output_dir") + 1])
        if command[1].endswith("average.py"):
            output.mkdir()
            (output / "average.json").write_text(json.dumps({"dev_cosine_spearman": [["x", 80.0], ["average", 81.0]]}))
        else:
            (output / "kor_x").mkdir(parents=True, exist_ok=True)
            (output / "kor_x" / recipes.RUN_FILE).write_text(json.dumps({"status": "finished"}))
        return process(status=0)

    monkeypatch.setattr(recipes.subprocess, "Popen", run)
    stages = ["training_nli.py", "training_sts.py --seed 1 + training_sts.py --seed 2"]
    for _ in range(2):  # the second time all is there
        model, facts, _ = recipes.train_recipe(stages, "base", ["--dataset_path", "data"], tmp_path)
        assert model == tmp_path / "stage1" and facts["best_dev_cosine_spearman"] == 81
    nli, *sts, average = calls
    assert [words[2:6] + words[6:8] for words in sts] == [
        ["training_sts.py", "--dataset_path", "data", "--seed", seed, "--model_name_or_path"] for seed in "12"
    ]
    assert all(str(tmp_path / "stage0" / "kor_x") in words for words in sts)
    runs = [str(tmp_path / f"stage1.{part}" / "kor_x") for part in (0, 1)]
    assert average[1:6] == ["--dataset_path", "data", "--model_name_or_path", *runs]


@pytest.mark.parametrize("text", ["short", "x: training_sts.py &&", "x: nope.py", "x: training_sts.py --prompt 'y"])
def test_a_recipe_that_is_none_is_refused_before_anything_is_trained(run_script, text):
    result = run_script("dev/recipes.py", "--add", text, "--recipes", text.partition(":")[0])
    assert result.returncode == 2 and result.stderr.startswith("error: --add"), result.stderr


def test_the_ingredient_reaches_the_script(recipes, monkeypatch):
    seen = {}

    def script(path, run_name):
        optimizer = PerObjectiveAdamW([torch.nn.Parameter(torch.ones(1))])
        for objective in ("nli", "sts"):
            optimizer.turn_to(objective)
        seen.update(argv=sys.argv, states=len(optimizer.states))

    monkeypatch.setattr(runpy, "run_path", script)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(PerObjectiveAdamW, "turn_to", PerObjectiveAdamW.turn_to)
    recipes.run_stage(["training_sts.py", "--one_adamw", "--seed", "1"])
    assert seen["argv"][0].endswith("training_sts.py") and seen["argv"][1:] == ["--seed", "1"]
    assert seen["states"] == 1


def test_table(recipes, monkeypatch):
    monkeypatch.setattr(recipes, "RESAMPLES", 200)
    generator = np.random.default_rng(1)
    gold = generator.random(40)
    results = {
        name: [
            {"dev": dev, "seconds": 120, "similarities": gold + noise * generator.normal(size=(4, 40))} for _ in "ab"
        ]
        for name, dev, noise in (("published", 80.0, 0.4), ("other", 81.0, 0.2))
    }
    header, _, *rows = recipes.table(results, gold).splitlines()
    rows = {row[0]: row for row in ([cell.strip() for cell in line.strip("|").split("|")] for line in rows)}
    assert list(rows) == ["other", "published"]  # by dev
    values = {name: [entry["similarities"] for entry in entries] for name, entries in results.items()}
    for name, similarities in values.items():
        wanted = [np.mean([f(s[i], gold)[0] for s in similarities]) for i in range(4) for f in (pearsonr, spearmanr)]
        assert rows[name][2:10] == [f"{100 * value:.2f}" for value in wanted]
    draws = np.random.default_rng(0).integers(40, size=(recipes.RESAMPLES, 40))
    mean = {name: [np.mean([spearmanr(s[0][d], gold[d])[0] for s in x]) for d in draws] for name, x in values.items()}
    low, high = np.quantile(100 * (np.array(mean["other"]) - mean["published"]), [0.025, 0.975])
    assert rows["other"][11].endswith(f"({low:+.2f} to {high:+.2f})") and rows["published"][11] == "-"
    assert rows["other"][12] == "2.0"
