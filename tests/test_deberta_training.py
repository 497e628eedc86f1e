"""A training run on the fast attention follows the library's, loss by loss; pooling sees only real tokens."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    CosineSimilarityLoss,
    MultipleNegativesRankingLoss,
)

from kf_deberta.model.attention import use_fast_attention
from kf_deberta.training.batches import ShuffledBatchSampler
from kf_deberta.training.trainer import MultiTaskTrainer

SENTENCES = [
    "한 남자가 기타를 친다.",
    "아이들이 공원에서 공을 차며 즐겁게 놀고 있다.",
    "비가 온다.",
    "그 여자는 어제 시장에서 산 신선한 채소로 저녁을 만들고 가족과 함께 먹었다.",
    "고양이가 잔다.",
    "두 사람이 길을 걷는다.",
]


def _losses(model, loss, steps: int = 30) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    generator = np.random.default_rng(0)
    labels = torch.linspace(0, 1, 3)
    values = []
    for _ in range(steps):
        first, second = np.split(generator.permutation(SENTENCES), 2)
        value = loss([model.preprocess(list(column)) for column in (first, second)], labels)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        values.append(value.item())
    return values


@pytest.mark.parametrize("kind", [CosineSimilarityLoss, MultipleNegativesRankingLoss])
def test_losses_and_weights_follow_the_library(toy_base, kind):
    library = SentenceTransformer(str(toy_base), device="cpu").train()
    for module in library.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    fast = copy.deepcopy(library)
    assert use_fast_attention(fast) == 1
    expected, actual = _losses(library, kind(library)), _losses(fast, kind(fast))
    assert max(expected) - min(expected) > 1e-3  # it learns something
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)
    for (name, mine), theirs in zip(fast.named_parameters(), library.parameters(), strict=True):
        assert (mine - theirs).abs().max() <= 5e-3, name


@pytest.mark.parametrize("kind", [CosineSimilarityLoss, CoSENTLoss])
def test_a_pair_shares_a_forward_pass_with_the_librarys_loss_and_gradients(toy_base, tmp_path, kind):
    model = SentenceTransformer(str(toy_base), device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    first, second, gold = SENTENCES[:3], SENTENCES[3:], [0.1, 0.5, 0.9]
    trainer = MultiTaskTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[]),
        train_dataset={"sts": Dataset.from_dict({"sentence1": first, "sentence2": second, "score": gold})},
        loss={"sts": kind(model)},
        batch_samplers={"sts": ShuffledBatchSampler(SENTENCES[:3], 3, 0)},
    )
    expected = kind(model)([model.preprocess(first), model.preprocess(second)], torch.tensor(gold))
    expected.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    (batch,) = trainer.get_train_dataloader()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    assert len(passes) == 1
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, parameter), theirs in zip(model.named_parameters(), gradients, strict=True):
        np.testing.assert_allclose(parameter.grad, theirs, rtol=1e-4, atol=1e-5, err_msg=name)


def test_embeddings_do_not_depend_on_batch_or_order(toy_base):
    model = SentenceTransformer(str(toy_base), device="cpu")
    expected = model.encode(SENTENCES, batch_size=1)
    use_fast_attention(model)
    for size in (1, 2, len(SENTENCES)):
        np.testing.assert_allclose(model.encode(SENTENCES, batch_size=size), expected, rtol=0, atol=1e-5)
