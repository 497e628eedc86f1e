"""Facts of the single-objective recipes, of flags and outputs, read off runs of the scripts as a user starts them."""

import argparse
import ast
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import data_util
from kf_deberta.training.flags import parse_flags
from recording import record


def run_with_defaults(module, toy_base, toy_data, output):
    return record(module, ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--logging_steps", 1], output)


@pytest.fixture(scope="module")
def nli_run(toy_base, toy_data, tmp_path_factory):
    import training_nli

    with mock.patch.object(data_util, "load_kor_nli", wraps=data_util.load_kor_nli) as load:
        run = run_with_defaults(training_nli, toy_base, toy_data, tmp_path_factory.mktemp("out"))
    assert load.call_args.kwargs == {"seed": 777}
    return run


@pytest.fixture(scope="module")
def sts_run(toy_base, toy_data, tmp_path_factory):
    import training_sts

    return run_with_defaults(training_sts, toy_base, toy_data, tmp_path_factory.mktemp("out"))


def test_nli_recipe_is_one_epoch_in_full_batches_of_64(nli_run):
    assert [len(step.texts) for step in nli_run.steps] == [64] * (600 // 64)
    loss = nli_run.trainer.loss["nli"]
    assert type(loss).__name__ == "MultipleNegativesRankingLoss"
    assert (loss.scale, loss.similarity_fct.__name__) == (20.0, "cos_sim")


def test_sts_recipe_is_five_epochs_in_batches_of_8(sts_run):
    assert [len(step.texts) for step in sts_run.steps] == [8, 8, 8, 4] * 5
    assert type(sts_run.trainer.loss["sts"]).__name__ == "CosineSimilarityLoss"


def test_sts_loss_cosent_ranks_the_pairs_of_a_batch(toy_base, toy_data, tmp_path):
    import training_sts

    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--max_rounds", 1, "--batch_size", 16]
    loss = record(training_sts, [*flags, "--sts_loss", "cosent"], tmp_path).trainer.loss["sts"]
    generator = np.random.default_rng(0)
    u, v, gold = generator.normal(size=(6, 4)), generator.normal(size=(6, 4)), np.array([0.1, 0.5, 0.5, 0.9, 0.2, 0.0])
    cosines = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    # log(1 + sum of exp(20 (cosine of the lower pair - cosine of the higher pair)))
    wrong = [20 * (cosines[i] - cosines[j]) for i in range(6) for j in range(6) if gold[i] < gold[j]]
    got = loss.compute_loss_from_embeddings([torch.tensor(u), torch.tensor(v)], torch.tensor(gold))
    assert got.item() == pytest.approx(np.log1p(np.exp(wrong).sum()), abs=1e-9)


@pytest.mark.parametrize("name", ["nli", "sts"])
def test_single_recipes_share_seed_optimizer_schedule_and_clipping(name, request):
    run = request.getfixturevalue(f"{name}_run")
    assert {run.trainer.args.seed, run.trainer.batch_samplers[name].seed} == {777}

    optimizer = run.trainer.optimizer.optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)
    names = {id(parameter): name for name, parameter in run.trainer.model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {n: 0.0 if n.endswith("bias") or "LayerNorm" in n else 0.01 for n in names.values()}

    assert run.trainer.args.warmup_steps == 0.1  # 5% of nine steps would be one step too
    total = len(run.steps)
    warmup = -(-total // 10)
    rates = [
        2e-5 * (number / warmup if number < warmup else (total - number) / (total - warmup)) for number in range(total)
    ]
    assert np.allclose([step.learning_rates for step in run.steps], np.array(rates)[:, None], rtol=1e-9, atol=0)

    norms = [row[f"{name}_grad_norm"] for row in run.trainer.state.log_history if "round" in row]
    assert max(norms) > 1
    assert [step.clipped_norm for step in run.steps] == pytest.approx(np.minimum(norms, 1), rel=1e-4)


@pytest.mark.parametrize("name", ["nli", "sts"])
def test_single_recipes_evaluate_at_start_and_epoch_ends_and_keep_the_best(name, request):
    run = request.getfixturevalue(f"{name}_run")
    with (run.directory / "eval" / "similarity_evaluation_sts-dev_results.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = len(run.steps)
    assert [int(row["steps"]) for row in rows] == ([0, steps] if name == "nli" else list(range(0, steps + 1, 4)))
    best = max(rows[1:], key=lambda row: float(row["cosine_spearman"]))
    assert run.trainer.state.best_global_step == int(best["steps"])


def test_output_directory_names(nli_run, sts_run):
    for run, prefix in ((nli_run, "kor_nli_"), (sts_run, "kor_sts_")):
        assert re.fullmatch(prefix + r"toy-base-\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", run.directory.name)


def test_max_rounds_ends_the_run_and_the_schedule_spans_them(toy_base, toy_data, tmp_path):
    import training_multi_task

    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--max_rounds", 5, "--nli_batch_size", 32]
    with mock.patch.object(data_util, "load_kor_nli", wraps=data_util.load_kor_nli) as load:
        run = record(training_multi_task, flags, tmp_path)
    assert load.call_args.kwargs == {"seed": 42}
    assert (run.trainer.batches.rounds, len(run.steps)) == (4, 10)  # an epoch is a pass over STS; NLI has 18 batches
    rates = [step.learning_rates[0] for step in run.steps if step.objective == "sts"]
    assert rates == pytest.approx([0, 2e-5, 2e-5 * 3 / 4, 2e-5 * 2 / 4, 2e-5 / 4])


SHARED_RECIPE = {
    "max_seq_length": 128,
    "learning_rate": 2e-5,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "warmup_steps": 0.1,
    "lr_scheduler_type": "linear",
    "eval_steps": 1000,
}


@pytest.mark.parametrize(
    ("script", "own", "output_prefix"),
    [
        (
            "training_multi_task",
            {"nli_batch_size": 128, "sts_batch_size": 8, "num_epochs": 10, "seed": 42, "scale": 20.0},
            "kor_multi_",
        ),
        ("training_nli", {"batch_size": 64, "num_epochs": 1, "seed": 777, "scale": 20.0}, "kor_nli_"),
        ("training_sts", {"batch_size": 8, "sts_loss": "cosine", "num_epochs": 5, "seed": 777}, "kor_sts_"),
    ],
)
def test_every_number_of_the_recipe_stands_in_the_script_in_a_line_with_a_comment(
    script, own, output_prefix, repo, tmp_path, monkeypatch
):
    source = (repo / f"{script}.py").read_text(encoding="utf-8")
    (recipe,) = [n.value for n in ast.parse(source).body if isinstance(n, ast.Assign) and n.targets[0].id == "RECIPE"]
    assert ast.literal_eval(recipe) == own | SHARED_RECIPE
    lines = [source.splitlines()[key.lineno - 1] for key in recipe.keys]
    assert all(re.fullmatch(r' {4}"\w+": [\w."-]+,  # \w.+', line) for line in lines), lines
    assert len(set(lines)) == len(lines)

    # and a run without flags takes them from there
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script])
    module = __import__(script)
    args = vars(parse_flags(module.__doc__, module.RECIPE, output_prefix))
    defaults = {"output_prefix": output_prefix, "model_name_or_path": "kakaobank/kf-deberta-base"}
    defaults |= {"dataset_path": Path("kor-nlu-datasets"), "output_dir": Path("output"), "dtype": "float32"}
    assert args.items() >= (own | SHARED_RECIPE | defaults).items()
    assert f'output_prefix="{output_prefix}"' in source


def test_equal_seeds_give_equal_runs_whatever_pythonhashseed(toy_base, toy_data, tmp_path, run_script):
    results = []
    for hash_seed in ("1", "2"):
        output = tmp_path / hash_seed
        flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--output_dir", output]
        flags += ["--max_rounds", 3, "--nli_batch_size", 32, "--logging_steps", 1, "--matryoshka_dims", "16,8"]
        result = run_script("training_multi_task.py", *flags, env={"PYTHONHASHSEED": hash_seed}, check=True)
        (directory,) = output.iterdir()
        history = json.loads((directory / "trainer_state.json").read_text())["log_history"]
        losses = [{k: v for k, v in row.items() if "loss" in k or "norm" in k} for row in history if "round" in row]
        csv_rows = (directory / "similarity_evaluation_sts-test_results.csv").read_text()
        results.append((losses, csv_rows, (directory / "model.safetensors").read_bytes()))
    assert len(results[0][0]) == 3
    assert results[0] == results[1]
    check_outputs(directory, result.stdout)


def test_train_sh_best_begins_its_second_stage_with_the_weights_of_the_first(repo, toy_base, toy_data, tmp_path):
    def best(rounds, base=toy_base):
        flags = ["--model_name_or_path", base, "--dataset_path", toy_data, "--max_rounds", str(rounds)]
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "VIRTUAL_ENV": "1"}
        script = [repo / "bin" / "train.sh", "best", *flags]
        return subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)

    result = best(2)
    assert result.returncode == 0, result.stdout + result.stderr
    stages = [(tmp_path / "output" / "best" / stage).glob("kor_*") for stage in ("nli", "sts_1", "sts_2", "sts_3")]
    (nli,), (sts,), *others = stages
    first, second = (json.loads((run / "training_arguments.json").read_text()) for run in (nli, sts))
    assert first["test"]["cosine_spearman"] != first["baseline"]["cosine_spearman"]
    cosine = [name for name in first["test"] if name.startswith("cosine")]
    assert [second["baseline"][name] for name in cosine] == pytest.approx([first["test"][n] for n in cosine], abs=1e-4)
    assert "CoSENTLoss" in (sts / "README.md").read_text()
    model = tmp_path / "output" / "best" / "model"
    scored = dict(json.loads((model / "average.json").read_text())["dev_cosine_spearman"])
    runs = [f"sts_{number}/{run.name}" for number, run in enumerate((sts, *(run for (run,) in others)), start=1)]
    assert list(scored) == [*runs, "the average of their weights"]
    embeddings = SentenceTransformer(str(model), device="cpu").encode(["비가 온다.", "해가 뜬다."])
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(1, abs=1e-6)
    again = best(2)
    assert again.returncode == 0 and again.stdout.count("this run is complete") == 4
    assert again.stdout.endswith("output/best/model: complete\n")
    shutil.copytree(toy_base, tmp_path / "other")
    for other in (best(3), best(2, tmp_path / "other")):
        begun = f"error: output/best/nli was begun with: --model_name_or_path {toy_base}"
        assert other.returncode == 2 and other.stderr.startswith(begun), other.stderr
        assert "stage 2" not in other.stdout


