"""The bootstrap against scipy: every resample's figures, the interval, and what the p-value says."""

import numpy as np
import pytest
from scipy import stats

from kf_deberta.evaluation import bootstrap
from kf_deberta.evaluation.scoring import FIGURES

PAIRS, SEED = 200, 3


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(1)
    gold = generator.integers(0, 11, PAIRS) / 10  # many ties, as in KorSTS
    similarities = gold + generator.normal(0, [[0.2], [0.3], [0.5], [1.0]], (4, PAIRS))
    similarities[2] = np.round(similarities[2], 1)  # ties here too, as with binary embeddings
    return similarities, gold


def test_every_resample_has_scipys_figures(data):
    similarities, gold = data
    figures = bootstrap.resampled_figures(similarities, gold, 30, SEED)
    assert figures.shape == (len(FIGURES), 30)
    draws = np.random.default_rng(SEED).integers(PAIRS, size=(30, PAIRS))
    for b, drawn in enumerate(draws):
        for s, values in enumerate(similarities):
            assert figures[2 * s, b] == pytest.approx(stats.pearsonr(values[drawn], gold[drawn])[0], abs=1e-12)
            assert figures[2 * s + 1, b] == pytest.approx(stats.spearmanr(values[drawn], gold[drawn])[0], abs=1e-12)


def test_the_size_of_chunks_changes_no_figure(data, monkeypatch):
    whole = bootstrap.resampled_figures(*data, 30, SEED)
    monkeypatch.setattr(bootstrap, "CHUNK", 7 * PAIRS)
    np.testing.assert_array_equal(bootstrap.resampled_figures(*data, 30, SEED), whole)


def test_interval_is_scipys(data):
    similarities, gold = data
    figures = bootstrap.resampled_figures(similarities, gold, 4000, SEED)
    low, high = bootstrap.interval(figures)[:, FIGURES.index("cosine_spearman")]
    expected = stats.bootstrap(
        (similarities[0], gold),
        lambda x, y: stats.spearmanr(x, y)[0],
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(9),
    ).confidence_interval
    # other random draws: the ends differ by their own sampling error, a small part of the width
    assert low == pytest.approx(expected.low, abs=0.1 * (high - low))
    assert high == pytest.approx(expected.high, abs=0.1 * (high - low))


def test_seed_decides_the_resamples(data):
    first, again, other = (bootstrap.resampled_figures(*data, 20, seed) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_p_value_of_equal_better_and_undecided_models():
    assert bootstrap.p_value(np.zeros(999)) == 1
    assert bootstrap.p_value(np.full(999, 0.2)) == pytest.approx(2 / 1000)
    differences = np.array([-1.0] * 29 + [1.0] * 970)
    assert bootstrap.p_value(differences) == pytest.approx(2 * 30 / 1000)
    assert bootstrap.p_value(np.stack([differences, -differences])) == pytest.approx([0.06, 0.06])


def test_p_value_and_interval_agree_on_a_paired_difference(data):
    """A model with more noise on the same pairs is worse: the paired interval says so, the two single ones overlap."""
    generator = np.random.default_rng(2)
    gold = data[1]
    good = gold + generator.normal(0, 0.3, PAIRS)
    worse = good + generator.normal(0, 0.15, PAIRS)
    first, second = (
        bootstrap.resampled_figures(np.stack([values] * 4), gold, 2000, SEED)[1] for values in (good, worse)
    )
    assert bootstrap.interval(second)[1] > bootstrap.interval(first)[0]
    difference = second - first
    assert bootstrap.interval(difference)[1] < 0
    assert bootstrap.p_value(difference) < 0.05


def test_resample_of_equal_values_is_left_out(recwarn):
    gold = np.array([0.0, 0.5, 1.0])
    figures = bootstrap.resampled_figures(np.stack([gold + 0.1] * 4), gold, 50, SEED)
    draws = np.random.default_rng(SEED).integers(3, size=(50, 3))
    equal = (draws == draws[:, :1]).all(axis=1)
    assert 0 < equal.sum() < 50 and np.isnan(figures[:, equal]).all()
    assert figures[:, ~equal] == pytest.approx(np.ones((8, 50 - equal.sum())))
    assert bootstrap.interval(figures) == pytest.approx(np.ones((2, 8)))
    assert not recwarn.list
