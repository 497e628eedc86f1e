"""Cosine similarity against gold score as a figure, one panel for each row of a benchmark table."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kf_deberta.data.pairs import Pairs
from kf_deberta.errors import say, write_atomically
from kf_deberta.evaluation.report import Record
from kf_deberta.evaluation.scoring import FIGURES

HANGUL_FONTS = ("NanumGothic", "NanumBarunGothic", "Noto Sans CJK KR", "Noto Sans KR", "Malgun Gothic", "AppleGothic")


def plot(path: Path, results: Sequence[tuple[Record, np.ndarray, Pairs]]) -> None:
    """Draw one panel for each record with its cosines, (pairs,), and the pairs: points, regression line, figures."""
    os.environ["MPLBACKEND"] = "agg"  # with that of a notebook, which may not be installed here, matplotlib fails
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    fonts = [name for name in HANGUL_FONTS if name in {font.name for font in font_manager.fontManager.ttflist}][:1]
    names = [record["label"] for record, _, _ in results]
    if not fonts and not all(name.isascii() for name in names):
        say("no Hangul font found, Hangul is drawn as ? (on Debian and Ubuntu: apt install fonts-nanum)")
        names = [name.encode("ascii", "replace").decode() for name in names]
    rows, columns = -(-len(results) // 3), min(3, len(results))
    style = {"font.family": ["DejaVu Sans", *fonts], "text.parse_math": False, "axes.titlesize": 9}
    with matplotlib.rc_context(style):
        figure = Figure((5 * columns, 4.5 * rows), layout="tight")
        for number, (name, (record, cosine, pairs)) in enumerate(zip(names, results, strict=True), start=1):
            low, high = pairs.scale
            gold = low + (high - low) * pairs.gold
            slope, intercept = np.polyfit(gold, cosine, 1)
            text = "\n".join(f"{f.replace('_', ' ')} {100 * record[f]:.2f}" for f in FIGURES)
            axes = figure.add_subplot(rows, columns, number, sharey=figure.axes[0] if figure.axes else None)
            axes.set(xlabel="gold score", ylabel="cosine similarity", title=name[-50:])
            axes.scatter(gold, cosine, s=6, alpha=0.35, linewidths=0)
            line = [intercept + slope * low, intercept + slope * high]
            axes.plot([low, high], line, color="tab:red", label=f"fit: {slope:.3f} gold + {intercept:.3f}")
            axes.text(0.98, 0.03, text, ha="right", va="bottom", size=7, transform=axes.transAxes, backgroundcolor="w")
            axes.legend(loc="upper left", fontsize=7)
        with write_atomically(path) as temporary:
            figure.savefig(temporary, dpi=150)
