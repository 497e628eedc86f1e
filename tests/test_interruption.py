"""Signals at chosen steps, several resumes, damaged checkpoints and locks, in this process."""

import errno
import fcntl
import json
import os
import pickle
import shutil
import signal
import sys
import zlib
from pathlib import Path

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from transformers import PreTrainedTokenizerFast

import training_multi_task
from kf_deberta.cli import InputError, run
from kf_deberta.evaluation import evaluator, scoring
from kf_deberta.model.load import load_model
from kf_deberta.training import checkpoints
from kf_deberta.training.callbacks import RecipeCallback
from kf_deberta.training.run import FIGURES, MANIFEST, _locks, fault
from kf_deberta.training.trainer import MultiTaskTrainer

ROUNDS = 8  # two epochs of four rounds; an evaluation after rounds 3, 4, 7 and 8; a step is half a round


@pytest.fixture
def call(monkeypatch, capsys, toy_base, toy_data):
    """Run the multi-task script, with a signal in the step `at`; return its exit status and the captured output."""

    def start(output, *flags, at=None, number=signal.SIGTERM, bare=False):
        words = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--nli_batch_size", 128]
        words += ["--num_epochs", 2, "--eval_steps", 3, "--learning_rate", 1e-3, "--output_dir", output]
        words = [*([] if bare else words), *flags]
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
    for at, number, status in ((8, signal.SIGINT, 130), (11, signal.SIGHUP, 129), (16, signal.SIGTERM, 143)):
        assert call(output, "--resume", at=at, number=number)[0] == status
    assert call(output, "--resume")[0] == 0
    assert outcome(output) == whole


def test_closed_output_ends_a_run_with_a_checkpoint(call, whole, tmp_path, monkeypatch):
    output = tmp_path / "cut"
    reader, writer = os.pipe()
    original = RecipeCallback.on_evaluate

    def close_first(self, args, state, control, **kwargs):
        if state.global_step == 6:
            os.close(reader)
        return original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch, os.fdopen(writer, "w") as pipe:
        patch.setattr(RecipeCallback, "on_evaluate", close_first)
        patch.setattr(sys, "stdout", pipe)
        assert call(output)[0] == 143
    assert list(output.glob("*/checkpoint-7"))
    assert call(output, "--resume")[0] == 0
    assert outcome(output) == whole


@pytest.mark.parametrize("place", ["checkpoint-8", ""])
def test_a_disk_that_fills_up_while_the_tokenizer_is_written_is_one_line(call, tmp_path, monkeypatch, place):
    original = PreTrainedTokenizerFast.save_pretrained

    def save(self, directory, *args, **kwargs):
        if Path(directory).name == place or not place and (Path(directory) / "eval").is_dir():
            raise Exception("No space left on device (os error 28)")  # tokenizers' own type
        return original(self, directory, *args, **kwargs)

    output = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", save)
        status, captured = call(output, "--max_rounds", 4)
    lines = [line for line in captured.err.splitlines() if "error:" in line]
    (directory,) = output.iterdir()
    assert status == 2 and len(lines) == 1 and "Traceback" not in captured.err
    assert f"{directory / place}: cannot be written (No space left on device" in lines[0]
    assert f"--resume {directory}" in lines[0] and not (directory / "unfinished-checkpoint").exists()
    assert call(output, "--resume")[0] == 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_one_line_with_what_needs_less(call, tmp_path, monkeypatch, error):
    output, calls = tmp_path / "cut", []
    compute = CosineSimilarityLoss.compute_loss_from_embeddings

    def run_out(self, embeddings, labels):
        calls.append(1)
        if len(calls) == 3:
            raise error
        return compute(self, embeddings, labels)

    with monkeypatch.context() as patch:
        patch.setattr(CosineSimilarityLoss, "compute_loss_from_embeddings", run_out)
        status, captured = call(output, "--save_steps", 1, "--max_rounds", 4)
    lines = [line for line in captured.err.splitlines() if "error:" in line]
    assert status == 2 and len(lines) == 1 and "Traceback" not in captured.err
    for text in (
        "out of memory",
        "--nli_mini_batch_size",
        "--gradient_checkpointing",
        "--max_seq_length",
        "checkpoint-4",
    ):
        assert text in lines[0]
    (directory,) = output.iterdir()
    assert f"--resume {directory}" in lines[0]
    if isinstance(error, MemoryError):
        status, captured = call(None, "--resume", directory, "--nli_mini_batch_size", 16, bare=True)
        assert status == 0 and "--nli_mini_batch_size was None, is 16" in captured.out


