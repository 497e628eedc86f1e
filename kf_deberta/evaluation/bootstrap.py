"""Bootstrap of the eight figures over sentence pairs: how far would they move on another test set like this one?

A resample draws as many pairs as there are, with replacement. The seed decides the resamples, so all models share
them, and differences between models are paired.
"""

import warnings

import numpy as np
from scipy.stats import ConstantInputWarning, pearsonr, rankdata

CHUNK = 1_000_000  # drawn pairs held at a time; bounds memory, changes no result
LEVEL = 0.95


def resampled_figures(similarities: np.ndarray, gold: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Compute the eight figures of every resample.

    Args:
        similarities: (4, pairs) as scoring.pair_similarities gives them.
        gold: (pairs,) gold scores.
        resamples: number of resamples.
        seed: seed of the draws, 0 or larger.

    Returns:
        float64 (8, resamples) in the order of scoring.FIGURES; NaN where a resample holds one value only.
    """
    generator, pairs = np.random.default_rng(seed), len(gold)
    # order is all that ranks need, and small integers are sorted twice as fast
    dense = [rankdata(values, method="dense").astype(np.int32) for values in (gold, *similarities)]
    chunks = []
    for size in np.diff([*range(0, resamples, max(1, CHUNK // pairs)), resamples]):
        draws = generator.integers(pairs, size=(size, pairs))
        gold_ranks, *ranks = (rankdata(values[draws], axis=1) for values in dense)
        with warnings.catch_warnings(action="ignore", category=ConstantInputWarning):
            figures = [
                pearsonr(x, y, axis=1).statistic
                for values, value_ranks in zip(similarities, ranks, strict=True)
                for x, y in ((values[draws], gold[draws]), (value_ranks, gold_ranks))
            ]
        chunks.append(figures)
    return np.concatenate(chunks, axis=1)


def interval(samples: np.ndarray) -> np.ndarray:
    """Percentile interval that holds 95% of the resamples: (..., resamples) to (2, ...), low and high."""
    tail = (1 - LEVEL) / 2
    return np.nanquantile(samples, [tail, 1 - tail], axis=-1)


def p_value(differences: np.ndarray) -> np.ndarray:
    """Two-sided p-value of "no difference": (..., resamples) to (...).

    Twice the smaller of the shares of resamples in which the difference is at most, or at least, 0; the observed data
    count as one more resample on both sides, so it is never below 2 / (resamples + 1). Several comparisons are not
    corrected for.
    """
    resamples = np.isfinite(differences).sum(axis=-1)
    smaller = np.minimum((differences <= 0).sum(axis=-1), (differences >= 0).sum(axis=-1))
    return np.minimum(2 * (smaller + 1) / (resamples + 1), 1.0)
