"""Signals at chosen steps, several resumes, damaged checkpoints and locks, in this process."""

import fcntl
import json
import os
import pickle
import signal
import sys
import zlib

import pytest

import training_multi_task
from kf_deberta.cli import run
from kf_deberta.training import checkpoints
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
def whole(call, tmp_path, _once=[]):  # noqa: B006 (one run for all tests)
    if not _once:
        assert call(tmp_path / "whole")[0] == 0
        _once.append(outcome(tmp_path / "whole"))
    return _once[0]


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


def test_checkpoints_are_summed_while_written_and_leave_the_users_folders(call, whole, tmp_path, monkeypatch):
    read = []
    original = checkpoints._size_and_crc
    monkeypatch.setattr(checkpoints, "_size_and_crc", lambda path: read.append(path.name) or original(path))
    output = tmp_path / "cut"
    assert call(output, at=11)[0] == 143
    assert "config.json" in read and not {"model.safetensors", "optimizer.pt"} & set(read)
    (directory,) = output.iterdir()
    folder = directory / "checkpoint-11"
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    sums = {name: [path.stat().st_size, zlib.crc32(path.read_bytes())] for name, path in files.items()}
    assert sums.pop(checkpoints.MANIFEST) and sums == json.loads((folder / checkpoints.MANIFEST).read_text())
    assert "training_args.bin" not in sums
    assert not [name for name, path in files.items() if os.fsencode(tmp_path) in path.read_bytes()]

    mine = [directory / name for name in ("checkpoint-2.bak", "checkpoint-abc", "checkpoint-99")]
    for path in mine:
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    assert call(output, "--resume")[0] == 0
    assert all((path / "notes.txt").is_file() for path in mine)
    assert outcome(output) == whole and not list(directory.glob("checkpoint-1*"))


def test_pickles_that_hold_code_are_refused_and_damaged_states_passed_over(call, whole, tmp_path):
    output = tmp_path / "cut"
    assert call(output, "--save_steps", 1, at=11)[0] == 143
    (directory,) = output.iterdir()
    newest = directory / "checkpoint-11"

    def replace(name, content):
        (newest / name).write_bytes(content)
        sums = json.loads((newest / checkpoints.MANIFEST).read_text())
        (newest / checkpoints.MANIFEST).write_text(json.dumps(sums | {name: [len(content), zlib.crc32(content)]}))

    good = (newest / "rng_state.pth").read_bytes()
    replace("rng_state.pth", pickle.dumps(Touch(str(tmp_path / "touched"))))
    status, captured = call(output, "--save_steps", 1, "--resume")
    assert status == 2 and f"{newest}: not a checkpoint of this run" in captured.err
    assert not (tmp_path / "touched").exists()

    replace("rng_state.pth", good)
    replace("trainer_state.json", b'{"global_step": 11, "best_global_step": "x", "best_metric": null}')
    status, captured = call(output, "--save_steps", 1, "--resume")
    assert status == 0 and "trainer_state.json: best_global_step is not int | None" in captured.out
    assert outcome(output) == whole


class Touch:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


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
