"""Bootstrap of the eight figures over sentence pairs: how far would they move on another test set like this one?

A resample draws as many pairs as there are, with replacement. The seed decides the resamples, so all models share
them, and differences between models are paired.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from scipy.stats import ConstantInputWarning, pearsonr, rankdata

from kf_deberta.evaluation.scoring import FIGURES

CHUNK = 1_000_000  # drawn pairs held at a time; bounds memory, changes no result


def resampled_figures(similarities: np.ndarray, gold: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Compute the eight figures of every resample, float64 (8, resamples); NaN if all values of one are equal.

    Args:
        similarities: (4, pairs) as scoring.pair_similarities returns them.
        gold: (pairs,) gold scores.
        resamples: number of resamples.
        seed: seed of the draws, 0 or larger.
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
    return np.nanquantile(samples, [0.025, 0.975], axis=-1)


def p_value(differences: np.ndarray) -> np.ndarray:
    """Two-sided p-value of "no difference": (..., resamples) to (...).

    Twice the smaller of the shares of resamples in which the difference is at most, or at least, 0; the observed data
    count as one more resample on both sides, so it is never below 2 / (resamples + 1). Several comparisons are not
    corrected for.
    """
    resamples = np.isfinite(differences).sum(axis=-1)
    smaller = np.minimum((differences <= 0).sum(axis=-1), (differences >= 0).sum(axis=-1))
    return np.minimum(2 * (smaller + 1) / (resamples + 1), 1.0)


def add_bootstrap(
    records: Sequence[dict], similarities: Sequence[np.ndarray], gold: np.ndarray, resamples: int, seed: int
) -> None:
    """Add 95% intervals to each record of evaluation.report, and the paired difference to the first to all others.

    `similarities` are (4, pairs) for each record; the others are as for resampled_figures.
    """

    def named(suffix: str, values: np.ndarray) -> dict[str, float]:
        return {f"{name}_{suffix}": value for name, value in zip(FIGURES, values.tolist(), strict=True)}

    samples = [resampled_figures(values, gold, resamples, seed) for values in similarities]
    figures = [np.array([record[name] for name in FIGURES]) for record in records]
    for record, own, values in zip(records, samples, figures, strict=True):
        low, high = interval(own)
        record |= {"resamples": resamples, "seed": seed} | named("low", low) | named("high", high)
        if record is not records[0]:
            low, high = interval(own - samples[0])
            record |= {"compared_with": records[0]["label"]} | named("difference", values - figures[0])
            record |= named("difference_low", low) | named("difference_high", high)
            record |= named("p", p_value(own - samples[0]))
