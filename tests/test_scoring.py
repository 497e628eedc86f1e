"""The eight figures against scipy, plain transformers and the library's evaluator, and their bootstrap."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from transformers import AutoModel, AutoTokenizer

from data_util import load_kor_sts
from kf_deberta.errors import InputError
from kf_deberta.evaluation import bootstrap
from kf_deberta.evaluation.scoring import (
    FIGURES,
    SIMILARITIES,
    PairEmbeddings,
    PairEvaluator,
    check_gold,
    encode_pairs,
    pair_similarities,
    score,
    transform,
)
from kf_deberta.model.load import load_model

PAIRS, SEED = 200, 3
RANKS = 5e-3  # rounding decides some ranks of nearly equal similarities


def similarities_by_definition(u, v):
    u, v = u.astype(np.float64), v.astype(np.float64)
    cosine = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    return [cosine, -np.linalg.norm(u - v, axis=1), -np.abs(u - v).sum(1), (u * v).sum(1)]


@torch.inference_mode()
def transformers_embeddings(path, sentences):
    """Mean pooling by hand, one sentence at a time, so without any padding; eager library attention."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    batches = [tokenizer(sentence, return_tensors="pt", truncation=True, max_length=128) for sentence in sentences]
    return np.stack([model(**batch).last_hidden_state[0].mean(0).numpy() for batch in batches])


@pytest.fixture(scope="module")
def sample(repo):
    return load_kor_sts(repo / "sample" / "KorSTS" / "sts-test.tsv")


@pytest.fixture(scope="module")
def model(toy_base):
    return load_model(str(toy_base), device="cpu")


@pytest.mark.parametrize("base", ["toy_base", "tiny_deberta"])
def test_figures_equal_scipy_on_plain_transformers_embeddings(base, request, sample):
    path, pairs = request.getfixturevalue(base), sample.select(range(60))
    embeddings = (transformers_embeddings(path, pairs[name]) for name in ("sentence1", "sentence2"))
    expected = []
    for values in similarities_by_definition(*embeddings):
        expected += [f(values, pairs["score"][:])[0] for f in (stats.pearsonr, stats.spearmanr)]
    figures = PairEvaluator(pairs, "sts-test", 16)(load_model(str(path), device="cpu"))
    assert list(figures) == list(FIGURES)
    assert list(figures.values())[::2] == pytest.approx(expected[::2], abs=1e-6)
    assert list(figures.values())[1::2] == pytest.approx(expected[1::2], abs=RANKS)


@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
@pytest.mark.parametrize("dimension", [None, 20])
def test_figures_equal_the_library_evaluator(dimension, precision, model, sample):
    columns = [sample[name][:40] for name in sample.column_names]
    evaluator = EmbeddingSimilarityEvaluator(
        *columns,
        batch_size=1,  # without padding an embedding does not depend on its batch
        similarity_fn_names=list(SIMILARITIES),
        main_similarity="cosine",
        precision=None if precision == "float32" else precision,
        truncate_dim=dimension,
        write_csv=False,
    )
    metrics = evaluator(model)
    pairs = encode_pairs(lambda sentences: model.encode(sentences, batch_size=1), *columns[:2])
    figures = score(pair_similarities(transform(pairs, dimension, precision)), np.array(columns[2]))
    for name in FIGURES:
        similarity, kind = name.split("_")
        # in float32, as the library computes, rounding decides the ranks of equal binary cosines too
        tolerance = 1e-6 if kind == "pearson" else 0.05 if precision == "binary" else RANKS
        assert figures[name] == pytest.approx(metrics[f"{kind}_{similarity}"], abs=tolerance), name


def test_binary_similarities_are_those_of_sets():
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(400, 6)).astype(np.float32)
    embeddings[0] = -1  # no bit at all
    pairs = PairEmbeddings(embeddings, np.arange(200), np.arange(200, 400))
    cosine, euclidean, manhattan, dot = pair_similarities(transform(pairs, None, "binary"))
    first, second = embeddings[:200] > 0, embeddings[200:] > 0
    common, sizes = (first & second).sum(1), first.sum(1) * second.sum(1)
    np.testing.assert_array_equal(dot, common)
    np.testing.assert_array_equal(manhattan, -(first != second).sum(1))
    np.testing.assert_array_equal(euclidean, -np.sqrt((first != second).sum(1)))
    np.testing.assert_allclose(cosine, common / np.sqrt(np.maximum(sizes, 1)), atol=1e-12)
    squares = {(c * c / s if s else 0.0) for c, s in zip(common.tolist(), sizes.tolist(), strict=True)}
    assert len(set(cosine.tolist())) == len(squares)  # equal ones are equal, so that they share a rank


