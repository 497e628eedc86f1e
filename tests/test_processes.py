"""Two gloo processes follow one process: same objective at the same step, same losses, same weights (dropout 0)."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

FLAGS = ["--max_rounds", 5, "--eval_steps", 100, "--logging_steps", 1, "--nli_batch_size", 32, "--learning_rate", 1e-3]


@pytest.fixture(scope="module")
def still_base(toy_base, tmp_path_factory):
    """The toy base without dropout."""
    from transformers import AutoModel, AutoTokenizer

    path = tmp_path_factory.mktemp("still") / "still-base"
    model = AutoModel.from_pretrained(toy_base)
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(toy_base).save_pretrained(path)
    return path


def train(repo, base, data, output, *extra, processes=1):
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    flags = ["--model_name_or_path", base, "--dataset_path", data, "--output_dir", output, *FLAGS, *extra]
    command = [*launcher, str(repo / "training_multi_task.py"), *map(str, flags)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    (directory,) = output.iterdir()
    history = json.loads((directory / "trainer_state.json").read_text())["log_history"]
    rows = [row for row in history if "round" in row]
    return rows, load_file(directory / "model.safetensors"), result.stdout


def assert_same(left, right):
    assert len(left[0]) == len(right[0]) == 5
    for row, other in zip(left[0], right[0], strict=True):
        for name in ("nli", "sts"):
            assert row[f"{name}_loss"] == pytest.approx(other[f"{name}_loss"], rel=1e-4)
            assert row[f"{name}_grad_norm"] == pytest.approx(other[f"{name}_grad_norm"], rel=1e-3)
            assert row[f"{name}_learning_rate"] == other[f"{name}_learning_rate"]
    for name, value in left[1].items():
        # a gradient of rounding size gives an Adam step of either sign: compare by the size of the whole update
        assert torch.allclose(value, right[1][name], atol=2e-4), name


@pytest.fixture(scope="module")
def one_process(repo, still_base, toy_data, tmp_path_factory):
    return train(repo, still_base, toy_data, tmp_path_factory.mktemp("one"))


def test_two_processes_follow_one(repo, still_base, toy_data, tmp_path, one_process):
    two = train(repo, still_base, toy_data, tmp_path, processes=2)
    assert_same(one_process, two)
    assert two[2].count("before training: KorSTS test") == 1  # only rank 0 prints


def test_mini_batches_give_the_same_result(repo, still_base, toy_data, tmp_path, one_process):
    assert_same(one_process, train(repo, still_base, toy_data, tmp_path, "--nli_mini_batch_size", 8))


def test_cosent_is_refused_where_a_batch_is_shared(repo, still_base, toy_data, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    flags = ["--model_name_or_path", still_base, "--dataset_path", toy_data, "--output_dir", tmp_path]
    command = [*launcher, repo / "training_sts.py", "--sts_loss", "cosent", *flags]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode != 0 and "error: --sts_loss cosent: ranks all pairs of a batch" in result.stderr
    assert not list(tmp_path.iterdir())