@pytest.mark.parametrize(
    ("loads_base", "texts"),
    [
        (True, ["in loading the base", "--dtype bfloat16"]),
        (False, ["scoring the best model, step 8", "--eval_batch_size"]),
    ],
)
def test_out_of_memory_around_training(call, tmp_path, monkeypatch, loads_base, texts):
    def load(folder, **options):
        if (Path(folder).name == "toy-base") == loads_base:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return load_model(folder, **options)

    output = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr("kf_deberta.training.loop.load_model", load)
        status, captured = call(output, "--max_rounds", 4)
    lines = [line for line in captured.err.splitlines() if "error:" in line]
    assert status == 2 and len(lines) == 1 and "Traceback" not in captured.err
    assert all(text in lines[0] for text in ["out of memory", *texts])
    if output.exists():
        (directory,) = output.iterdir()
        assert f"--resume {directory} (checkpoint: checkpoint-8)" in lines[0]


def test_out_of_memory_in_an_evaluation_names_its_batch_size(call, tmp_path, monkeypatch):
    encode, calls = evaluator.encode_sorted, []

    def run_out(*args, **options):
        calls.append(1)
        if len(calls) == 4:  # baseline, dev before training, dev after round 3, dev after round 4
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return encode(*args, **options)

    output = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "encode_sorted", run_out)
        status, captured = call(output, "--max_rounds", 4)
    (line,) = [line for line in captured.err.splitlines() if "error:" in line]
    (directory,) = output.iterdir()
    assert status == 2 and "out of memory in evaluation, step 8" in line and "--eval_batch_size" in line
    assert f"--resume {directory} (checkpoint: checkpoint-6)" in line


def test_a_checkpoint_is_not_blamed_where_memory_is_used_up():
    for error in (torch.OutOfMemoryError("CUDA out of memory."), MemoryError()):
        with pytest.raises(type(error)), checkpoints.reading("checkpoint-8"):
            raise error
    with pytest.raises(InputError, match="checkpoint-8: not a checkpoint"), checkpoints.reading("checkpoint-8"):
        raise KeyError("state")


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
    original = checkpoints.size_and_crc
    monkeypatch.setattr(checkpoints, "size_and_crc", lambda path: read.append(path.name) or original(path))
    output = tmp_path / "cut"
    assert call(output, at=11)[0] == 143
    assert "config.json" in read and not {"model.safetensors", "optimizer.pt"} & set(read)
    (directory,) = output.iterdir()
    folder = directory / "checkpoint-11"
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    sums = {name: [path.stat().st_size, zlib.crc32(path.read_bytes())] for name, path in files.items()}
    assert sums.pop(MANIFEST) and sums == json.loads((folder / MANIFEST).read_text())
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
        sums = json.loads((newest / MANIFEST).read_text())
        (newest / MANIFEST).write_text(json.dumps(sums | {name: [len(content), zlib.crc32(content)]}))

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


def test_resume_takes_the_runs_flags_and_knows_its_data_and_base_by_content(call, toy_base, toy_data, tmp_path):
    (tmp_path / "here").mkdir()
    data, base = tmp_path / "here" / "data[1]", tmp_path / "here" / "base"
    shutil.copytree(toy_data, data)
    shutil.copytree(toy_base, base)
    flags = ["--dataset_path", data, "--model_name_or_path", base, "--weight_decay", 0.5, "--output_prefix", "a[b]_"]
    output = tmp_path / "cut"
    assert call(output, *flags)[0] == 0
    (directory,) = output.iterdir()
    expected = outcome(output)
    facts = json.loads((directory / "training_arguments.json").read_text())
    assert facts["arguments"]["dataset_path"] == "data[1]" and facts["arguments"]["model_name_or_path"] == "base"
    assert not [path for path in directory.rglob("*.json") if str(tmp_path) in path.read_text()]
    directory.rename(tmp_path / "first")

    assert call(output, *flags, at=11)[0] == 143
    (directory,) = output.iterdir()

    def resume(*extra):
        return call(None, "--resume", directory, *extra, bare=True)

    for flag, was in (("--weight_decay", 0.5), ("--learning_rate", 0.001)):
        status, captured = resume(flag, 0.25)
        assert status == 2 and f"{flag} was {was}, is 0.25" in captured.err
    test, tokenizer = data / "KorSTS" / "sts-test.tsv", base / "tokenizer.json"
    for path, name in ((test, "KorSTS/sts-test.tsv"), (tokenizer, "base tokenizer.json")):
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        status, captured = resume()
        assert status == 2 and f"{name} is not what the run was begun with" in captured.err
        path.write_bytes(content)
    (tmp_path / "here").rename(tmp_path / "elsewhere")
    elsewhere = tmp_path / "cut" / ".." / "elsewhere"
    status, captured = resume("--dataset_path", elsewhere / data.name, "--model_name_or_path", elsewhere / base.name)
    assert status == 0 and outcome(output) == expected


