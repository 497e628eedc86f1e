"""Two gloo processes follow one process, and an error of one ends both with one line.

torchrun runs this file, which does RUNS in each of its two processes; the error of the last one ends torchrun.
"""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss as Loss

from in_process import REPO, run_here
from kf_deberta.errors import InputError
from kf_deberta.evaluation.scoring import PairEvaluator

scored = []


def constant(self, model, score=PairEvaluator.__call__):  # only the first process scores: test, dev, then this
    scored.append(self)
    if len(scored) == 3:
        raise InputError("sts-dev: all pairs have the same cosine similarity")
    return score(self, model)


def full(value, file, save=torch.save, **options):
    if str(file).endswith("moments.pt"):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 192 vs 86: No space left")
    return save(value, file, **options)


def spoiled(self, *args, compute=Loss.compute_loss_from_embeddings):
    return compute(self, *args) * (float("nan") if os.environ["RANK"] == "1" else 1)


FAST = ["--learning_rate", 1e-3]
MULTI_TASK = ["training_multi_task.py", "--max_rounds", 5, "--nli_batch_size", 32, "--nli_mini_batch_size", 8, *FAST]
STS = ["training_sts.py", *FAST, "--max_rounds"]
RUNS = {  # script and flags, the error, and what causes it
    "multi_task": (MULTI_TASK, None),
    "cosent": ([*STS, 5, "--sts_loss", "cosent", "--batch_size", 10], None),
    "teacher": (["training_recommended.py", "--max_rounds", 3, "--sts_seeds", 1, "--teacher", "BASE"], None),
    "batch": ([*STS, 2, "--batch_size", 7], "--batch_size 7: not divisible by 2 processes; batch sizes are totals"),
    "evaluation": ([*STS, 2], "all pairs have the same cosine similarity", PairEvaluator, "__call__", constant),
    "disk": ([*STS, 2], "checkpoint-2: cannot be written", torch, "save", full),
    "loss": ([*STS, 2], "non-finite loss of sts in round 1", Loss, "compute_loss_from_embeddings", spoiled),
}


def train(name, base, data, folder):
    script, *flags = (base if word == "BASE" else word for word in RUNS[name][0])
    words = ["--model_name_or_path", base, "--dataset_path", data, "--output_dir", folder / name]
    return run_here(script, *words, "--logging_steps", 1, *flags)


def main(base, data, folder):
    for name, (_, _, *cause) in RUNS.items():
        with ExitStack() as stack:
            if cause:
                stack.enter_context(patch.object(*cause))
            if name == "loss":
                sys.exit(train(name, base, data, folder))
            stack.enter_context(
                patch("accelerate.Accelerator.end_training")
            )  # it ends the group, which the next needs
            stack.enter_context(patch("kf_deberta.errors.OTHERS_WAIT_SECONDS", 0))
            out, err = (stack.enter_context(to(io.StringIO())) for to in (redirect_stdout, redirect_stderr))
            result = train(name, base, data, folder), out.getvalue(), err.getvalue()
        (folder / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(result))


@pytest.fixture(scope="module")
def two(still_base, toy_data, tmp_path_factory):
    """The folder of the runs; status, output and errors of both processes by run; what torchrun printed to stderr."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    command += map(str, (still_base, toy_data, folder))
    paths = {"PYTHONPATH": f"{REPO}:{REPO}/tests/helpers"}
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, timeout=400)
    files = {name: [folder / f"{name}-{rank}.json" for rank in (0, 1)] for name in list(RUNS)[:-1]}
    assert all(file.exists() for both in files.values() for file in both), done.stderr[-4000:]
    results = {name: [json.loads(file.read_text()) for file in both] for name, both in files.items()}
    return folder, results, done.stderr


def left_by(output):
    (directory,) = output.iterdir()
    logs = [json.loads(file.read_text())["log"] for file in sorted(directory.rglob("log.json"))]
    log = [row for rows in logs for row in rows if "epoch" not in row]
    return log, load_file(directory / "model.safetensors"), json.loads((directory / "results.json").read_text())


@pytest.mark.parametrize("name", ["multi_task", "cosent", "teacher"])
def test_two_processes_follow_one(two, still_base, toy_data, tmp_path, name):
    (status, out, err), (other_status, other_out, _) = two[1][name]
    assert (status, other_status) == (0, 0), err
    assert out.count("before training: sts-test") == 1 and not other_out  # only the first process prints
    assert train(name, still_base, toy_data, tmp_path) == 0
    (log, weights, _), (other_log, other_weights, facts) = (left_by(folder / name) for folder in (tmp_path, two[0]))
    assert len(log) == len(other_log) == 5 and facts["processes"] == 2
    for row, other in zip(log, other_log, strict=True):
        assert row == pytest.approx(other, rel=1e-3)
    for key, value in weights.items():
        # a gradient of rounding size gives an Adam step of either sign: compare by the size of the whole update
        assert torch.allclose(value, other_weights[key], atol=2e-4), key


@pytest.mark.parametrize("name", ["batch", "evaluation", "disk"])
def test_an_error_of_one_process_is_one_of_both(two, name):
    for start, (status, _, err) in zip(("error: ", "error: process 1: "), two[1][name], strict=True):
        (line,) = [line for line in err.splitlines() if "error: " in line] or pytest.fail(err)
        assert status == 2 and line.startswith(start) and RUNS[name][1] in line
    assert name != "batch" or not list(two[0].glob("batch/*"))


def test_torchrun_ends_with_one_line(two):
    own, _, torchruns = two[2].partition("torch.distributed.elastic.multiprocessing")
    (line,) = [line for line in own.splitlines() if "error: " in line] or pytest.fail(two[2])
    assert RUNS["loss"][1] in line and "Traceback" not in own.split("E1")[0].split("W1")[0]
    assert re.search(r"exitcode +: 2 ", torchruns)


def test_a_process_that_waits_alone_says_so_and_dies_of_sigterm(toy_base, toy_data, tmp_path, run_script):
    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--output_dir", tmp_path]
    done = run_script("training_sts.py", *flags, env={"WORLD_SIZE": "2", "RANK": "0"})
    assert done.returncode == 2 and "WORLD_SIZE is 2, but MASTER_ADDR is not set; start with torchrun" in done.stderr
    place = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29377"}
    command = [sys.executable, str(REPO / "training_sts.py"), *map(str, flags)]
    with subprocess.Popen(command, env=os.environ | place, stderr=subprocess.PIPE, text=True) as process:
        assert "then meeting 2 processes at 127.0.0.1" in process.stderr.readline()
        process.terminate()  # a handler of ours would never be called in C, where it waits
    assert process.returncode == -15


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
