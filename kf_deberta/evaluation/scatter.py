"""Cosine similarity against gold score as a figure, one panel per model."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # a file is all that is drawn, also where there is no display
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from kf_deberta.cli import say, write_atomically
from kf_deberta.data.pairs import Pairs
from kf_deberta.evaluation.results import Record, label
from kf_deberta.evaluation.scoring import FIGURES

COLUMNS = 3
HANGUL_FONTS = ("NanumGothic", "NanumBarunGothic", "NanumSquareRound", "Noto Sans CJK KR", "Noto Sans KR")
HANGUL_FONTS += ("Malgun Gothic", "Apple SD Gothic Neo", "AppleGothic", "UnDotum", "Baekmuk Dotum")


def _use_fonts() -> set[int]:
    """Set fonts that draw Hangul, where there is one, and names as they are (`$` too); return what can be drawn."""
    installed = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    families = ["DejaVu Sans", *[name for name in HANGUL_FONTS if name in installed][:1]]
    if len(families) == 1:
        say("no font with Hangul is installed: in the figure such letters are ?")
    plt.rcParams.update({"font.family": families, "text.parse_math": False})
    return {code for name in families for code in FT2Font(installed[name]).get_charmap()}


def plot(path: Path, results: Sequence[tuple[Record, np.ndarray, Pairs]]) -> None:
    """Draw one panel for each result: its pairs, the regression line of cosine on gold, and its eight figures.

    Args:
        path: the file, .png, .pdf or .svg; an existing one is replaced only by a complete one.
        results: records without error, each with its cosines, (pairs,), and the pairs.
    """
    columns = min(COLUMNS, len(results))
    letters = _use_fonts()
    rows = -(-len(results) // columns)
    size, same = (5 * columns, 4.5 * rows), len({pairs.scale for _, _, pairs in results}) == 1
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=same, sharey=True)
    for axis in axes.flat[len(results) :]:
        axis.remove()
    for axis, (record, cosine, pairs) in zip(axes.flat, results, strict=False):
        low, high = pairs.scale
        gold = low + (high - low) * pairs.gold
        slope, intercept = np.polyfit(gold, cosine, 1)
        axis.scatter(gold, cosine, s=6, alpha=0.35, linewidths=0)
        line = f"{slope:.3f} gold + {intercept:.3f}"
        axis.plot([low, high], [intercept + slope * low, intercept + slope * high], color="tab:red", label=line)
        text = "\n".join(f"{name.replace('_', ' ')} {100 * record[name]:.2f}" for name in FIGURES)
        box = {"facecolor": "white", "edgecolor": "0.8", "alpha": 0.8}
        axis.text(0.98, 0.03, text, transform=axis.transAxes, ha="right", va="bottom", fontsize=7, bbox=box)
        name = label(record)
        name = "".join(letter if ord(letter) in letters else "?" for letter in name)
        axis.set_title(name if len(name) <= 50 else "…" + name[-49:], fontsize=9)
        axis.set_xlabel("gold score")
        axis.legend(loc="upper left", fontsize=7)
    for axis in axes[:, 0]:
        axis.set_ylabel("cosine similarity")
    figure.tight_layout()
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
