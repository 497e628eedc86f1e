"""A picture of a run: the training loss of each objective, and cosine Spearman on dev and test."""

import os
from pathlib import Path

import numpy as np

from kf_deberta.errors import write_atomically

SMOOTHED = 0.05  # share of the logged rows that the running mean spans


def draw_training_curves(logs: dict[str, list[dict]], facts: dict, path: Path) -> None:
    """Draw a panel for each objective with its losses and their running mean, and one with the figures, as a PNG.

    `logs` are those of the stages by their names, as training/loop.py writes them; `facts`, those of results.json.
    """
    os.environ["MPLBACKEND"] = "agg"  # with that of a notebook, which may not be installed here, matplotlib fails
    from matplotlib.figure import Figure

    columns = dict.fromkeys(key for log in logs.values() for row in log for key in row if key.endswith("_loss"))
    figure = Figure(figsize=(5 * len(columns) + 5, 4), layout="tight")
    *losses, scores = figure.subplots(1, len(columns) + 1)
    for axis, column in zip(losses, columns, strict=True):
        for stage, log in logs.items():
            points = [(row["round"], row[column]) for row in log if column in row]
            if points:
                rounds, values = zip(*points, strict=True)
                width = max(1, round(SMOOTHED * len(values)))
                mean = [np.mean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]
                axis.plot(rounds, values, ".", color="0.8")
                axis.plot(rounds, mean, label=stage or "running mean")
        axis.set(title=f"{column.removesuffix('_loss').upper()} training loss", xlabel="round", ylabel="loss")
        axis.legend()
    for stage, log in logs.items():
        points = [(row["round"], 100 * row["cosine_spearman"]) for row in log if "cosine_spearman" in row]
        scores.plot(*zip(*points, strict=True), "o-", label=f"dev {stage}")
    for name, model, style in (("baseline", "untrained", ":"), ("test", "final model", "--")):
        value = 100 * facts[name]["cosine_spearman"]
        scores.axhline(value, linestyle=style, color="tab:red", label=f"test, {model}")
    scores.set(title="Cosine Spearman x100", xlabel="round", ylabel="cosine Spearman x100")
    scores.legend()
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=100)
