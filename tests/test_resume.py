"""Runs that are stopped, killed, damaged or out of disk go on to the end of the run that nothing happened to."""

import fcntl
import json
import os
import pickle
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from in_process import run_here
from kf_deberta.training import loop
from zoo import RunsCode

FLAGS = ["--num_epochs", 2, "--eval_steps", 3, "--logging_steps", 1, "--learning_rate", 1e-3]  # 8 rounds
FLAGS += ["--nli_batch_size", 16]


def train(script, *flags, at=None, number=signal.SIGTERM):
    """Run a script here, with a signal before step `at`; returns its exit status and the objectives of its steps."""
    done, original = [], loop.step

    def step(model, objective, *rest):
        done.append(objective.name)
        if len(done) == at:
            os.kill(os.getpid(), number)
        return original(model, objective, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "step", step)
        return run_here(script, *flags), done


@pytest.fixture
def call(toy_base, toy_data, capsys):
    """Run the multi-task script, in which a round has two steps; returns its exit status and what it printed."""

    def start(output, *flags, bare=False, **signals):
        words = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, *FLAGS, "--output_dir", output]
        return train("training_multi_task.py", *([] if bare else words), *flags, **signals)[0], capsys.readouterr()

    return start


def only(output: Path) -> Path:
    (directory,) = output.iterdir()
    return directory


def outcome(directory: Path) -> tuple:
    facts = json.loads((directory / "results.json").read_text())
    log = json.loads((directory / "log.json").read_text())
    files = [*sorted(directory.glob("eval/*.csv")), *directory.glob("*.csv"), directory / "model.safetensors"]
    return log, facts["test"], facts["dev"], [path.read_bytes() for path in files]


@pytest.fixture(scope="module")
def whole(toy_base, toy_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    words = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, *FLAGS, "--output_dir", output]
    assert run_here("training_multi_task.py", *words) == 0
    return outcome(only(output))


def test_signals_at_evaluations_between_them_and_in_the_last_round(call, whole, tmp_path):
    status, captured = call(tmp_path, at=6)
    assert status == 143
    directory = only(tmp_path)
    words = shlex.split(captured.out.strip().splitlines()[-1])
    assert words[:1] == ["python"] and words[-2:] == ["--resume", str(directory)]
    for at, number, status in ((2, signal.SIGINT, 130), (4, signal.SIGHUP, 129), (4, signal.SIGTERM, 143)):
        assert call(tmp_path, "--resume", at=at, number=number)[0] == status
    assert len(list(directory.glob("checkpoint-*/moments.pt"))) <= 2
    moved = directory.rename(tmp_path / "moved-2026-01-01_00-00-00")
    assert call(None, "--resume", moved, bare=True)[0] == 0
    assert outcome(moved) == whole


