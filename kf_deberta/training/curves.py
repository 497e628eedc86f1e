"""A picture of a run: the loss of each objective and the dev figures over the rounds."""

from pathlib import Path


def draw_training_curves(log_history: list[dict], objectives: list[str], path: Path) -> None:
    """Draw losses (one panel an objective) and KorSTS dev cosine Spearman x100 over rounds into a PNG file.

    Args:
        log_history: that of trainer_state.json, as MultiTaskTrainer logs it.
        objectives: names whose `<name>_loss` is logged.
        path: PNG file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(objectives) + 1, figsize=(4.5 * (len(objectives) + 1), 3.5))
    for axis, name in zip(axes, objectives, strict=False):
        rows = [row for row in log_history if f"{name}_loss" in row]
        axis.plot([row["round"] for row in rows], [row[f"{name}_loss"] for row in rows], marker=".")
        axis.set(title=f"{name} loss", xlabel="round")
    key = "eval_sts-dev_spearman_cosine"
    rows = [row for row in log_history if key in row]
    axes[-1].plot([row["step"] // len(objectives) for row in rows], [100 * row[key] for row in rows], marker="o")
    axes[-1].set(title="KorSTS dev cosine Spearman", xlabel="round")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