def test_normalized_after_truncation():
    pairs = PairEmbeddings(np.random.default_rng(0).normal(size=(8, 6)), np.arange(4), np.arange(4, 8))
    lengths = np.linalg.norm(transform(pairs, 3, "float32", normalize=True).embeddings, axis=1)
    assert lengths == pytest.approx(np.ones(8))
    assert transform(pairs, 3, "float32").embeddings.tolist() == pairs.embeddings[:, :3].tolist()


def test_each_distinct_sentence_is_encoded_once_and_lands_in_its_pair():
    pairs = encode_pairs(lambda texts: np.array([[len(text)] for text in texts]), ["a", "bb", "a"], ["ccc", "a", "bb"])
    assert len(pairs.embeddings) == 3
    assert pairs.embeddings[pairs.first, 0].tolist() == [1, 2, 1]
    assert pairs.embeddings[pairs.second, 0].tolist() == [3, 1, 2]


def test_what_has_no_correlation_is_an_input_error(model):
    for bad in (np.nan, np.inf):
        with pytest.raises(InputError, match="1 of 3 sentences have NaN or infinite"):
            encode_pairs(lambda sentences, bad=bad: np.array([[1.0], [bad], [2.0]]), ["a", "b"], ["b", "c"])
    noise = 1e-8 * np.random.default_rng(0).normal(size=(4, 8))  # a collapsed model: equal but for rounding
    collapsed = PairEmbeddings((1 + noise).astype(np.float32), np.array([0, 1]), np.array([2, 3]))
    with pytest.raises(InputError, match="all pairs have the same cosine similarity.* 1 different embeddings for 4 "):
        pair_similarities(collapsed)
    twice = Dataset.from_dict({"sentence1": ["a", "a"], "sentence2": ["a", "a"], "score": [0.0, 1.0]})
    with pytest.raises(InputError, match="sts-dev: all pairs have the same cosine similarity"):
        PairEvaluator(twice, "sts-dev")(model)
    with pytest.raises(InputError, match="have 8 dimensions, --truncate_dims asks for 9"):
        transform(collapsed, 9, "float32")
    for gold, message in (([0.5], "all 1 scores are 2.5"), ([0.5] * 3, "f.tsv: all 3 scores are 2.5")):
        with pytest.raises(InputError, match=message):
            check_gold(np.array(gold), "f.tsv")


def test_evaluator_of_a_run_writes_the_files_of_the_library(model, sample, tmp_path):
    pairs = sample.select(range(40))
    evaluator = PairEvaluator(pairs, "sts-test", 7, [16, 8])
    figures = evaluator(model)
    assert list(figures) == [prefix + name for prefix in ("", "16_", "8_") for name in FIGURES]
    assert evaluator.name == "sts-test" and evaluator.gold.tolist() == pairs["score"][:]
    evaluator.write_csv(tmp_path / "ours", [{"epoch": 0.5, "steps": 3} | figures, {"epoch": 1, "steps": 6} | figures])
    for dimension in (None, 16, 8):
        columns = [pairs[column][:] for column in pairs.column_names]
        name = f"sts-test-{dimension}" if dimension else "sts-test"
        options = {"name": name, "similarity_fn_names": list(SIMILARITIES), "truncate_dim": dimension}
        library = EmbeddingSimilarityEvaluator(*columns, **options)
        library(model, str(tmp_path / "library"), 0.5, 3)
        ours, theirs = ((tmp_path / kind / library.csv_file).read_text().split() for kind in ("ours", "library"))
        assert ours[0] == theirs[0] and ours[1].startswith("0.5,3,") and ours[2].startswith("1,6,")
        values, expected = ([float(value) for value in lines[1].split(",")] for lines in (ours, theirs))
        assert values == pytest.approx(expected, abs=RANKS) and values[2::2] == pytest.approx(expected[2::2], abs=1e-6)
    assert len(list((tmp_path / "ours").iterdir())) == 3


