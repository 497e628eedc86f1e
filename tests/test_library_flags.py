"""Every library flag that is offered works from the command line to the trained model; all others are refused."""

import json
import math
import os
import sys
from dataclasses import fields

import numpy as np
import pytest
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import TrainerCallback

import training_multi_task
import training_sts
from kf_deberta.cli import InputError
from kf_deberta.training.flags import (
    ENVIRONMENT,
    LIBRARY_FLAGS,
    RECIPE_FLAGS,
    parse_flags,
    training_parser,
)
from recording import record

ROUNDS = 5


@pytest.fixture(scope="module")
def train(toy_base, toy_data, tmp_path_factory):
    """Train the STS recipe for a few rounds with more flags; return the recording and the weights' bytes."""

    def call(*flags):
        base = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--max_rounds", ROUNDS]
        run = record(training_sts, [*base, "--logging_steps", 1, *flags], tmp_path_factory.mktemp("out"))
        return run, (run.directory / "model.safetensors").read_bytes()

    return call


@pytest.fixture(scope="module")
def plain(train):
    return train()


def flags_of(monkeypatch, tmp_path, *flags):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["training_multi_task.py", *flags])
    return parse_flags(training_multi_task.__doc__, training_multi_task.RECIPE, "kor_multi_")


def test_all_other_flags_of_the_library_are_refused(monkeypatch, tmp_path):
    parser = training_parser("", training_multi_task.RECIPE, "kor_multi_")
    ours = {option.removeprefix("--") for option in parser._option_string_actions}
    assert set(LIBRARY_FLAGS) | {"hub_token"} <= ours
    library = {field.name for field in fields(SentenceTransformerTrainingArguments)}
    offered = {*LIBRARY_FLAGS, *RECIPE_FLAGS, "hub_token"}
    # the same names with the same meaning, in rounds instead of steps, and what is a run's own
    assert library & ours <= offered | {"output_dir", "save_steps", "logging_steps"}
    refused = sorted(library - ours)
    assert len(refused) > 90
    for name in refused:
        with pytest.raises(InputError, match=f"--{name}"):
            flags_of(monkeypatch, tmp_path, f"--{name}", "1")


def test_what_saves_memory_or_output_changes_no_weight(train, plain):
    run, weights = train("--gradient_checkpointing", "--dataloader_num_workers", 1, "--disable_tqdm")
    assert run.trainer.model[0].model.is_gradient_checkpointing and run.trainer.args.dataloader_num_workers == 1
    assert not any("Progress" in type(c).__name__ for c in run.trainer.callback_handler.callbacks)
    assert weights == plain[1]


def test_decay_clipping_warm_up_and_cosine(train, plain):
    flags = ["--weight_decay", 0.3, "--max_grad_norm", 0.5, "--warmup_steps", 2, "--lr_scheduler_type", "cosine"]
    run, weights = train(*flags, "--learning_rate", 1e-3)
    share = [number / 2 for number in range(2)]
    share += [(1 + math.cos(math.pi * number / (ROUNDS - 2))) / 2 for number in range(ROUNDS - 2)]
    rates = [step.learning_rates[0] for step in run.steps]
    assert np.allclose(rates, 1e-3 * np.array(share), rtol=1e-9)
    assert {group["weight_decay"] for group in run.trainer.optimizer.param_groups} == {0.3, 0.0}
    norms = [row["sts_grad_norm"] for row in run.trainer.state.log_history if "round" in row]
    assert max(norms) > 0.5
    assert [step.clipped_norm for step in run.steps] == pytest.approx(np.minimum(norms, 0.5), rel=1e-4)
    assert weights != plain[1]


def test_constant_rate_after_warm_up(train):
    run, _ = train("--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", 0.4)
    assert [step.learning_rates[0] for step in run.steps] == pytest.approx([0, 1e-5, 2e-5, 2e-5, 2e-5])


def test_reports_go_to_the_named_integration_under_the_run_name(train, plain, monkeypatch):
    from transformers.integrations import integration_utils

    seen = []

    class Report(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append((args.run_name, logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Report)
    _, weights = train("--report_to", "wandb", "--run_name", "금융 1")
    assert {name for name, _ in seen} == {"금융 1"}
    assert sum("sts_loss" in logs for _, logs in seen) == ROUNDS
    assert weights == plain[1]


def test_a_compiled_model_is_trained_saved_and_scored(train, plain, monkeypatch):
    import torch._dynamo

    monkeypatch.setattr(torch._dynamo.config, "disable", True)  # compiling itself takes minutes on a CPU
    run, weights = train("--torch_compile")
    assert run.trainer.args.torch_compile
    assert weights == plain[1]
    assert json.loads((run.directory / "training_arguments.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_accelerates_environment_changes_no_recipe_silently(name, monkeypatch, tmp_path):
    flags_of(monkeypatch, tmp_path)
    for value in (ENVIRONMENT[name], ENVIRONMENT[name].upper(), ""):  # what accelerate launch sets by itself
        monkeypatch.setenv(name, value)
        flags_of(monkeypatch, tmp_path)
    monkeypatch.setenv(name, "bf16" if "PRECISION" in name else "inductor" if "DYNAMO" in name else "4")
    with pytest.raises(InputError, match=f"{name}=.* in the environment would change the recipe; unset it"):
        flags_of(monkeypatch, tmp_path)
    if "PRECISION" in name:
        assert flags_of(monkeypatch, tmp_path, "--bf16").bf16


def test_the_hub_token_is_in_no_argument(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "another")
    flags = ["--push_to_hub", "--hub_model_id", "owner/model", "--hub_token", "hf_secret"]
    args = flags_of(monkeypatch, tmp_path, *flags)
    assert os.environ["HF_TOKEN"] == "hf_secret" and "hf_secret" not in str(args)
