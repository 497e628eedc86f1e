"""The training loop against a plain one, and what its flags change or must not change."""

import copy
import math
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    CosineSimilarityLoss,
    MultipleNegativesRankingLoss,
)
from torch.optim.lr_scheduler import LambdaLR

import training_multi_task
import training_sts
from data_util import load_kor_nli, load_kor_sts
from in_process import run_here
from kf_deberta.model.load import load_model
from kf_deberta.training import loop
from kf_deberta.training.batches import ShuffledBatches, TripletBatches
from recording import record


@pytest.fixture(scope="module")
def train(still_base, toy_data, tmp_path_factory):
    """Train on the base without dropout; returns the recording and the final weights."""

    def call(module, *flags):
        common = ["--model_name_or_path", still_base, "--dataset_path", toy_data, "--logging_steps", 1]
        run = record(module, [*common, "--learning_rate", 1e-3, *flags], tmp_path_factory.mktemp("out"))
        return run, load_file(run.directory / "model.safetensors")

    return call


MULTI = ["--max_rounds", 4, "--nli_batch_size", 32]


@pytest.fixture(scope="module")
def multi(train):
    return train(training_multi_task, *MULTI)


@pytest.fixture(scope="module")
def sts(train):
    return train(training_sts, "--max_rounds", 5, "--num_epochs", 2)


def assert_same(run, weights, other, others_weights, atol=2e-4):
    """Same losses and weights; a gradient of rounding size gives an Adam step of either sign, hence `atol`."""
    for name in {step.objective.name for step in run.steps}:
        assert run.log(f"{name}_loss") == pytest.approx(other.log(f"{name}_loss"), rel=1e-3)
    for name, value in weights.items():
        assert torch.allclose(value, others_weights[name], atol=atol), name


def test_the_loop_trains_as_plain_torch_with_the_librarys_losses_does(multi, still_base, toy_data):
    model = SentenceTransformer(str(still_base), device="cpu").train()
    nli = load_kor_nli([toy_data / "KorNLI" / "toy.train.ko.tsv"], 42)
    sts = load_kor_sts(toy_data / "KorSTS" / "sts-train.tsv")
    named = list(model.named_parameters())
    spared = ("bias", "LayerNorm.weight")
    groups = [
        {"params": [p for n, p in named if not n.endswith(spared)], "weight_decay": 0.01},
        {"params": [p for n, p in named if n.endswith(spared)], "weight_decay": 0.0},
    ]
    turns = []
    for rows, batches, loss in (
        (nli, TripletBatches(nli, 32, 42), MultipleNegativesRankingLoss(model)),
        (sts, ShuffledBatches(sts, 8, 42), CosineSimilarityLoss(model)),
    ):
        optimizer = torch.optim.AdamW([dict(group) for group in groups], lr=1e-3)
        schedule = LambdaLR(optimizer, lambda n: n if n < 1 else (4 - n) / 3)  # a warm-up of one round
        turns.append((rows, iter(batches), loss, optimizer, schedule))
    losses = {"nli": [], "sts": []}
    for _ in range(4):
        for (rows, batches, loss, optimizer, schedule), name in zip(turns, losses, strict=True):
            batch = rows[next(batches)]
            labels = torch.tensor(batch.pop("score")) if "score" in batch else None
            value = loss([model.preprocess(texts) for texts in batch.values()], labels)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses[name].append(value.item())
    run, weights = multi
    for name, values in losses.items():
        assert run.log(f"{name}_loss") == pytest.approx(values, rel=1e-4)
    plain = model[0].model.state_dict()
    start = load_file(still_base / "model.safetensors")
    moved = max((plain[name] - start[name]).abs().max().item() for name in weights)
    worst = max((plain[name] - value).abs().max().item() for name, value in weights.items())
    assert moved > 1e-3 and worst < 0.1 * moved


def test_mini_batches_checkpointing_and_workers_change_no_result(train, multi):
    assert_same(*multi, *train(training_multi_task, *MULTI, "--nli_mini_batch_size", 8))
    run, weights = train(training_multi_task, *MULTI, "--gradient_checkpointing", "--dataloader_num_workers", 0)
    assert_same(*multi, run, weights)
    assert run.model[0].model.is_activation_checkpointing


def test_workers_train_on_the_same_batches(sts, still_base, toy_data, tmp_path):
    words = ["--model_name_or_path", still_base, "--dataset_path", toy_data, "--max_rounds", 5, "--num_epochs", 2]
    words += ["--learning_rate", 1e-3, "--output_dir", tmp_path, "--dataloader_num_workers", 1]
    assert run_here("training_sts.py", *words) == 0
    weights = load_file(next(tmp_path.glob("*/model.safetensors")))
    assert all(torch.equal(value, weights[name]) for name, value in sts[1].items())


def test_bf16_keeps_weights_and_losses_near_float32(train, sts):
    run, weights = train(training_sts, "--max_rounds", 5, "--num_epochs", 2, "--bf16")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert run.log("sts_loss") == pytest.approx(sts[0].log("sts_loss"), rel=0.05)
    assert run.log("sts_loss") != sts[0].log("sts_loss")


def test_a_compiled_encoder_is_trained_and_saved(train, sts, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda module: calls.append(1) or module)  # compiling takes minutes on a CPU
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: calls.append(type(self).__name__))
    run, weights = train(training_sts, "--max_rounds", 5, "--num_epochs", 2, "--torch_compile")
    assert calls == [1, "DebertaV2Model"]
    assert all(torch.equal(value, weights[name]) for name, value in sts[1].items())