def test_a_run_killed_when_it_was_finished_is_told_to_be_complete(call, tmp_path, monkeypatch):
    output = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr("kf_deberta.training.run.tidy", lambda *args, **kwargs: None)  # killed before that
        assert call(output, "--max_rounds", 1)[0] == 0
    (directory,) = output.iterdir()
    (directory / ".training_arguments.123.json").write_text("{")
    assert list(directory.glob("checkpoint-*")) and (directory / ".lock").exists()
    for words in (["--resume"], ["--resume", directory], ["--resume"]):
        status, captured = call(output, *words)
        assert status == 0 and "this run is complete" in captured.out
        assert not [*directory.glob(".*"), *directory.glob("*checkpoint*")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("[1]", "not a JSON object"),
        ('{"script": "training_multi_task.py"}', "status is missing"),
        ('{"script": 1}', "script is not str"),
    ],
)
def test_a_damaged_description_of_a_run_names_file_and_key(call, tmp_path, text, message):
    directory = tmp_path / "out" / "kor_multi_x-2026-01-01_00-00-00"
    directory.mkdir(parents=True)
    (directory / "training_arguments.json").write_text(text)
    status, captured = call(tmp_path / "out", "--resume", directory)
    assert status == 2 and f"{directory}/training_arguments.json: {message}" in captured.err
    status, captured = call(tmp_path / "out", "--resume")
    assert status == 2 and message in captured.out and "no unfinished run" in captured.err


def test_recorded_arguments_are_checked_and_never_allow_code(call, tmp_path):
    output = tmp_path / "cut"
    assert call(output, at=3)[0] == 143
    (directory,) = output.iterdir()
    path = directory / "training_arguments.json"
    facts = json.loads(path.read_text())
    for name, value in (("learning_rate", {}), ("num_epochs", 1e400), ("bf16", "no"), ("report_to", [1])):
        path.write_text(json.dumps(facts | {"arguments": facts["arguments"] | {name: value}}))
        status, captured = call(None, "--resume", directory, bare=True)
        assert status == 2 and f"{path}: {name} in arguments is {value!r}" in captured.err
    for key, name, value in (
        ("baseline", "dot_spearman", None),
        ("baseline", "cosine_pearson", float("nan")),
        ("baseline", "cosine_spearman", 10**400),
        ("arguments", "dataset_path", None),
        ("arguments", "model_name_or_path", 3),
    ):
        path.write_text(json.dumps(facts | {key: facts[key] | {name: value}}))
        status, captured = call(None, "--resume", directory, bare=True)
        assert status == 2 and f"{path}: {name} in {key} is missing or wrong" in captured.err
    path.write_text(json.dumps(facts | {"baseline": {}}))
    assert "cosine_pearson in baseline is missing" in call(None, "--resume", directory, bare=True)[1].err
    path.write_text(json.dumps(facts))
    status, captured = call(None, "--resume", directory, "--hub_token", "hf_x", bare=True)
    assert status == 2 and "--hub_token has no effect without --push_to_hub" in captured.err
    assert "hf_x" not in captured.err
    for name, value, message in (
        ("trust_remote_code", True, "--trust_remote_code was True, is False"),
        ("mixed_precision", "bf16", "begun with mixed precision bf16, now no"),
        ("processes", 2, "begun with 2 processes, now 1"),
    ):
        path.write_text(json.dumps(facts | {"arguments": facts["arguments"] | {name: value}}))
        status, captured = call(None, "--resume", directory, bare=True)
        assert status == 2 and message in captured.err