# the bootstrap


@pytest.fixture(scope="module")
def resampled():
    generator = np.random.default_rng(1)
    gold = generator.integers(0, 11, PAIRS) / 10  # many ties, as in KorSTS
    similarities = gold + generator.normal(0, [[0.2], [0.3], [0.5], [1.0]], (4, PAIRS))
    similarities[2] = np.round(similarities[2], 1)  # ties here too, as with binary embeddings
    return similarities, gold


def test_every_resample_has_scipys_figures(resampled, monkeypatch):
    similarities, gold = resampled
    figures = bootstrap.resampled_figures(similarities, gold, 30, SEED)
    assert figures.shape == (len(FIGURES), 30)
    for b, drawn in enumerate(np.random.default_rng(SEED).integers(PAIRS, size=(30, PAIRS))):
        for s, values in enumerate(similarities):
            assert figures[2 * s, b] == pytest.approx(stats.pearsonr(values[drawn], gold[drawn])[0], abs=1e-12)
            assert figures[2 * s + 1, b] == pytest.approx(stats.spearmanr(values[drawn], gold[drawn])[0], abs=1e-12)
    monkeypatch.setattr(bootstrap, "CHUNK", 7 * PAIRS)
    np.testing.assert_array_equal(bootstrap.resampled_figures(similarities, gold, 30, SEED), figures)
    assert (bootstrap.resampled_figures(similarities, gold, 30, SEED + 1) != figures).any()


def test_p_value_of_equal_better_and_undecided_models():
    assert bootstrap.p_value(np.zeros(999)) == 1
    assert bootstrap.p_value(np.full(999, 0.2)) == pytest.approx(2 / 1000)
    differences = np.array([-1.0] * 29 + [1.0] * 970)
    assert bootstrap.p_value(np.stack([differences, -differences])) == pytest.approx([0.06, 0.06])


def test_paired_differences_tell_what_single_intervals_do_not(resampled):
    """A model with more noise on the same pairs is worse: the paired interval says so, the two single ones overlap."""
    generator, gold = np.random.default_rng(2), resampled[1]
    good = np.stack([gold + generator.normal(0, 0.3, PAIRS)] * 4)
    worse = good + generator.normal(0, 0.15, PAIRS)
    records = [{"label": name} | score(values, gold) for name, values in (("good", good), ("worse", worse))]
    bootstrap.add_bootstrap(records, [good, worse], gold, 1000, SEED)
    first, second = records
    assert first["resamples"] == 1000 and first["seed"] == SEED and "compared_with" not in first
    assert second["compared_with"] == "good" and second["cosine_spearman_high"] > first["cosine_spearman_low"]
    difference = second["cosine_spearman"] - first["cosine_spearman"]
    assert second["cosine_spearman_difference"] == pytest.approx(difference, abs=1e-12)
    assert second["cosine_spearman_difference_low"] < difference < second["cosine_spearman_difference_high"] < 0
    samples = [bootstrap.resampled_figures(values, gold, 1000, SEED)[1] for values in (good, worse)]
    ends = np.quantile(samples[1] - samples[0], [0.025, 0.975])
    assert [second[f"cosine_spearman_difference_{end}"] for end in ("low", "high")] == pytest.approx(ends, abs=1e-12)
    assert second["cosine_spearman_p"] < 0.05


def test_resample_of_equal_values_is_left_out(recwarn):
    gold = np.array([0.0, 0.5, 1.0])
    figures = bootstrap.resampled_figures(np.stack([gold + 0.1] * 4), gold, 50, SEED)
    draws = np.random.default_rng(SEED).integers(3, size=(50, 3))
    equal = (draws == draws[:, :1]).all(axis=1)
    assert 0 < equal.sum() < 50 and np.isnan(figures[:, equal]).all()
    assert figures[:, ~equal] == pytest.approx(np.ones((8, 50 - equal.sum())))
    assert bootstrap.interval(figures) == pytest.approx(np.ones((2, 8))) and not recwarn.list