def test_decay_clipping_warm_up_and_schedules(train):
    flags = ["--weight_decay", 0.3, "--max_grad_norm", 0.5, "--warmup_steps", 2, "--lr_scheduler_type", "cosine"]
    run, _ = train(training_sts, "--max_rounds", 5, "--num_epochs", 2, *flags)
    share = [0, 0.5, *((1 + math.cos(math.pi * number / 3)) / 2 for number in range(3))]
    assert [step.rates[0] for step in run.steps] == pytest.approx(1e-3 * np.array(share))
    assert {group["weight_decay"] for group in run.steps[0].objective.optimizer.param_groups} == {0.3, 0.0}
    assert [step.clipped_norm for step in run.steps] == pytest.approx(
        np.minimum(run.log("sts_grad_norm"), 0.5), rel=1e-4
    )
    run, _ = train(
        training_sts, "--max_rounds", 5, "--lr_scheduler_type", "constant_with_warmup", "--warmup_steps", 0.4
    )
    assert [step.rates[0] for step in run.steps] == pytest.approx([0, 5e-4, 1e-3, 1e-3, 1e-3])


def test_max_rounds_never_trains_longer_than_the_epochs(train):
    run, _ = train(training_sts, "--num_epochs", 1, "--max_rounds", 50)
    assert len(run.steps) == 4


@pytest.mark.parametrize(("rounds", "warmup"), [(1, 0.1), (3, 3), (3, 7)])
def test_a_warm_up_that_takes_all_rounds_is_refused(still_base, toy_data, tmp_path, capsys, rounds, warmup):
    flags = ["--model_name_or_path", still_base, "--dataset_path", toy_data, "--output_dir", tmp_path]
    assert run_here("training_sts.py", *flags, "--max_rounds", rounds, "--warmup_steps", warmup) == 2
    assert f"error: --warmup_steps {warmup}: takes all {rounds} rounds" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [CosineSimilarityLoss, CoSENTLoss])
def test_a_pair_shares_a_forward_pass_with_the_librarys_loss_and_gradients(still_base, kind):
    model = SentenceTransformer(str(still_base), device="cpu").train()
    columns, gold = (
        (["비가 온다.", "두 사람이 길을 걷는다."], ["해가 뜬다.", "아이가 잔다."]),
        torch.tensor([0.1, 0.9]),
    )
    features = [model.preprocess(texts) for texts in columns]
    expected = kind(model)(copy.deepcopy(features), gold)
    expected.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    loss = loop.loss_of(model, kind(model), features, gold)
    loss.backward()
    assert len(passes) == 1 and loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, parameter), theirs in zip(model.named_parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, theirs, rtol=1e-4, atol=1e-5), name


def test_a_loss_that_is_not_finite_stops_the_run_and_names_round_and_rows(still_base, toy_data, tmp_path, capsys):
    compute, calls = CosineSimilarityLoss.compute_loss_from_embeddings, []

    def overflow(self, embeddings, labels):
        calls.append(1)
        return compute(self, embeddings, labels) * (float("inf") if len(calls) == 3 else 1)

    flags = ["--model_name_or_path", still_base, "--dataset_path", toy_data, "--output_dir", tmp_path, *MULTI]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CosineSimilarityLoss, "compute_loss_from_embeddings", overflow)
        assert run_here("training_multi_task.py", *flags, "--save_steps", 1) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    sts = load_kor_sts(toy_data / "KorSTS" / "sts-train.tsv")
    *_, rows = islice(ShuffledBatches(sts, 8, 42), 3)
    assert f"non-finite loss of sts in round 3, rows {rows}" in line and sts[rows[0]]["sentence1"][:20] in line
    assert next(tmp_path.glob("*/checkpoint-2/model.safetensors"))  # the one before is kept


DEVICES = ["meta", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_needs_no_value_from_the_device(toy_base, device):
    """The meta device has shapes and no values: a step that needs one (item, tolist, nonzero) fails on it."""
    model = load_model(str(toy_base), device="cpu").train()
    columns = ["anchor", "positive", "negative"]
    triplets = [
        dict(zip(columns, row, strict=True)) for row in (("가강 나금", "다", "바"), ("마", "사 자", "차 가 나"))
    ]
    pairs = [
        {"sentence1": "가강 나금", "sentence2": "다", "score": 0.1},
        {"sentence1": "마", "sentence2": "바", "score": 1.0},
    ]
    model.to(device)
    watch = torch.cuda.set_sync_debug_mode if device == "cuda" else lambda mode: None
    for rows, loss in ((triplets, MultipleNegativesRankingLoss(model)), (pairs, CosineSimilarityLoss(model))):
        for mode in ("default", "error"):  # the first step may set up libraries
            features, labels = loop.move(*loop.collate(model, rows), torch.device(device))
            watch(mode)
            loop.loss_of(model, loss, features, labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            watch("default")
    assert all(weight.grad is not None for weight in model[0].model.encoder.layer.parameters())


def test_the_log_goes_to_the_trackers(train, monkeypatch):
    from accelerate import Accelerator

    rows, started = [], []
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, *args: started.append(args))
    monkeypatch.setattr(Accelerator, "log", lambda self, row, step: rows.append((step, row)))
    run, _ = train(training_sts, "--max_rounds", 3, "--run_name", "금융 1")
    assert started[0][0] == "kf-deberta-multitask" and started[0][2] == {"wandb": {"name": "금융 1"}}
    assert [step for step, row in rows if "sts_loss" in row] == [1, 2, 3]
    assert [step for step, row in rows if "sts-dev_cosine_spearman" in row] == [0, 3]