def test_a_file_system_without_locks_is_said_and_trained_on(call, tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    status, captured = call(tmp_path / "out", "--max_rounds", 1)
    assert status == 0 and "no locks on this file system" in captured.out
    assert not list((tmp_path / "out").glob("*/.lock"))


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
    status, captured = call(output, "--resume")
    assert status == 2 and f"the newest other one goes on with training_nli.py --resume {directory}" in captured.err
    path.write_text(path.read_text().replace("training_nli.py", "training_multi_task.py"))
    for prefix in ("[a]*", "kor_multi_?"):  # no pattern, but a plain name
        status, captured = call(output, "--resume", "--output_prefix", prefix)
        assert status == 2 and f"goes on with training_multi_task.py --resume {directory}" in captured.err


def test_a_prefix_that_is_a_pattern_is_a_plain_name(call, toy_base, tmp_path):
    output = tmp_path / "cut"
    assert call(output, "--output_prefix", "[a]*", at=3)[0] == 143
    assert call(output, at=3)[0] == 143
    assert call(output, "--resume", "--output_prefix", "[a]*")[0] == 0
    finished = [path.parent.name for path in output.glob("*/README.md")]
    assert len(finished) == 1 and finished[0].startswith(f"[a]*{toy_base.name}-")


def test_a_token_is_in_no_file_and_no_printed_command(call, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "another")
    monkeypatch.setattr("kf_deberta.model.hub.hub_unreachable", lambda: None)
    monkeypatch.setattr(MultiTaskTrainer, "init_hf_repo", lambda *args, **kwargs: None)
    pushed = []
    monkeypatch.setattr("kf_deberta.training.loop.push", lambda *args: pushed.append(args))
    token = ["--push_to_hub", "--hub_model_id", "owner/model", "--hub_token", "hf_secretsecret"]
    status, captured = call(tmp_path / "cut", *token, at=3)
    assert status == 143 and "--resume" in captured.out
    assert list(tmp_path.rglob("optimizer.pt"))

    def holds_token():
        files = [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
        return files or "hf_secret" in captured.out + captured.err

    assert not holds_token()
    status, captured = call(tmp_path / "cut", "--resume", *token[-2:])
    assert status == 0 and len(pushed) == 1 and not holds_token()


def test_constant_dev_scores_are_refused_before_training(call, toy_data, tmp_path):
    data = shutil.copytree(toy_data, tmp_path / "data")
    path = data / "KorSTS" / "sts-dev.tsv"
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    path.write_text("\n".join("\t".join([*row[:4], "2.0" if n else row[4], *row[5:]]) for n, row in enumerate(rows)))
    status, captured = call(tmp_path / "out", "--dataset_path", data)
    assert status == 2 and f"{path}: all 20 scores are 2; a correlation needs at least two different" in captured.err
    assert not (tmp_path / "out").exists()


def test_max_rounds_never_trains_longer_than_the_epochs(call, tmp_path):
    assert call(tmp_path / "out", "--max_rounds", 50)[0] == 0
    (directory,) = (tmp_path / "out").iterdir()
    assert json.loads((directory / "trainer_state.json").read_text())["global_step"] == 2 * ROUNDS


def test_only_the_first_process_tidies_a_finished_run(call, tmp_path, monkeypatch):
    output = tmp_path / "cut"
    assert call(output, "--max_rounds", 1)[0] == 0
    (directory,) = output.iterdir()
    (directory / ".training_arguments.123.json").write_text("{")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        status, captured = call(output, "--resume", directory)
        assert status == 0 and ("this run is complete" in captured.out) == (rank == "0")
        assert bool(list(directory.glob(".training*"))) == (rank == "1")


def test_a_manifest_is_checked_whatever_its_names_are(tmp_path):
    assert tuple(FIGURES) == scoring.FIGURES
    (tmp_path / MANIFEST).write_text(json.dumps({"trainer_state.json": [1, 2], "a\0b": [0, 0]}))
    (tmp_path / "trainer_state.json").write_text("{}")
    assert "trainer_state.json is not as it was written" in fault(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"a\0b": [0, 0], "trainer_state.json": [1, 2]}))
    assert "embedded null" in fault(tmp_path)
