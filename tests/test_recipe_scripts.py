"""Facts of the single-objective recipes, of flags and outputs, read off runs of the scripts as a user starts them."""

import csv
import json
import re

import pytest
from recording import record


@pytest.fixture(scope="module")
def nli_run(toy_base, toy_data, tmp_path_factory):
    import training_nli

    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data]
    return record(training_nli, flags, tmp_path_factory.mktemp("out"))


def test_nli_recipe_is_one_epoch_in_full_batches_of_64(nli_run):
    assert [len(step.texts) for step in nli_run.steps] == [64] * (600 // 64)
    assert type(nli_run.trainer.loss["nli"]).__name__ == "MultipleNegativesRankingLoss"


def test_nli_recipe_seed_777_and_warmup(nli_run):
    assert nli_run.trainer.args.seed == 777
    rates = [step.learning_rates[0] for step in nli_run.steps]
    assert rates[0] == 0 and rates[1] == pytest.approx(2e-5)  # one warm-up step of nine


def test_nli_output_directory_name(nli_run):
    assert re.fullmatch(r"kor_nli_toy-base-\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", nli_run.directory.name)


def test_sts_recipe_is_five_epochs_in_batches_of_8(toy_base, toy_data, tmp_path):
    import training_sts

    run = record(training_sts, ["--model_name_or_path", toy_base, "--dataset_path", toy_data], tmp_path)
    assert [len(step.texts) for step in run.steps] == [8, 8, 8, 4] * 5
    assert run.trainer.args.seed == 777
    assert type(run.trainer.loss["sts"]).__name__ == "CosineSimilarityLoss"


def test_max_rounds_ends_the_run_and_the_schedule_spans_them(toy_base, toy_data, tmp_path):
    import training_multi_task

    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--max_rounds", 5, "--nli_batch_size", 32]
    run = record(training_multi_task, flags, tmp_path)
    rates = [step.learning_rates[0] for step in run.steps if step.objective == "sts"]
    assert rates == pytest.approx([0, 2e-5, 2e-5 * 3 / 4, 2e-5 * 2 / 4, 2e-5 / 4])


@pytest.mark.parametrize(
    ("script", "defaults"),
    [
        (
            "training_multi_task",
            {"nli_batch_size": 128, "sts_batch_size": 8, "num_epochs": 10, "seed": 42, "output_prefix": "kor_multi_"},
        ),
        ("training_nli", {"batch_size": 64, "num_epochs": 1, "seed": 777, "output_prefix": "kor_nli_"}),
        ("training_sts", {"batch_size": 8, "num_epochs": 5, "seed": 777, "output_prefix": "kor_sts_"}),
    ],
)
def test_defaults_are_the_published_values(script, defaults, monkeypatch):
    module = __import__(script)
    seen = {}

    class ParsedError(Exception):
        pass

    def stop(parser, **recipe):
        seen.update(vars(parser.parse_args([])))
        raise ParsedError

    monkeypatch.setattr(module, "parse_recipe", stop)
    with pytest.raises(ParsedError):
        module.main()
    shared = {"max_seq_length": 128, "eval_steps": 1000, "learning_rate": 2e-5}
    shared |= {"model_name_or_path": "kakaobank/kf-deberta-base", "dataset_path": "kor-nlu-datasets"}
    assert seen.items() >= (defaults | shared).items()


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
        csv_rows = (directory / "eval" / "similarity_evaluation_sts-test_results.csv").read_text()
        results.append((losses, csv_rows, (directory / "model.safetensors").read_bytes()))
    assert len(results[0][0]) == 3
    assert results[0] == results[1]
    check_outputs(directory, result.stdout)


def check_outputs(directory, stdout):
    """A finished run leaves the model, the eval files, the card, the facts, the curves and says how to go on."""
    facts = json.loads((directory / "training_arguments.json").read_text())
    assert (facts["status"], facts["seed"]) == ("finished", 42)
    assert facts["libraries"]["sentence-transformers"] == "6.2.0"
    assert {"16_cosine_spearman", "8_cosine_spearman", "cosine_spearman"} <= facts["test"].keys()
    for name in ("sts-dev", "sts-test", "sts-dev-16", "sts-test-8"):
        with (directory / "eval" / f"similarity_evaluation_{name}_results.csv").open() as file:
            assert len(next(csv.reader(file))) == 10
    assert (directory / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(directory.glob("checkpoint-*"))
    lines = stdout.strip().splitlines()
    assert lines[-2].startswith("benchmark: python ") and str(directory) in lines[-2]
    assert lines[-1].startswith("export:    python ") and str(directory) in lines[-1]
