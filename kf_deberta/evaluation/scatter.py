"""Cosine similarity against gold score as a figure, one panel a model."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file is all that is drawn, also where there is no display
import matplotlib.pyplot as plt
import numpy as np

from kf_deberta.cli import write_atomically
from kf_deberta.evaluation.results import Record, label
from kf_deberta.evaluation.scoring import FIGURES

COLUMNS = 3


def plot(path: Path, records: list[Record], cosines: list[np.ndarray], gold: np.ndarray) -> None:
    """Draw one panel for each record: its pairs, the regression line of cosine on gold, and its eight figures.

    Args:
        path: the file, .png, .pdf or .svg; an existing one is replaced only by a complete one.
        records: results without error.
        cosines: (pairs,) for each record.
        gold: (pairs,) gold scores in 0..1, drawn as 0..5.
    """
    columns = min(COLUMNS, len(records))
    rows = -(-len(records) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5 * columns, 4.5 * rows), squeeze=False, sharex=True)
    for axis in axes.flat[len(records) :]:
        axis.remove()
    for axis, record, cosine in zip(axes.flat, records, cosines, strict=False):
        slope, intercept = np.polyfit(5 * gold, cosine, 1)
        axis.scatter(5 * gold, cosine, s=6, alpha=0.35, linewidths=0)
        axis.plot(
            [0, 5], [intercept, intercept + 5 * slope], color="tab:red", label=f"{slope:.3f} gold + {intercept:.3f}"
        )
        text = "\n".join(f"{name.replace('_', ' ')} {100 * record[name]:.2f}" for name in FIGURES)
        box = {"facecolor": "white", "edgecolor": "0.8", "alpha": 0.8}
        axis.text(0.98, 0.03, text, transform=axis.transAxes, ha="right", va="bottom", fontsize=7, bbox=box)
        name = label(record)
        axis.set_title(name if len(name) <= 50 else "…" + name[-49:], fontsize=9)
        axis.set_xlabel("gold score")
        axis.set_ylabel("cosine similarity")
        axis.legend(loc="upper left", fontsize=7)
    figure.tight_layout()
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
