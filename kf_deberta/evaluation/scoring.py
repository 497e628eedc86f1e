"""The eight figures of the KorSTS table: correlations of four similarities with the gold scores.

For sentence pairs with embeddings u and v, the similarities are cosine, negative Euclidean distance, negative
Manhattan distance and dot product, computed in float32 by the library functions EmbeddingSimilarityEvaluator uses;
each is correlated with the gold score by Pearson's r and Spearman's rho (scipy). All figures are in -1..1.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import pearsonr, spearmanr

from kf_deberta.errors import InputError, write_atomically

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

SIMILARITIES = ("cosine", "euclidean", "manhattan", "dot")
FIGURES = tuple(f"{similarity}_{kind}" for similarity in SIMILARITIES for kind in ("pearson", "spearman"))
CONSTANT_SHARE = 1e-6  # similarities that differ by less than this share of their size differ by rounding only


@dataclass
class PairEmbeddings:
    """Embeddings of the distinct sentences of all pairs, (sentences, dimensions), and each pair's two rows in them."""

    embeddings: np.ndarray
    first: np.ndarray
    second: np.ndarray


def encode_pairs(
    encode: Callable[[list[str]], np.ndarray], sentences1: Sequence[str], sentences2: Sequence[str]
) -> PairEmbeddings:
    """Encode the sentences of both columns together, each distinct one once; InputError for NaN or infinite values."""
    rows = {sentence: row for row, sentence in enumerate(dict.fromkeys([*sentences1, *sentences2]))}
    embeddings = encode(list(rows))
    if bad := np.count_nonzero(~np.isfinite(embeddings).all(axis=1)):
        raise InputError(f"the embeddings of {bad} of {len(rows)} sentences have NaN or infinite values")
    first, second = (np.array([rows[sentence] for sentence in column]) for column in (sentences1, sentences2))
    return PairEmbeddings(embeddings, first, second)


def transform(pairs: PairEmbeddings, dimension: int | None, precision: str, normalize: bool = False) -> PairEmbeddings:
    """Truncate embeddings to their first `dimension` values, scale them to length 1, and quantize them.

    A `precision` other than float32 normalizes too. int8: 256 levels between each dimension's minimum and maximum
    over the sentences of these pairs. binary: one bit per dimension (value > 0), bool, compared as 0 and 1.
    InputError if `dimension` exceeds the model's.
    """
    size = pairs.embeddings.shape[1]
    if dimension is not None and dimension > size:
        raise InputError(f"the embeddings have {size} dimensions, --truncate_dims asks for {dimension}")
    embeddings = pairs.embeddings[:, :dimension]
    if normalize or precision != "float32":
        embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
    if precision == "int8":
        from sentence_transformers.util import quantize_embeddings  # seconds to import

        embeddings = quantize_embeddings(embeddings, "int8")
    elif precision == "binary":
        embeddings = embeddings > 0
    return PairEmbeddings(embeddings, pairs.first, pairs.second)


def pair_similarities(pairs: PairEmbeddings) -> np.ndarray:
    """Compute SIMILARITIES of every pair, float64 (4, pairs); InputError if one is the same for all pairs."""
    u, v = pairs.embeddings[pairs.first], pairs.embeddings[pairs.second]
    if u.dtype == bool:  # float32 would break the many ties between bits by rounding
        hamming, dot = (u != v).sum(1), (u & v).sum(1)
        cosine = np.sqrt(dot**2 / np.maximum(u.sum(1) * v.sum(1), 1))
        similarities = np.stack([cosine, -np.sqrt(hamming), -hamming, dot])
    else:
        from sentence_transformers import util  # seconds to import

        functions = (util.pairwise_cos_sim, util.pairwise_euclidean_sim, util.pairwise_manhattan_sim)
        u, v = u.astype(np.float32), v.astype(np.float32)
        similarities = np.stack([f(u, v).numpy() for f in (*functions, util.pairwise_dot_score)]).astype(np.float64)
    for name, values in zip(SIMILARITIES, similarities, strict=True):
        if np.ptp(values) <= CONSTANT_SHARE * np.abs(values).max():
            different = len(np.unique(pairs.embeddings.astype(np.float32).round(4), axis=0))
            found = f"{different} different embeddings for {len(pairs.embeddings)} sentences"
            raise InputError(f"all pairs have the same {name} similarity: the model gives {found}; check both")
    return similarities


def score(similarities: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """Correlate the four similarities, (4, pairs), with the gold scores, (pairs,): the eight figures, -1..1."""
    values = [float(f(gold, row).statistic) for row in similarities for f in (pearsonr, spearmanr)]
    return dict(zip(FIGURES, values, strict=True))


def check_gold(gold: np.ndarray, path: object, scale: tuple[float, float] = (0, 5)) -> None:
    """Raise InputError if gold scores have no correlation with anything: fewer than 2 rows, or all the same."""
    if len(gold) < 2 or np.ptp(gold) == 0:
        same = f"all {len(gold)} scores are {scale[0] + gold[0] * (scale[1] - scale[0]):g}"
        raise InputError(f"{path}: {same}; a correlation needs at least two different ones")


class PairEvaluator:
    """Scores a model on sentence pairs, at full size and truncated to each of `dimensions`, from one encoding.

    `pairs` has columns sentence1, sentence2 and score (0 to 1); `name`, such as sts-dev, is part of the files' names.
    """

    def __init__(self, pairs: Dataset, name: str, batch_size: int = 64, dimensions: Sequence[int] = ()) -> None:
        self.sentences = pairs["sentence1"][:], pairs["sentence2"][:]
        self.gold = np.array(pairs["score"][:])  # (pairs,)
        check_gold(self.gold, name)
        self.name, self.batch_size = name, batch_size
        self.sizes = {"": None} | {f"{dimension}_": dimension for dimension in dimensions}

    def __call__(self, model: SentenceTransformer) -> dict[str, float]:
        """Return the figures, -1..1, by names such as `cosine_spearman`, and `256_cosine_spearman` if truncated."""
        options = {"batch_size": self.batch_size, "show_progress_bar": sys.stderr.isatty()}
        pairs = encode_pairs(lambda sentences: model.encode(sentences, **options), *self.sentences)
        figures = {}
        for prefix, dimension in self.sizes.items():
            try:
                values = score(pair_similarities(transform(pairs, dimension, "float32")), self.gold)
            except InputError as error:
                raise InputError(f"{self.name}: {error}") from error
            figures |= {f"{prefix}{figure}": value for figure, value in values.items()}
        return figures

    def write_csv(self, directory: Path, rows: Sequence[dict[str, float]]) -> None:
        """Write figures, each row with its "epoch" and "steps", as one file per size, as published runs have them."""
        for prefix, dimension in self.sizes.items():
            columns = ["epoch", "steps", *(f"{prefix}{figure}" for figure in FIGURES)]
            name = f"{self.name}-{dimension}" if dimension else self.name
            path = directory / f"similarity_evaluation_{name}_results.csv"
            with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                table = [["epoch", "steps", *FIGURES], *([row[column] for column in columns] for row in rows)]
                csv.writer(file).writerows(table)
