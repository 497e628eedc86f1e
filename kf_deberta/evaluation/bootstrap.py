"""Bootstrap of the eight figures over sentence pairs: how far would they move on another test set like this one?

The seed decides the resamples, so all models share them, and differences between models are paired.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from scipy.stats import ConstantInputWarning, pearsonr, rankdata

from kf_deberta.evaluation.scoring import FIGURES

CHUNK = 1_000_000  # drawn pairs held at a time; bounds memory, changes no result


def resampled_figures(similarities: np.ndarray, gold: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Compute the eight figures of every resample, float64 (8, resamples); NaN if all values of one are equal.

    `similarities` are (4, pairs), `gold` (pairs,). A resample draws as many pairs as there are, with replacement.
    """
    generator, pairs, chunks = np.random.default_rng(seed), len(gold), []
    for size in np.diff([*range(0, resamples, max(1, CHUNK // pairs)), resamples]):
        draws = generator.integers(pairs, size=(size, pairs))
        scores, figures = gold[draws], []
        ranks = rankdata(scores, axis=1)
        with warnings.catch_warnings(action="ignore", category=ConstantInputWarning):
            for values in similarities:
                figures.append(pearsonr(values[draws], scores, axis=1).statistic)
                figures.append(pearsonr(rankdata(values[draws], axis=1), ranks, axis=1).statistic)
        chunks.append(figures)
    return np.concatenate(chunks, axis=1)


def interval(samples: np.ndarray) -> np.ndarray:
    """Percentile interval that holds 95% of the resamples: (..., resamples) to (2, ...), low and high."""
    return np.nanquantile(samples, [0.025, 0.975], axis=-1)


def p_value(differences: np.ndarray) -> np.ndarray:
    """Two-sided p-value of "no difference": (..., resamples) to (...), not corrected for several comparisons.

    Twice the smaller share of resamples whose difference is at most, or at least, 0; the data count as one more.
    """
    resamples = np.isfinite(differences).sum(axis=-1)
    smaller = np.minimum((differences <= 0).sum(axis=-1), (differences >= 0).sum(axis=-1))
    return np.minimum(2 * (smaller + 1) / (resamples + 1), 1)


def add_bootstrap(
    records: Sequence[dict], similarities: Sequence[np.ndarray], gold: np.ndarray, resamples: int, seed: int
) -> None:
    """Add 95% intervals to each record of evaluation.report, and the paired difference to the first to all others."""
    first, samples = records[0], [resampled_figures(values, gold, resamples, seed) for values in similarities]
    for record, own in zip(records, samples, strict=True):
        low, high = interval(own)
        added = {"low": low, "high": high}
        record |= {"resamples": resamples, "seed": seed}
        if record is not first:
            low, high = interval(own - samples[0])
            added |= {"difference_low": low, "difference_high": high, "p": p_value(own - samples[0])}
            record |= {"compared_with": first["label"]} | {f"{n}_difference": record[n] - first[n] for n in FIGURES}
        for suffix, values in added.items():
            record |= {f"{name}_{suffix}": value for name, value in zip(FIGURES, values.tolist(), strict=True)}
