"""The eight figures of the KorSTS table: correlations of four similarities with the gold scores.

For sentence pairs with embeddings u and v, the similarities are cosine, negative Euclidean distance, negative
Manhattan distance and dot product, computed in float32 by the library functions EmbeddingSimilarityEvaluator uses;
each is correlated with the gold score by Pearson's r and Spearman's rho (scipy). All figures lie in -1..1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import (
    pairwise_cos_sim,
    pairwise_dot_score,
    pairwise_euclidean_sim,
    pairwise_manhattan_sim,
    quantize_embeddings,
)

from kf_deberta.cli import InputError, progress

SIMILARITIES: dict[str, Callable] = {
    "cosine": pairwise_cos_sim,
    "euclidean": pairwise_euclidean_sim,
    "manhattan": pairwise_manhattan_sim,
    "dot": pairwise_dot_score,
}
FIGURES = tuple(f"{similarity}_{kind}" for similarity in SIMILARITIES for kind in ("pearson", "spearman"))
# float32 noise on equal similarities stays under this share of their size; a correlation with it means nothing
CONSTANT_SHARE = 1e-6


@dataclass
class PairEmbeddings:
    """Embeddings of the distinct sentences of all pairs, (sentences, dimensions), and each pair's two rows in them."""

    embeddings: np.ndarray
    first: np.ndarray
    second: np.ndarray


def encode_pairs(
    encode: Callable[[list[str]], np.ndarray], sentences1: Sequence[str], sentences2: Sequence[str]
) -> PairEmbeddings:
    """Encode the sentences of both columns together, each distinct one once.

    Raises:
        InputError: an embedding holds NaN or infinite values.
    """
    rows = {sentence: row for row, sentence in enumerate(dict.fromkeys([*sentences1, *sentences2]))}
    embeddings = encode(list(rows))
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise InputError(f"the embeddings of {len(bad)} of {len(rows)} sentences hold NaN or infinite values")
    first, second = (np.array([rows[sentence] for sentence in column]) for column in (sentences1, sentences2))
    return PairEmbeddings(embeddings, first, second)


def encode_sorted(
    model: SentenceTransformer,
    sentences: list[str],
    batch_size: int,
    show_progress: bool = True,
    desc: str = "encoding",
    pairs: int | None = None,
) -> np.ndarray:
    """Encode in batches of similar token count, longest first; float32 (sentences, dimensions).

    Progress is shown as `desc`, in sentences or, where they are those of so many `pairs`, in pairs.

    In batches of 64 this pads KorSTS test by 4 to 5%; sorted by characters, as the library does, by 31 to 38%.
    """
    if callable(model.tokenizer):
        lengths = [len(ids) for ids in model.tokenizer(sentences, verbose=False)["input_ids"]]
    else:  # a static embedding model has no padding to save
        lengths = [len(sentence) for sentence in sentences]
    order = np.argsort(np.negative(lengths), kind="stable")
    batches = []
    total = pairs or len(order)
    bar = progress(total, desc, "pairs" if pairs else "sentences", disable=not show_progress)
    for start in range(0, len(order), batch_size):
        batch = [sentences[i] for i in order[start : start + batch_size]]
        batches.append(model.encode(batch, batch_size=len(batch), show_progress_bar=False))
        done = min(start + batch_size, len(order)) * total // len(order)
        bar.update(done - start * total // len(order))
    bar.close()
    return np.concatenate(batches)[np.argsort(order)].astype(np.float32, copy=False)


def transform(pairs: PairEmbeddings, dimension: int | None, precision: str) -> PairEmbeddings:
    """Cut embeddings to their first `dimension` values and quantize them, as EmbeddingSimilarityEvaluator does.

    A `precision` other than float32 normalizes first. int8: 256 levels between each dimension's minimum and maximum
    over the sentences of these pairs. binary: one bit per dimension (value > 0), compared as vectors of 0 and 1: the
    squared Euclidean and the Manhattan distance are both the Hamming distance, the dot product counts common ones.

    Raises:
        InputError: `dimension` exceeds the model's.
    """
    embeddings = pairs.embeddings
    if dimension is not None:
        if dimension > embeddings.shape[1]:
            raise InputError(f"the embeddings have {embeddings.shape[1]} dimensions, --truncate_dims asks {dimension}")
        embeddings = embeddings[:, :dimension]
    if precision != "float32":
        norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
        embeddings = embeddings / np.maximum(norms, 1e-12)
        if precision == "binary":
            bits = quantize_embeddings(embeddings, "ubinary")
            embeddings = np.unpackbits(bits, axis=1, count=embeddings.shape[1])
        else:
            embeddings = quantize_embeddings(embeddings, precision)
    return PairEmbeddings(embeddings.astype(np.float32), pairs.first, pairs.second)


def pair_similarities(pairs: PairEmbeddings) -> np.ndarray:
    """Compute the four similarities of every pair, float64 (4, pairs) in the order of SIMILARITIES.

    Raises:
        InputError: a similarity is the same for all pairs, so that no correlation exists.
    """
    u, v = pairs.embeddings[pairs.first], pairs.embeddings[pairs.second]
    similarities = np.stack([function(u, v).numpy() for function in SIMILARITIES.values()]).astype(np.float64)
    for name, values in zip(SIMILARITIES, similarities, strict=True):
        if np.ptp(values) <= CONSTANT_SHARE * np.abs(values).max():
            raise InputError(f"all pairs have the same {name} similarity, so it has no correlation")
    return similarities


def score(similarities: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """Correlate the four similarities, (4, pairs), with the gold scores, (pairs,): the eight figures, -1..1."""
    values = [float(f(gold, row).statistic) for row in similarities for f in (pearsonr, spearmanr)]
    return dict(zip(FIGURES, values, strict=True))


def check_gold(gold: np.ndarray, path: object, scale: tuple[float, float] = (0, 5)) -> None:
    """Raise InputError where gold scores cannot be correlated with anything: fewer than 2 rows, or constant."""
    if len(gold) < 2:
        raise InputError(f"{path}: one sentence pair; a correlation needs at least two")
    if np.ptp(gold) == 0:
        same = scale[0] + gold[0] * (scale[1] - scale[0])
        raise InputError(
            f"{path}: all {len(gold)} scores are {same:g}; a correlation needs at least two different ones"
        )
