"""Two gloo processes follow one process, and an error of one ends both with one line."""

import json
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
FLAGS = ["--logging_steps", 1, "--learning_rate", 1e-3]


def start(repo, script, base, data, output, *flags, launcher=TORCHRUN, code=None):
    words = ["--model_name_or_path", base, "--dataset_path", data, "--output_dir", output, *FLAGS, *flags]
    file = repo / script
    if code:  # what goes wrong, before the script runs
        file = output.with_suffix(".py")
        file.write_text(f"import sys\nsys.path.insert(0, {str(repo)!r})\n{code}\nimport {script[:-3]} as script\n"
                        f"from kf_deberta.errors import run\nrun(script.main)\n")  # fmt: skip
    return subprocess.run([*launcher, str(file), *map(str, words)], capture_output=True, text=True, timeout=240)


def result_of(output):
    (directory,) = output.iterdir()
    log = [row for row in json.loads(next(directory.rglob("log.json")).read_text())["log"] if "epoch" not in row]
    return log, load_file(directory / "model.safetensors"), json.loads((directory / "results.json").read_text())


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("training_multi_task.py", ["--max_rounds", 5, "--nli_batch_size", 32, "--nli_mini_batch_size", 8]),
        ("training_sts.py", ["--max_rounds", 5, "--sts_loss", "cosent", "--batch_size", 10]),
    ],
)
def test_two_processes_follow_one(repo, still_base, toy_data, tmp_path, script, flags):
    results = {}
    for name, launcher in (("one", [sys.executable]), ("two", TORCHRUN)):
        done = start(repo, script, still_base, toy_data, tmp_path / name, *flags, launcher=launcher)
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.count("before training: sts-test") == 1  # only the first process prints
        results[name] = result_of(tmp_path / name)
    (log, weights, _), (other_log, other_weights, facts) = results["one"], results["two"]
    assert len(log) == len(other_log) == 5 and facts["processes"] == 2
    for row, other in zip(log, other_log, strict=True):
        for column, value in row.items():
            assert value == pytest.approx(other[column], rel=1e-3), column
    for name, value in weights.items():
        # a gradient of rounding size gives an Adam step of either sign: compare by the size of the whole update
        assert torch.allclose(value, other_weights[name], atol=2e-4), name


CONSTANT = """
from kf_deberta.evaluation import scoring
original, calls = scoring.PairEvaluator.__call__, []
def score(self, model):  # baseline and dev before training on the first process, then this
    calls.append(1)
    if len(calls) == 3:
        raise scoring.InputError("sts-dev: all pairs have the same cosine similarity")
    return original(self, model)
scoring.PairEvaluator.__call__ = score
"""
DISK = """
import torch
save_tensors = torch.save
def save(value, file, **options):
    if not str(file).endswith("moments.pt"):
        return save_tensors(value, file, **options)
    raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 192 vs 86: No space left on device")
torch.save = save
"""
NAN = """
import os, torch
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss as loss
original = loss.compute_loss_from_embeddings
def compute(self, *args):
    return original(self, *args) * (float("nan") if os.environ["RANK"] == "1" else 1)
loss.compute_loss_from_embeddings = compute
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (CONSTANT, "all pairs have the same cosine similarity"),
        (DISK, "checkpoint-2: cannot be written"),
        (NAN, "non-finite loss of sts in round 1"),
    ],
    ids=["evaluation", "disk", "loss of the second process"],
)
def test_an_error_of_one_process_ends_both_with_one_line(repo, toy_base, toy_data, tmp_path, code, message):
    begun = time.monotonic()
    done = start(repo, "training_sts.py", toy_base, toy_data, tmp_path / "out", "--max_rounds", 2, code=code)
    own, _, torchruns = done.stderr.partition("torch.distributed.elastic.multiprocessing")
    (line,) = [line for line in own.splitlines() if "error: " in line] or pytest.fail(done.stderr)
    assert message in line and "Traceback" not in own.split("E1")[0].split("W1")[0]
    assert re.search(r"exitcode +: 2 ", torchruns) and time.monotonic() - begun < 120


def test_a_batch_that_processes_cannot_share_is_refused(repo, toy_base, toy_data, tmp_path):
    done = start(repo, "training_sts.py", toy_base, toy_data, tmp_path / "out", "--batch_size", 7)
    assert "error: --batch_size 7: not divisible by 2 processes; batch sizes are totals" in done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_process_that_waits_alone_says_so_and_dies_of_sigterm(repo, toy_base, toy_data, tmp_path, run_script):
    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--output_dir", tmp_path]
    done = run_script("training_sts.py", *flags, env={"WORLD_SIZE": "2", "RANK": "0"})
    assert done.returncode == 2 and "WORLD_SIZE is 2, but MASTER_ADDR is not set; start with torchrun" in done.stderr
    place = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29377"}
    import os

    command = [sys.executable, str(repo / "training_sts.py"), *map(str, flags)]
    process = subprocess.Popen(command, env=os.environ | place, stderr=subprocess.PIPE, text=True)
    assert "then meeting 2 processes at 127.0.0.1" in process.stderr.readline()
    time.sleep(8)  # until the libraries are loaded and it waits in C
    process.terminate()
    assert process.wait(timeout=10) == -15
    shutil.rmtree(tmp_path)
