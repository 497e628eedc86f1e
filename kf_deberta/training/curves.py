"""A picture of a run: the loss of each objective with its learning rate, and the figures on dev and test."""

from pathlib import Path

import matplotlib

from kf_deberta.cli import write_atomically

KEY = "eval_sts-dev_spearman_cosine"


def draw_training_curves(log_history: list[dict], objectives: list[str], facts: dict, path: Path) -> None:
    """Draw losses and learning rates, one panel per objective, and KorSTS cosine Spearman over rounds.

    Args:
        log_history: that of trainer_state.json, as MultiTaskTrainer logs it.
        objectives: names whose `<name>_loss` and `<name>_learning_rate` are logged.
        facts: those of the run: test figures x100 before training and of the kept model, and its round.
        path: PNG file to write.
    """
    matplotlib.use("Agg")  # a file is all that is drawn, also where there is no display
    from matplotlib import pyplot as plt

    columns = len(objectives) + 1
    figure, axes = plt.subplots(1, columns, figsize=(5 * columns, 3.8))
    for axis, name in zip(axes, objectives, strict=False):
        rows = [row for row in log_history if f"{name}_loss" in row]
        rounds = [row["round"] for row in rows]
        (loss,) = axis.plot(rounds, [row[f"{name}_loss"] for row in rows], ".-", label="loss (left)")
        right = axis.twinx()  # the warm-up is the rise of this line
        rates = [row[f"{name}_learning_rate"] for row in rows]
        (rate,) = right.plot(rounds, rates, ".--", color="0.5", label="learning rate (right)")
        right.set_ylabel("learning rate")
        right.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axis.set(title=f"{name.upper()} objective", xlabel="round", ylabel=f"mean training loss ({name.upper()})")
        axis.legend(handles=[loss, rate], fontsize=8)
    rows = [row for row in log_history if KEY in row]
    axis, best = axes[-1], facts["best_round"]
    axis.plot([row["step"] // len(objectives) for row in rows], [100 * row[KEY] for row in rows], "o-", label="dev")
    test = [facts["baseline"]["cosine_spearman"], facts["test"]["cosine_spearman"]]
    axis.plot([0, best], test, "s", color="tab:red", label="test: before training, kept model")
    axis.axvline(best, color="0.7", linestyle=":", label=f"kept: round {best}")
    axis.set(title="KorSTS", xlabel="round", ylabel="cosine Spearman x100")
    axis.legend(fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)