def test_a_finished_run_is_complete_only_for_its_own_base_and_data(run_script, toy_base, toy_data, tmp_path):
    flags = ["--dataset_path", toy_data, "--output_dir", tmp_path / "runs", "--max_rounds", 1]
    run_script("training_sts.py", "--model_name_or_path", toy_base, *flags, check=True)
    (run,) = (tmp_path / "runs").iterdir()
    same, other = tmp_path / "same" / toy_base.name, tmp_path / "other" / toy_base.name
    for folder in (same, other):
        shutil.copytree(toy_base, folder)
    (other / "config.json").write_text((other / "config.json").read_text().replace("{", "{ ", 1))
    for base, status, message in (
        (same, 0, f"{run}: this run is complete"),
        (other, 2, f"error: {other / 'config.json'}: not the file that {run} was trained with"),
        (f"owner/{toy_base.name}", 2, f"error: {run}: --model_name_or_path was {toy_base.name}, is owner/"),
    ):
        result = run_script("training_sts.py", "--resume", run, "--model_name_or_path", base)
        assert result.returncode == status and message in result.stdout + result.stderr
    assert not (run / ".lock").exists()
    elsewhere = run_script("training_sts.py", "--resume", run, cwd=tmp_path / "other")  # has a base of that name
    assert elsewhere.returncode == 0 and "this run is complete" in elsewhere.stdout
    pushed = ["--push_to_hub", "--hub_model_id", "owner/name", "--trust_remote_code"]
    result = run_script("training_sts.py", "--resume", run, *pushed)
    assert result.returncode == 0 and f"hf upload owner/name {run} --exclude" in result.stdout