def test_a_run_killed_and_resumed_by_processes_of_other_string_hashes_is_the_same(
    repo, whole, toy_base, toy_data, tmp_path
):
    script = str(repo / "training_multi_task.py")
    words = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, *FLAGS, "--save_steps", 1]
    command = [sys.executable, script, *map(str, words), "--output_dir", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONHASHSEED": "1"}) as process:
        while process.poll() is None and not list(tmp_path.glob("*/checkpoint-5")):
            time.sleep(0.005)
        process.kill()
    directory = only(tmp_path)
    (directory / ".part-checkpoint-99").mkdir()  # killed while it was written
    command = [sys.executable, script, "--resume", str(directory)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONHASHSEED": "7"}, cwd="/")
    assert outcome(directory) == whole
    assert not list(directory.glob("checkpoint-*")) and not list(directory.glob(".*"))


DAMAGES = {
    "truncated": lambda checkpoint, made: os.truncate(checkpoint / "moments.pt", 1000),
    "code": lambda checkpoint, made: (checkpoint / "moments.pt").write_bytes(pickle.dumps(RunsCode(made))),
    "state": lambda checkpoint, made: (checkpoint / "state.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(call, whole, tmp_path, damage):
    assert call(tmp_path, "--save_steps", 1, at=10)[0] == 143
    directory = only(tmp_path)
    mine = directory / "checkpoint-2.bak"
    mine.mkdir()
    DAMAGES[damage](directory / "checkpoint-5", tmp_path / "made")
    status, captured = call(None, "--resume", directory, bare=True)
    assert status == 0 and f"{directory / 'checkpoint-5'}: cannot be loaded" in captured.err
    assert not (tmp_path / "made").exists() and mine.is_dir()
    assert outcome(directory) == whole


def test_a_resumed_run_keeps_its_flags_and_data(call, toy_base, toy_data, tmp_path):
    data, output = shutil.copytree(toy_data, tmp_path / "data"), tmp_path / "out"
    assert call(output, "--dataset_path", data, "--weight_decay", 0.5, at=6)[0] == 143
    directory = only(output)

    def resume(*flags):
        status, captured = call(None, "--resume", directory, *flags, bare=True)
        return status, [line for line in captured.err.splitlines() if line.startswith("error: ")]

    for flag, was, value in (("--weight_decay", 0.5, 0.25), ("--learning_rate", 0.001, 0.25), ("--bf16", False, True)):
        status, (line,) = resume(flag, *([] if value is True else [value]))
        assert status == 2 and f"{flag} was {was}, not {value}; a run keeps the flags" in line
    test = data / "KorSTS" / "sts-test.tsv"
    content = test.read_bytes()
    test.write_bytes(content.replace(b"2026", b"2027"))
    status, (line,) = resume()
    assert status == 2 and f"{test}: not as it was when {directory} was started" in line
    test.write_bytes(content)
    facts = json.loads((directory / "args.json").read_text())
    (directory / "args.json").write_text(json.dumps(facts | {"processes": 2}))
    status, (line,) = resume()
    assert status == 2 and "started with 2 processes, not 1" in line
    (directory / "args.json").write_text(json.dumps(facts))
    with (directory / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, (line,) = resume()
        assert status == 2 and "still running in another process" in line
    data.rename(tmp_path / "elsewhere")  # the same content is the same data
    assert resume("--dataset_path", tmp_path / "elsewhere", "--nli_mini_batch_size", 4)[0] == 0
    status, captured = call(None, "--resume", directory, bare=True)
    assert status == 0 and "this run is finished" in captured.out
    (tmp_path / "elsewhere" / "KorSTS" / "sts-test.tsv").write_bytes(content.replace(b"2026", b"2027"))
    status, (line,) = resume("--dataset_path", tmp_path / "elsewhere")
    assert status == 2 and "sts-test.tsv: not as it was when" in line


def test_what_cannot_be_resumed_is_said(call, tmp_path):
    status, captured = call(tmp_path / "empty", "--resume")
    assert status == 2 and "no unfinished run of training_multi_task.py; start one without --resume" in captured.err
    status, captured = call(None, "--resume", tmp_path, bare=True)
    assert status == 2 and f"{tmp_path}: not a run of training_multi_task.py; give " in captured.err
    (tmp_path / "args.json").write_text('{"script": "training_nli.py"}')
    status, captured = call(None, "--resume", tmp_path, bare=True)
    assert status == 2 and f"{tmp_path}: not a run of training_multi_task.py; give " in captured.err


def test_a_full_disk_keeps_the_checkpoint_before_and_the_run_goes_on(toy_base, toy_data, tmp_path, capsys):
    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--max_rounds", 3, "--save_steps", 1]
    size = int(1.5 * (toy_base / "model.safetensors").stat().st_size)  # the weights fit, the two moments do not
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        status = run_here("training_sts.py", *flags, "--output_dir", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    directory, stderr = only(tmp_path), capsys.readouterr().err
    assert status == 2 and "Traceback" not in stderr, stderr[-3000:]
    (line,) = [line for line in stderr.splitlines() if "error:" in line]
    assert f"{directory / 'checkpoint-1'}: cannot be written" in line and f"--resume {directory}" in line
    assert not list(directory.glob("*checkpoint-*"))
    assert run_here("training_sts.py", "--resume", directory) == 0


def test_a_recommended_run_is_resumed_in_the_stage_where_it_stopped(toy_base, toy_data, tmp_path):
    script, cut = "training_recommended.py", tmp_path / "cut"
    words = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--nli_batch_size", 64]
    words += ["--sts_seeds", "1,2", "--sts_epochs", 4, "--output_dir"]
    assert train(script, *words, tmp_path / "whole") == (0, ["nli"] * 9 + ["sts"] * 8)
    assert train(script, *words, cut, at=5) == (143, ["nli"] * 5)
    resume = [script, "--resume", only(cut)]
    assert train(*resume, at=6) == (143, ["nli"] * 4 + ["sts"] * 2)  # in the second stage
    assert train(*resume, at=4) == (143, ["sts"] * 4)  # two of the second, two of the third
    assert train(*resume) == (0, ["sts"] * 2)
    whole, cut = (only(tmp_path / name) for name in ("whole", "cut"))
    for name in ("model.safetensors", "sts_2/eval/similarity_evaluation_sts-dev_results.csv"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
