"""The eight figures against scipy, plain transformers and the library's evaluator, and their bootstrap."""

import csv

import numpy as np
import pytest
import torch
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


def similarities_by_definition(u, v):
    u, v = u.astype(np.float64), v.astype(np.float64)
    cosine = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    return [cosine, -np.linalg.norm(u - v, axis=1), -np.abs(u - v).sum(1), (u * v).sum(1)]


def clearly_ordered(similarities):
    """Leave out pairs whose order float32 rounding decides, which moves Spearman by more than the test allows."""
    keep = np.ones(len(similarities[0]), dtype=bool)
    for values in similarities:
        order = np.argsort(values)
        keep[order[1:][np.diff(values[order]) < 1e-5 * np.abs(values).max()]] = False
    return np.flatnonzero(keep)


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
    path, chosen = request.getfixturevalue(base), sample.select(range(60))
    similarities = similarities_by_definition(
        *(transformers_embeddings(path, chosen[n]) for n in chosen.column_names[:2])
    )
    clear = clearly_ordered(similarities)
    assert len(clear) > 30
    chosen, expected = chosen.select(clear), []
    for values in similarities:
        expected += [f(values[clear], chosen["score"][:])[0] for f in (stats.pearsonr, stats.spearmanr)]
    figures = PairEvaluator(chosen, "sts-test", 16)(load_model(str(path), device="cpu"))
    assert list(figures) == list(FIGURES) and list(figures.values()) == pytest.approx(expected, abs=1e-6)


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
        # the library computes in float32, whose rounding decides ranks of nearly equal and of equal binary cosines
        tolerance = 1e-6 if kind == "pearson" else 0.05 if precision == "binary" else 2e-3
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
    assert np.linalg.norm(transform(pairs, 3, "float32", normalize=True).embeddings, axis=1) == pytest.approx(
        np.ones(8)
    )
    assert transform(pairs, 3, "float32").embeddings.tolist() == pairs.embeddings[:, :3].tolist()


def test_each_distinct_sentence_is_encoded_once_and_lands_in_its_pair():
    seen = []

    def encode(sentences):
        seen.extend(sentences)
        return np.array([[len(sentence), 1.0] for sentence in sentences])

    pairs = encode_pairs(encode, ["a", "bb", "a"], ["ccc", "a", "bb"])
    assert sorted(seen) == ["a", "bb", "ccc"]
    assert pairs.embeddings[pairs.first, 0].tolist() == [1, 2, 1]
    assert pairs.embeddings[pairs.second, 0].tolist() == [3, 1, 2]


def test_what_has_no_correlation_is_an_input_error():
    for bad in (np.nan, np.inf):
        with pytest.raises(InputError, match="1 of 3 sentences have NaN or infinite"):
            encode_pairs(lambda sentences, bad=bad: np.array([[1.0], [bad], [2.0]]), ["a", "b"], ["b", "c"])
    noise = 1e-8 * np.random.default_rng(0).normal(size=(4, 8))  # a collapsed model: equal but for rounding
    collapsed = PairEmbeddings((1 + noise).astype(np.float32), np.array([0, 1]), np.array([2, 3]))
    with pytest.raises(InputError, match="all pairs have the same cosine similarity.* 1 different embeddings for 4 "):
        pair_similarities(collapsed)
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
        name = f"sts-test-{dimension}" if dimension else "sts-test"
        columns = [pairs[column][:] for column in pairs.column_names]
        library = EmbeddingSimilarityEvaluator(
            *columns, name=name, similarity_fn_names=list(SIMILARITIES), truncate_dim=dimension
        )
        library(model, str(tmp_path / "library"), 0.5, 3)
        ours, theirs = (
            list(csv.reader((tmp_path / kind / library.csv_file).open(newline=""))) for kind in ("ours", "library")
        )
        assert ours[0] == theirs[0] and ours[1][:2] == theirs[1][:2] and ours[2][:2] == ["1", "6"]
        # padding differs by batch, and a rounding that swaps two of 40 ranks shows in Spearman
        assert list(map(float, ours[1])) == pytest.approx(list(map(float, theirs[1])), abs=2e-3)
        assert list(map(float, ours[1][2::2])) == pytest.approx(list(map(float, theirs[1][2::2])), abs=1e-6)
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


def test_interval_is_scipys(resampled):
    similarities, gold = resampled
    figures = bootstrap.resampled_figures(similarities, gold, 2000, SEED)
    low, high = bootstrap.interval(figures)[:, FIGURES.index("cosine_spearman")]
    options = {"paired": True, "vectorized": False, "n_resamples": 1000, "method": "percentile"}
    expected = stats.bootstrap(
        (similarities[0], gold), lambda x, y: stats.spearmanr(x, y)[0], rng=np.random.default_rng(9), **options
    ).confidence_interval
    # other random draws: the ends differ by their own sampling error, a small part of the width
    assert [low, high] == pytest.approx([expected.low, expected.high], abs=0.1 * (high - low))


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
    assert bootstrap.interval(figures) == pytest.approx(np.ones((2, 8)))
    assert not recwarn.list
