"""A picture of a run: the training loss of each objective, and cosine Spearman on dev and test."""

import os
from pathlib import Path

import numpy as np

from kf_deberta.errors import write_atomically

SMOOTHED = 0.05  # share of the logged rows that the running mean spans


def draw_training_curves(logs: dict[str, list[dict]], facts: dict, path: Path) -> None:
    """Draw a panel for each objective with its losses and their running mean, and one with the figures.

    Args:
        logs: the log of each stage by its name, `loss` rows and evaluations as training/loop.py logs them.
        facts: those of results.json, with the figures of the untrained and the final model, -1..1.
        path: PNG file to write.
    """
    os.environ["MPLBACKEND"] = "agg"  # with that of a notebook, which may not be installed here, matplotlib fails
    from matplotlib.figure import Figure

    suffix = "_loss"
    names = dict.fromkeys(
        key.removesuffix(suffix) for log in logs.values() for row in log for key in row if key.endswith(suffix)
    )
    figure = Figure(figsize=(5 * len(names) + 5, 4), layout="tight")
    *losses, scores = figure.subplots(1, len(names) + 1)
    for axis, name in zip(losses, names, strict=True):
        for stage, log in logs.items():
            points = [(row["round"], row[name + suffix]) for row in log if name + suffix in row]
            if points:
                rounds, values = np.array(points).T
                width = max(1, round(SMOOTHED * len(values)))
                sums = np.cumsum(np.insert(values, 0, 0))
                starts = np.maximum(np.arange(1, len(values) + 1) - width, 0)
                mean = (sums[1:] - sums[starts]) / (np.arange(1, len(values) + 1) - starts)
                axis.plot(rounds, values, ".", color="0.8")
                axis.plot(rounds, mean, label=stage or "running mean")
        axis.set(title=f"{name.upper()} training loss", xlabel="round", ylabel="loss")
        axis.legend()
    for stage, log in logs.items():
        points = [(row["round"], 100 * row["cosine_spearman"]) for row in log if "cosine_spearman" in row]
        scores.plot(*zip(*points, strict=True), "o-", label=f"dev {stage}")
    for name, style in (("baseline", ":"), ("test", "--")):
        label = f"test, {'untrained' if name == 'baseline' else 'final model'}"
        scores.axhline(100 * facts[name]["cosine_spearman"], linestyle=style, color="tab:red", label=label)
    scores.set(title="Cosine Spearman x100", xlabel="round", ylabel="cosine Spearman x100")
    scores.legend()
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=100)
