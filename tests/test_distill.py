"""The teacher stage: its loss by an independent calculation, its card, its resume, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from test_resume import only, train
from transformers import AutoModel, AutoTokenizer

from build_base import build_base
from in_process import run_here


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A model of 48 dimensions, where the toy base has 32."""
    return build_base(tmp_path_factory.mktemp("teacher") / "a-teacher", hidden_size=48, vocab_size=1200, seed=7)


@pytest.fixture(scope="module")
def flags(still_base, toy_data, teacher):
    words = ["--model_name_or_path", still_base, "--dataset_path", toy_data, "--teacher", teacher]
    return [*words, "--logging_steps", 1, "--max_rounds", 4, "--sts_seeds", 1, "--teacher_learning_rate", 1e-3]


def test_the_loss_is_one_minus_the_cosine_to_the_teacher_and_the_card_names_it(flags, toy_data, teacher, tmp_path):
    more = ["--teacher_dims", 32, "--keep_layers", 1, "--output_dir", tmp_path]
    assert run_here("training_recommended.py", *flags, *more) == 0
    run, texts = only(tmp_path), set()
    for file in (toy_data / "KorNLI" / "toy.train.ko.tsv", toy_data / "KorSTS" / "sts-train.tsv"):
        header, *rows = (line.split("\t") for line in file.read_text(encoding="utf-8").splitlines())
        texts |= {row[header.index(f"sentence{column}")] for row in rows for column in (1, 2)}
    batch = [sorted(texts)[row] for row in np.random.default_rng((777, 0)).permutation(len(texts))[:64]]
    pupil, tokenizer = AutoModel.from_pretrained(flags[1]).eval(), AutoTokenizer.from_pretrained(flags[1])
    pupil.encoder.layer, inputs = pupil.encoder.layer[1:], tokenizer(batch, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens, mask = pupil(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(-1)
    mine = ((tokens * mask).sum(1) / mask.sum(1)).numpy()
    theirs = SentenceTransformer(str(teacher)).encode(batch)[:, :32]
    cosines = (mine * theirs).sum(1) / np.linalg.norm(mine, axis=1) / np.linalg.norm(theirs, axis=1)
    log = json.loads((run / "teacher" / "log.json").read_text())["log"]
    losses = [row["teacher_loss"] for row in log if "teacher_loss" in row]
    assert losses[0] == pytest.approx(1 - cosines.mean(), abs=1e-4) and losses[-1] < losses[0]
    assert not [*run.rglob("*.npy"), *run.rglob("checkpoint-*")]
    assert json.loads((run / "config.json").read_text())["num_hidden_layers"] == 1
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "| its layers | 1 (from 0)" in card and "| teacher | a-teacher |" in card
    assert f"| teacher | {len(texts):,} TEACHER rows in batches of 64 | EmbedDistillLoss |" in card
    more = ["--output_dir", tmp_path / "next", "--model_name_or_path", run, "--max_rounds", 1, "--warmup_steps", 0]
    assert run_here("training_sts.py", *flags[2:4], *more) == 0
    assert "learned embeddings of a-teacher" in (only(tmp_path / "next") / "README.md").read_text(encoding="utf-8")


def test_killed_and_resumed_without_its_teacher_it_is_the_same(flags, teacher, tmp_path):
    script, more = "training_recommended.py", ["--save_steps", 1, "--output_dir"]  # with a projection of 32 to 48
    assert train(script, *flags, *more, tmp_path / "whole")[0] == 0
    assert train(script, *flags, *more, tmp_path / "killed", at=3)[0] == 143
    moved = teacher.rename(tmp_path / "moved")
    assert train(script, "--resume", only(tmp_path / "killed")) == (0, ["teacher", "sts", "sts"])
    moved.rename(teacher)
    both = [(only(tmp_path / name) / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert both[0] == both[1]


@pytest.mark.parametrize("more", ["--keep_layers 2: the base has 2 layers", "--teacher_dims 64: ", "--teacher ."])
def test_what_cannot_work_is_one_line(flags, tmp_path, capsys, more):
    flag, _, value = more.partition(":")[0].partition(" ")
    assert run_here("training_recommended.py", *flags, flag, value, "--output_dir", tmp_path) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert more in line or "cannot be loaded as a sentence-embedding model" in line