def test_runs_below_a_base_are_none_of_its_content(toy_base, toy_data, tmp_path):
    from kf_deberta.training.run import content_of

    base = tmp_path / "base"
    shutil.copytree(toy_base, base)
    args = argparse.Namespace(model_name_or_path=str(base), dataset_path=toy_data)
    before = content_of(args, None, ["sts"])
    run = base / "output" / "kor_sts_base"
    shutil.copytree(toy_base, run / "checkpoint-2")
    (run / "training_arguments.json").write_text("{}")
    assert content_of(args, None, ["sts"]) == before and "base config.json" in before
    (base / "training_arguments.json").write_text("{}")  # the base is itself a run
    assert "base config.json" in content_of(args, None, ["sts"])


def check_outputs(directory, stdout):
    """A finished run leaves the model, the eval files, the card, the facts, the curves and says how to go on."""
    facts = json.loads((directory / "training_arguments.json").read_text())
    assert (facts["status"], facts["seed"]) == ("finished", 42)
    assert facts["libraries"]["sentence-transformers"] == "6.2.0"
    assert {"16_cosine_spearman", "8_cosine_spearman", "cosine_spearman"} <= facts["test"].keys()
    for name in (
        "eval/{}_sts-dev_results",
        "{}_sts-test_results",
        "eval/{}_sts-dev-16_results",
        "{}_sts-test-8_results",
    ):
        with (directory / f"{name.format('similarity_evaluation')}.csv").open() as file:
            assert len(next(csv.reader(file))) == 10
    assert (directory / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(directory.glob("checkpoint-*"))
    lines = stdout.strip().splitlines()
    assert lines[-2].startswith("benchmark: python ") and str(directory) in lines[-2]
    assert lines[-1].startswith("export:    python ") and str(directory) in lines[-1]
