"""Runs that are killed, interrupted, resumed or damaged end like the run that nothing happened to."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FLAGS = ["--num_epochs", 3, "--eval_steps", 3, "--save_steps", 1, "--logging_steps", 1, "--nli_batch_size", 32]


@pytest.fixture(scope="module")
def command(toy_base, toy_data, repo):
    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, *FLAGS]
    return [sys.executable, str(repo / "training_multi_task.py"), *map(str, flags)]


def only(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


def outcome(directory: Path) -> tuple:
    state = json.loads((directory / "trainer_state.json").read_text())
    timing = ("runtime", "per_second", "total_flos", "train_loss")
    history = [{k: v for k, v in row.items() if not any(word in k for word in timing)} for row in state["log_history"]]
    history = [row for row in history if row.keys() - {"epoch", "step"}]
    evaluations = sorted((directory / "eval").glob("*.csv"))
    return history, [path.read_text() for path in evaluations], (directory / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    subprocess.run([*command, "--output_dir", str(output)], check=True, capture_output=True)
    return outcome(only(output))


def start_and_signal(command, output, number, after_checkpoint):
    """Start a run and send `number` as soon as the checkpoint of step `after_checkpoint` or a later one is there."""
    process = subprocess.Popen(
        [*command, "--output_dir", str(output)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        steps = [int(path.name.rsplit("-", 1)[1]) for path in output.glob("*/checkpoint-*")]
        if any(step >= after_checkpoint for step in steps):
            break
        time.sleep(0.005)
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=120)
    return process.returncode, stdout


def test_killed_twice_and_resumed_equals_uninterrupted(command, uninterrupted, tmp_path):
    status, _ = start_and_signal(command, tmp_path, signal.SIGKILL, after_checkpoint=6)
    assert status == -signal.SIGKILL
    directory = only(tmp_path)
    (directory / "unfinished-checkpoint" / "checkpoint-99").mkdir(parents=True, exist_ok=True)  # a kill while saving
    (tmp_path / "copy").mkdir()
    shutil.copytree(directory, tmp_path / "copy" / directory.name)
    subprocess.run([*command, "--output_dir", str(tmp_path), "--resume"], check=True, capture_output=True)
    assert outcome(directory) == uninterrupted

    # the newest checkpoint cut short: the one before it is used, and the run directory may have moved
    moved = tmp_path / "copy" / directory.name
    checkpoints = sorted(moved.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    os.truncate(checkpoints[-1] / "optimizer.pt", 1000)
    resumed = subprocess.run([*command, "--resume", str(moved)], check=True, capture_output=True, text=True)
    assert f"{checkpoints[-1]}: damaged or cut short" in resumed.stdout
    assert outcome(moved) == uninterrupted


def test_sigterm_writes_a_checkpoint_and_names_the_resume_command(command, uninterrupted, tmp_path):
    status, stdout = start_and_signal(command, tmp_path, signal.SIGTERM, after_checkpoint=2)
    assert status == 143
    directory = only(tmp_path)
    words = shlex.split(stdout.strip().splitlines()[-1])
    assert words[words.index("--resume") + 1] == str(directory) and words[1].endswith("training_multi_task.py")
    assert len(list(directory.glob("checkpoint-*"))) <= 2  # the newest and the best

    changed = [*command, "--resume", str(directory), "--learning_rate", "1e-4"]
    refused = subprocess.run(changed, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--learning_rate was 2e-05, is 0.0001" in refused.stderr.strip().splitlines()[-1]

    subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True)
    assert outcome(directory) == uninterrupted


def test_nothing_to_resume_is_an_error(command, tmp_path):
    result = subprocess.run([*command, "--output_dir", str(tmp_path), "--resume"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "no unfinished run with these arguments" in result.stderr
