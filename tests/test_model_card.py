"""The card a run leaves can be published unedited: valid metadata, right figures, code that runs."""

import json
import re

import numpy as np
import pytest
from huggingface_hub import ModelCard

from recording import record


@pytest.fixture(scope="module")
def run(toy_base, toy_data, tmp_path_factory):
    import training_multi_task

    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--num_epochs", 2, "--nli_batch_size", 32]
    flags += ["--learning_rate", 3e-3, "--matryoshka_dims", "16,8"]
    return record(training_multi_task, flags, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def card(run):
    return ModelCard.load(run.directory / "README.md")


def test_metadata_is_valid_korean_and_leaves_the_licence_open(card):
    assert card.data.language == ["ko"]
    assert card.data.get("license") is None
    metadata = card.data.to_dict()
    assert metadata["library_name"] == "sentence-transformers"
    assert metadata["pipeline_tag"] == "sentence-similarity"


def test_model_index_holds_test_and_best_dev_figures(run, card):
    facts = json.loads((run.directory / "training_arguments.json").read_text())
    results = {(r.dataset_type, r.metric_type): r.metric_value for r in card.data.eval_results}
    for similarity in ("cosine", "euclidean", "manhattan", "dot"):
        for kind in ("pearson", "spearman"):
            expected = facts["test"][f"{similarity}_{kind}"] / 100
            assert results["sts-test", f"{kind}_{similarity}"] == pytest.approx(expected)
    dev = [row for row in run.trainer.state.log_history if "eval_sts-dev_spearman_cosine" in row and row["step"]]
    best = max(row["eval_sts-dev_spearman_cosine"] for row in dev)
    assert results["sts-dev", "spearman_cosine"] == pytest.approx(best)


def test_text_has_korean_examples_figures_recipe_versions_and_citations(card, run):
    figures = json.loads((run.directory / "training_arguments.json").read_text())["test"]
    for text in ("만기가 된 정기예금", f"{figures['cosine_spearman']:.2f}", "| nli_batch_size | 32 |", "torch 2.13.0"):
        assert text in card.text
    assert "ham2020kornli" in card.text and "Matryoshka" in card.text
    assert str(run.directory.parent) not in card.text  # nothing of this machine


def test_both_usages_run_and_agree(card, run, monkeypatch):
    first, second = re.findall(r"```python\n(.*?)```", card.text, re.S)[:2]
    assert run.directory.name in first and run.directory.name in second
    monkeypatch.chdir(run.directory.parent)
    left, right = {}, {}
    exec(first, left)
    exec(second, right)
    assert np.allclose(left["embeddings"], right["embeddings"].numpy(), atol=1e-5)


def test_hub_name_of_the_base_and_its_citation(tmp_path, run, toy_base):
    from sentence_transformers import SentenceTransformer

    from kf_deberta.training.card import prepare_model_card, write_model_card

    model = SentenceTransformer(str(toy_base), device="cpu")
    prepare_model_card(model, "kakaobank/kf-deberta-base")
    facts = json.loads((run.directory / "training_arguments.json").read_text())
    facts["arguments"]["model_name_or_path"] = "kakaobank/kf-deberta-base"
    write_model_card(model, facts, tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == "kakaobank/kf-deberta-base"
    assert "jeon-etal-2023-kfdeberta" in card.text
