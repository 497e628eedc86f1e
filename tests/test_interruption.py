"""Signals at chosen steps, several resumes, damaged checkpoints and locks, in this process."""

import fcntl
import json
import os
import signal
import sys

import pytest

import training_multi_task
from kf_deberta.cli import run
from kf_deberta.training.callbacks import RecipeCallback
from kf_deberta.training.run import _locks

ROUNDS = 8  # two epochs of four rounds; an evaluation after rounds 3, 4, 7 and 8; a step is half a round


@pytest.fixture
def call(monkeypatch, capsys, toy_base, toy_data):
    """Run the multi-task script, with a signal in the step `at`; return its exit status and the captured output."""

    def start(output, *flags, at=None, number=signal.SIGTERM):
        words = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--nli_batch_size", 128]
        words += ["--num_epochs", 2, "--eval_steps", 3, "--learning_rate", 1e-3, "--output_dir", output, *flags]
        monkeypatch.setattr(sys, "argv", ["training_multi_task.py", *map(str, words)])
        original = RecipeCallback.on_step_end

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == at:
                os.kill(os.getpid(), number)
            return original(self, args, state, control, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(RecipeCallback, "on_step_end", on_step_end)
            with pytest.raises(SystemExit) as stopped:
                run(training_multi_task.main)
        _locks.clear()  # what the end of a process does
        return stopped.value.code or 0, capsys.readouterr()

    return start


def outcome(output):
    (directory,) = output.iterdir()
    csv = (directory / "eval" / "similarity_evaluation_sts-dev_results.csv").read_text()
    return csv, (directory / "model.safetensors").read_bytes()


@pytest.fixture
def whole(call, tmp_path):
    assert call(tmp_path / "whole")[0] == 0
    return outcome(tmp_path / "whole")


def test_signals_at_evaluations_inside_rounds_and_at_the_end(call, whole, tmp_path):
    # after 6: an evaluation inside an epoch; 8: an epoch's end; 11: inside a round; 16: the last step of all
    output = tmp_path / "cut"
    assert call(output, at=6)[0] == 143
    for at, number, status in ((8, signal.SIGINT, 130), (11, signal.SIGTERM, 143), (16, signal.SIGTERM, 143)):
        assert call(output, "--resume", at=at, number=number)[0] == status
    assert call(output, "--resume")[0] == 0
    assert outcome(output) == whole


def test_resuming_twice_from_one_checkpoint_is_the_same(call, whole, tmp_path, monkeypatch):
    output = tmp_path / "cut"
    assert call(output, at=11)[0] == 143
    (directory,) = output.iterdir()
    moved = directory.rename(tmp_path / "cut" / "another-name-2026-01-01_00-00-00")

    def killed(self, *args, **kwargs):
        raise KeyboardInterrupt  # before another checkpoint is written

    with monkeypatch.context() as patch:
        patch.setattr(RecipeCallback, "on_epoch_end", killed)
        assert call(output, "--resume", moved)[0] == 130
    status, captured = call(output, "--resume", moved)
    assert status == 0 and "resuming from" in captured.out and "damaged" not in captured.out
    assert outcome(output) == whole


def test_a_damaged_best_checkpoint_is_noticed_before_training(call, whole, tmp_path):
    output = tmp_path / "cut"
    assert call(output, at=11)[0] == 143
    (directory,) = output.iterdir()
    state = json.loads((directory / "checkpoint-11" / "trainer_state.json").read_text())
    weights = directory / f"checkpoint-{state['best_global_step']}" / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))  # the right size, the wrong bytes
    status, captured = call(output, "--resume")
    assert status == 0 and "is damaged" in captured.out and "starts anew" in captured.out
    assert outcome(output) == whole


def test_a_run_that_is_alive_is_not_resumed(call, tmp_path):
    output = tmp_path / "cut"
    assert call(output, at=3)[0] == 143
    (directory,) = output.iterdir()
    with (directory / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, captured = call(output, "--resume", directory)
        assert status == 2 and "still running in another process" in captured.err
        assert "no unfinished run" in call(output, "--resume")[1].err


def test_a_run_of_another_script_is_refused(call, tmp_path):
    output = tmp_path / "cut"
    assert call(output, at=3)[0] == 143
    (directory,) = output.iterdir()
    path = directory / "training_arguments.json"
    path.write_text(path.read_text().replace("training_multi_task.py", "training_nli.py"))
    status, captured = call(output, "--resume", directory)
    assert status == 2 and "a run of training_nli.py" in captured.err


def test_constant_dev_scores_are_refused_before_training(call, toy_data, tmp_path):
    import shutil

    data = shutil.copytree(toy_data, tmp_path / "data")
    path = data / "KorSTS" / "sts-dev.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    path.write_text("\n".join("\t".join([*row[:4], "2.0" if n else row[4], *row[5:]]) for n, row in enumerate(rows)))
    status, captured = call(tmp_path / "out", "--dataset_path", data)
    assert status == 2 and "sts-dev.tsv: a correlation needs at least two different scores" in captured.err
    assert not (tmp_path / "out").exists()


def test_max_rounds_never_trains_longer_than_the_epochs(call, tmp_path):
    assert call(tmp_path / "out", "--max_rounds", 50)[0] == 0
    (directory,) = (tmp_path / "out").iterdir()
    assert json.loads((directory / "trainer_state.json").read_text())["global_step"] == 2 * ROUNDS
