"""A training step of the fast path asks the device for nothing: lengths are read from masks on the host.

The "meta" device holds shapes and no values, so that a step on it that needs a value (tolist, item, nonzero) fails.
"""

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss, MultipleNegativesRankingLoss

from kf_deberta.model.load import load_model
from kf_deberta.model.packing import layout_of
from kf_deberta.training.batches import ShuffledBatchSampler
from kf_deberta.training.trainer import MultiTaskTrainer

DEVICES = ["meta", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.fixture
def trainer(toy_base, tmp_path):
    model = load_model(str(toy_base), device="cpu").train()
    columns = {"anchor": ["가강 나금", "다"], "positive": ["마", "바산 사집 아책"], "negative": ["자말", "차 가"]}
    data = {"nli": Dataset.from_dict(columns)}
    data["sts"] = data["nli"].remove_columns("negative").add_column("score", [0.1, 0.9])
    return MultiTaskTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[]),
        train_dataset=data,
        loss={"nli": MultipleNegativesRankingLoss(model), "sts": CosineSimilarityLoss(model)},
        batch_samplers={name: ShuffledBatchSampler(rows, 2, 0) for name, rows in data.items()},
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("objective", [0, 1])
def test_a_step_needs_no_value_from_the_device(trainer, monkeypatch, objective, device):
    monkeypatch.setattr(SentenceTransformerTrainingArguments, "device", torch.device(device))
    batch = list(trainer.get_train_dataloader())[objective]
    model = trainer.model.to(device)
    watch = torch.cuda.set_sync_debug_mode if device == "cuda" else lambda mode: None
    for mode in ("default", "error"):  # the first step may set up libraries
        watch(mode)
        trainer.compute_loss(model, trainer._prepare_inputs(dict(batch))).backward()
    watch("default")
    assert all(parameter.grad is not None for parameter in model[0].model.encoder.layer.parameters())


def test_a_mask_brings_its_layout(toy_base):
    model = load_model(str(toy_base), device="cpu").eval()
    features = model.preprocess(["가강 나금 다", "마"])
    expected = model(dict(features))["token_embeddings"]
    mask = features["attention_mask"].clone()
    mask.token_layout = layout_of(mask, pack=True).to(mask.device)
    assert mask.token_layout.real is not None and layout_of(mask, pack=True) is mask.token_layout
    assert torch.equal(model(features | {"attention_mask": mask})["token_embeddings"], expected)
