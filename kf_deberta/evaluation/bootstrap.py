"""Bootstrap of the eight figures over sentence pairs: how far would they move on another test set like this one?

A resample draws as many pairs as there are, with replacement. It is kept as its counts, how often each pair was drawn:
every correlation of the resample, Spearman's with its ties too, then follows exactly from one fixed sorting of the
pairs, and thousands of resamples are a few matrix products. All models share the resamples, so differences between
models are paired.
"""

import numpy as np
from scipy.stats import rankdata

CHUNK = 250  # resamples computed at a time; bounds memory, changes no result
LEVEL = 0.95


def draw_counts(pairs: int, resamples: int, seed: int) -> np.ndarray:
    """Draw the resamples: int16 (resamples, pairs), how often each pair is in each resample; rows sum to `pairs`."""
    generator = np.random.default_rng(seed)
    drawn = (generator.integers(pairs, size=pairs) for _ in range(resamples))
    return np.stack([np.bincount(indices, minlength=pairs).astype(np.int16) for indices in drawn])


def resampled_figures(similarities: np.ndarray, gold: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Compute the eight figures of every resample.

    Args:
        similarities: (4, pairs) as scoring.pair_similarities gives them.
        gold: (pairs,) gold scores.
        counts: (resamples, pairs) as draw_counts gives them.

    Returns:
        float64 (8, resamples) in the order of scoring.FIGURES; NaN where a resample holds one value only.
    """
    chunks = []
    for start in range(0, len(counts), CHUNK):
        weights = counts[start : start + CHUNK].astype(np.float64)
        gold_ranks = resampled_ranks(gold, weights)
        figures = []
        for values in similarities:
            figures.append(weighted_pearson(values[None] - values.mean(), gold[None] - gold.mean(), weights))
            figures.append(weighted_pearson(resampled_ranks(values, weights), gold_ranks, weights))
        chunks.append(figures)
    return np.concatenate(chunks, axis=1)


def resampled_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rank each value within each resample, ties sharing their mean rank, less the mean rank of the resample.

    Values in order 1, 2, ... with n_1, n_2, ... copies in the resample: the copies of value k take the ranks
    n_1 + ... + n_(k-1) + 1 to n_1 + ... + n_k, whose mean is the running sum minus (n_k - 1) / 2.

    Args:
        values: (pairs,).
        weights: (resamples, pairs), how often each pair is in each resample.

    Returns:
        (resamples, pairs).
    """
    distinct = rankdata(values, method="dense") - 1
    order = np.argsort(distinct, kind="stable")
    starts = np.flatnonzero(np.diff(distinct[order], prepend=-1))
    copies = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = np.cumsum(copies, axis=1) - (copies - 1) / 2
    return ranks[:, distinct] - (len(values) + 1) / 2


def weighted_pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's r of x and y, (resamples, pairs) or (1, pairs), where pair i counts weights[:, i] times."""
    shares = weights / weights.sum(axis=1, keepdims=True)
    x_mean, y_mean, x_square, y_square, product = ((shares * a).sum(axis=1) for a in (x, y, x * x, y * y, x * y))
    x_variance, y_variance = x_square - x_mean**2, y_square - y_mean**2
    # a resample of equal values keeps a rounding error as its variance
    defined = (x_variance > 1e-12 * x_square) & (y_variance > 1e-12 * y_square)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(defined, (product - x_mean * y_mean) / np.sqrt(x_variance * y_variance), np.nan)


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
