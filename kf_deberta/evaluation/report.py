"""Benchmark records as Markdown: the table to paste, the comparison with published rows, intervals, worst pairs."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata

from kf_deberta.data.official import BLOB_IDS
from kf_deberta.evaluation.published import PUBLISHED_ROWS, PublishedRow, find_published
from kf_deberta.evaluation.results import Record, label
from kf_deberta.evaluation.scoring import FIGURES

REPRODUCED_WITHIN = 0.05  # points, i.e. correlations times 100
RANKED_BY = "cosine_spearman"


def results_table(records: list[Record], published: Sequence[PublishedRow]) -> str:
    """Make the table: a row for each record, then the published rows; the best of each column is bold."""
    rows = [(label(r), [None if r["error"] else 100 * r[name] for name in FIGURES], r["error"]) for r in records]
    rows = [(name, figures, f"failed: {error}" if error else "measured") for name, figures, error in rows]
    rows += [(row.model, list(row.figures), f"published, {row.source}") for row in published]
    shown = [[None if value is None else f"{value:.2f}" for value in figures] for _, figures, _ in rows]
    best = [max((float(row[i]) for row in shown if row[i]), default=None) for i in range(len(FIGURES))]
    cells = [
        [
            "–" if cell is None else f"**{cell}**" if float(cell) == top else cell
            for cell, top in zip(row, best, strict=True)
        ]
        for row in shown
    ]
    return markdown(
        ["model", *FIGURES, "source"],
        [[name, *row, source] for (name, _, source), row in zip(rows, cells, strict=True)],
    )


def report(records: list[Record], with_published: bool = True, reproduces: str | None = None) -> str:
    """Print-ready Markdown of everything the records hold: table, verdicts, intervals, paired differences."""
    first, scored = records[0], [record for record in records if not record["error"]]
    is_official = first["blob_id"] == BLOB_IDS["KorSTS/sts-test.tsv"]
    published = PUBLISHED_ROWS if with_published and is_official else ()
    parts = [f"{first['data']}: {first['rows']:,} pairs, git blob {first['blob_id']}; correlations times 100"]
    parts.append(results_table(records, published))
    among = "all rows, measured and published" if published else "the rows"
    notes = [f"Bold: best of the column among {among}."]
    if with_published and not is_official:
        notes.append("No published rows: they are of the official KorSTS test file, and this is another one.")
    if noise := noise_note(scored, published):
        notes.append(noise)
    parts.append(" ".join(notes))
    if is_official:
        parts += verdicts(scored, reproduces)
    if intervals := [record for record in scored if record.get("resamples")]:
        parts += bootstrap_report(intervals, published)
    return "\n\n".join(parts)


def verdicts(records: list[Record], reproduces: str | None = None) -> list[str]:
    """Compare every full-size float32 record with its published row; `reproduces` names the row of those without."""
    rows, lines = [], []
    for record in records:
        row = find_published(record["model"]) or find_published(reproduces or "")
        if row is None or record["dimensions"] or record["precision"] != "float32":
            continue
        # of the figures as shown, so that a reader can check it
        differences = [round(round(100 * record[f], 2) - p, 2) for f, p in zip(FIGURES, row.figures, strict=True)]
        rows.append([label(record), *(f"{value:+.2f}" for value in differences)])
        count = sum(abs(value) <= REPRODUCED_WITHIN for value in differences)
        verdict = "reproduced: all eight" if count == len(FIGURES) else f"NOT reproduced: {count} of eight"
        worst = max(map(abs, differences))
        lines.append(
            f"- {label(record)}: {verdict} figures within {REPRODUCED_WITHIN} of {row.model}'s published row "
            f"({row.source}); largest difference {worst:.2f}"
        )
    if not rows:
        return []
    return ["Measured minus published:", markdown(["model", *FIGURES], rows), "\n".join(lines)]


def noise_note(records: list[Record], published: Sequence[PublishedRow]) -> str:
    """Say so when the best row leads the next by less than such a figure's own sampling error.

    The half-width of a single Spearman's 95% interval comes from Fisher's z with variance (1 + rho^2 / 2) / (n - 3)
    (Bonett and Wright, 2000, https://doi.org/10.1007/BF02294183).
    """
    ranked = [(100 * record[RANKED_BY], label(record)) for record in records]
    ranked += [(row.figures[FIGURES.index(RANKED_BY)], f"{row.model} (published)") for row in published]
    ranked.sort(reverse=True)
    if len(ranked) < 2 or not records or records[0]["rows"] <= 3:
        return ""
    (best, best_name), (second, second_name) = ranked[:2]
    rho, rows = best / 100, records[0]["rows"]
    half_width = 196 * (1 - rho**2) * math.sqrt((1 + rho**2 / 2) / (rows - 3))
    if best - second >= half_width:
        return ""
    return (
        f"The lead of {best_name} over {second_name} in {RANKED_BY}, {best - second:.2f}, is close to noise: on "
        f"{rows:,} pairs one such figure is uncertain by ±{half_width:.2f} (95%). "
        "--bootstrap compares measured models pair by pair."
    )


def bootstrap_report(records: list[Record], published: Sequence[PublishedRow]) -> list[str]:
    """Show the 95% intervals, and the paired differences to the first row with a plain verdict for each."""
    column = FIGURES.index(RANKED_BY)
    draws = " and ".join(dict.fromkeys(f"{r['resamples']:,} resamples, seed {r['seed']}" for r in records))
    title = f"95% intervals, bootstrap over pairs ({draws}):"
    parts = [title, figure_table(records, lambda r, f: f"{100 * r[f + '_low']:.2f} to {100 * r[f + '_high']:.2f}")]
    lines = []
    for record in records:
        low, high = (100 * record[f"{RANKED_BY}_{end}"] for end in ("low", "high"))
        others = [row for row in published if row is not find_published(record["model"])]
        inside = [row.model for row in others if low <= row.figures[column] <= high]
        if inside:
            lines.append(
                f"- The published {RANKED_BY} of {', '.join(inside)} lies inside the interval of {label(record)}: "
                "not distinguishable here (no figures of single pairs are published, so this is unpaired)."
            )
    compared = [record for record in records if record.get("compared_with")]
    for record in compared:
        low, high = (100 * record[f"{RANKED_BY}_difference_{end}"] for end in ("low", "high"))
        outcome = "distinguishable from noise" if low > 0 or high < 0 else "not distinguishable from noise"
        lines.append(
            f"- {label(record)} against {record['compared_with']}, {RANKED_BY}: "
            f"{100 * record[f'{RANKED_BY}_difference']:+.2f} (95% {low:+.2f} to {high:+.2f}, "
            f"p = {record[f'{RANKED_BY}_p']:.2g}) on {record['rows']:,} pairs: {outcome}"
        )
    for base in dict.fromkeys(record["compared_with"] for record in compared):
        parts.append(f"Paired difference to {base}, its 95% interval and two-sided p-value:")
        parts.append(figure_table([r for r in compared if r["compared_with"] == base], difference_cell))
    return [*parts, "\n".join(lines)] if lines else parts


def difference_cell(record: Record, figure: str) -> str:
    """Show a paired difference as `+1.23 [+0.10, +2.40] p=0.03`."""
    name = f"{figure}_difference"
    low, high = 100 * record[f"{name}_low"], 100 * record[f"{name}_high"]
    return f"{100 * record[name]:+.2f} [{low:+.2f}, {high:+.2f}] p={record[f'{figure}_p']:.2g}"


def figure_table(records: list[Record], cell: Callable[[Record, str], str]) -> str:
    """Make a table with a row for each record and a column for each figure."""
    return markdown(["model", *FIGURES], [[label(r), *(cell(r, figure) for figure in FIGURES)] for r in records])


def errors_table(
    count: int, cosine: np.ndarray, gold: np.ndarray, sentences1: Sequence[str], sentences2: Sequence[str]
) -> str:
    """List the pairs whose ranks by cosine and by gold score, both (pairs,) and gold in 0..1, differ most."""
    disagreement = rankdata(cosine) - rankdata(gold)
    worst = np.argsort(-np.abs(disagreement), kind="stable")[:count]
    rows = [
        [f"{5 * gold[i]:.2f}", f"{cosine[i]:.4f}", f"{disagreement[i]:+.0f}", sentences1[i], sentences2[i]]
        for i in worst
    ]
    return markdown(["gold (0-5)", "cosine", "cosine rank minus gold rank", "sentence1", "sentence2"], rows)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Make a Markdown table: first column left, numbers right; `|` and line ends inside a cell are escaped."""
    align = [":---" if name in ("model", "source", "sentence1", "sentence2") else "---:" for name in header]
    lines = [header, align, *([" ".join(cell.replace("|", r"\|").split()) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
