"""The eight figures as an evaluator of a training run, and the CSV files that published runs have of them."""

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation.evaluator import BaseEvaluator

from kf_deberta.cli import InputError, one_line, write_atomically
from kf_deberta.evaluation.scoring import FIGURES, encode_pairs, encode_sorted, pair_similarities, score, transform


class PairEvaluator(BaseEvaluator):
    """Scores a model on sentence pairs, at full size and at each of several dimensions, from one encoding.

    The figures are EmbeddingSimilarityEvaluator's to rounding; here each distinct sentence is encoded once, in batches
    of similar length.
    """

    def __init__(
        self,
        pairs: Dataset,
        name: str,
        batch_size: int,
        dimensions: Sequence[int] = (),
        show_progress: bool = True,
    ) -> None:
        """Take the pairs with gold scores in 0..1, the name of their figures, sentences per batch and dimensions."""
        super().__init__()
        self.sentences1, self.sentences2 = pairs["sentence1"][:], pairs["sentence2"][:]
        self.gold = np.array(pairs["score"][:])
        self.name = name
        self.batch_size = batch_size
        self.show_progress = show_progress
        self.parts = {name: None} | {f"{name}-{dimension}": dimension for dimension in dimensions}
        self.primary_metric = f"{name}_spearman_cosine"

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Return the figures, -1..1, as `<name>_<spearman or pearson>_<similarity>`; nothing is written.

        Raises:
            InputError: a similarity is the same for all pairs, or an embedding is not finite.
        """
        about = {"batch_size": self.batch_size, "show_progress": self.show_progress, "desc": self.name}
        encode = partial(encode_sorted, model, **about, pairs=len(self.gold))
        pairs = encode_pairs(encode, self.sentences1, self.sentences2)
        metrics = {}
        for name, dimension in self.parts.items():
            try:
                figures = score(pair_similarities(transform(pairs, dimension, "float32")), self.gold)
            except InputError as error:
                different = len(np.unique(pairs.embeddings.round(4), axis=0))
                raise InputError(
                    f"{name}: {one_line(error)}: the model gives {different} different embeddings for "
                    f"{len(pairs.embeddings)} different sentences; look at the base, --max_seq_length and the file"
                ) from error
            for figure, value in figures.items():
                similarity, kind = figure.split("_")
                metrics[f"{name}_{kind}_{similarity}"] = value
        return metrics

    def percent(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return the figures x100 by names such as `cosine_spearman`, and `256_cosine_spearman` for 256 dimensions."""
        figures = {}
        for name, dimension in self.parts.items():
            for figure in FIGURES:
                similarity, kind = figure.split("_")
                key = figure if dimension is None else f"{dimension}_{figure}"
                figures[key] = 100 * metrics[f"{name}_{kind}_{similarity}"]
        return figures

    def write_csv(self, directory: Path, log_history: list[dict]) -> None:
        """Write the evaluations of a trainer's log as one file per dimension, in the format of published runs."""
        for name in self.parts:
            rows = []
            for row in log_history:
                if f"eval_{name}_spearman_cosine" in row:
                    figures = (figure.split("_") for figure in FIGURES)
                    values = [row[f"eval_{name}_{kind}_{similarity}"] for similarity, kind in figures]
                    rows.append([row["epoch"], row["step"], *values])
            directory.mkdir(exist_ok=True)
            path = directory / f"similarity_evaluation_{name}_results.csv"
            with write_atomically(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([["epoch", "steps", *FIGURES], *rows])
