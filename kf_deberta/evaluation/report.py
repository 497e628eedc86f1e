"""Benchmark records as Markdown: the table to paste, the comparison with published rows, intervals, worst pairs."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata

from kf_deberta.cli import printable
from kf_deberta.data.official import BLOB_IDS
from kf_deberta.evaluation.published import COMPARABLE_ROWS, PUBLISHED_ROWS, PublishedRow, find_published
from kf_deberta.evaluation.results import Record, by_data, label
from kf_deberta.evaluation.scoring import FIGURES

REPRODUCED_WITHIN = 0.05  # points, i.e. correlations times 100
RANKED_BY = "cosine_spearman"


def results_table(records: list[Record], published: Sequence[PublishedRow]) -> str:
    """Make the table: a row for each record, then the published rows; the best of each column is bold."""
    rows = [(label(r), [None if r["error"] else 100 * r[name] for name in FIGURES]) for r in records]
    sources = [f"failed: {r['error']}" if r["error"] else "measured" for r in records]
    rows += [(row.model, list(row.figures)) for row in published]
    altered = [f"; not the same text: {row.altered_text}" if row.altered_text else "" for row in published]
    sources += [f"published, {row.source}{note}" for row, note in zip(published, altered, strict=True)]
    cells = in_bold([figures for _, figures in rows], [False] * len(records) + [bool(note) for note in altered])
    return markdown(
        ["model", *FIGURES, "source"],
        [[name, *row, source] for (name, _), row, source in zip(rows, cells, sources, strict=True)],
    )


def published_table() -> str:
    """Make the table of the published rows that the READMEs show, best in bold, with its sources below it."""
    urls = {url: f"[{number}]" for number, url in enumerate(dict.fromkeys(r.url for r in PUBLISHED_ROWS), start=1)}
    cells = in_bold([list(row.figures) for row in PUBLISHED_ROWS], [bool(row.altered_text) for row in PUBLISHED_ROWS])
    rows = [
        [row.model + (" †" if row.altered_text else ""), *figures, urls[row.url]]
        for row, figures in zip(PUBLISHED_ROWS, cells, strict=True)
    ]
    header = [f"{figure[:3]} {figure.partition('_')[2][0].upper()}" for figure in FIGURES]
    sources = "\n".join(f"{number} {url}" for url, number in urls.items())
    return f"{markdown(['model', *header, 'source'], rows)}\n\n{sources}"


def in_bold(rows: list[list[float | None]], left_out: list[bool]) -> list[list[str]]:
    """Show figures with two decimals, the best of each column, as shown, in bold; rows `left_out` do not compete."""
    shown = [["–" if value is None else f"{value:.2f}" for value in row] for row in rows]
    columns = zip(*(row for row, out in zip(shown, left_out, strict=True) if not out), strict=True)
    best = [max((float(cell) for cell in column if cell != "–"), default=None) for column in columns]
    return [
        [f"**{c}**" if not out and c != "–" and float(c) == top else c for c, top in zip(row, best, strict=True)]
        for row, out in zip(shown, left_out, strict=True)
    ]


def report(records: list[Record], with_published: bool = True, reproduces: str | None = None) -> str:
    """Print-ready Markdown of everything the records hold: for each data set its section, then the averages."""
    groups = by_data(records)
    sections = [section(group, with_published, reproduces) for group in groups]
    return "\n\n".join([*sections, average_table(groups)] if len(groups) > 1 else sections)


def section(records: list[Record], with_published: bool, reproduces: str | None) -> str:
    """Report on the records of one data set: table, verdicts, intervals, paired differences."""
    first, scored = records[0], [record for record in records if not record["error"]]
    is_official = first["blob_id"] == BLOB_IDS["KorSTS/sts-test.tsv"]
    published = PUBLISHED_ROWS if with_published and is_official else ()
    at = f", hub commit {first['data_revision']}" if first.get("data_revision") else ""
    title = f"{one_cell(first['data'])}: {first['rows']:,} pairs{at}, git blob {first['blob_id']}; "
    parts = [f"{title}correlations times 100"]
    parts.append(results_table(records, published))
    among = "all rows on the same text, measured and published" if published else "the rows"
    notes = [f"Bold: best of the column among {among}."]
    if with_published and not is_official:
        notes.append("No published rows: they are of the official KorSTS test file, and this is another one.")
    if first.get("note"):
        notes.append(one_cell(first["note"]))
    parts.append(" ".join(notes))
    if is_official:
        parts += verdicts(scored, reproduces)
    if intervals := [record for record in scored if record.get("resamples")]:
        parts += bootstrap_report(intervals, published)
    return "\n\n".join(parts)


def average_table(groups: list[list[Record]]) -> str:
    """Make the table of every row's mean over all data sets; a row without figures on one of them has none."""
    figures = {}
    for name in dict.fromkeys(label(record) for group in groups for record in group):
        found = [next((r for r in group if label(r) == name and not r["error"]), None) for group in groups]
        has_all = all(found)
        figures[name] = [100 * float(np.mean([r[f] for r in found])) if has_all else None for f in FIGURES]
    cells = in_bold(list(figures.values()), [False] * len(figures))
    rows = [[name, *row] for name, row in zip(figures, cells, strict=True)]
    return f"Average over {len(groups)} data sets:\n\n{markdown(['model', *FIGURES], rows)}"


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
            f"- {in_text(record)}: {verdict} figures within {REPRODUCED_WITHIN} of {row.model}'s published row "
            f"({row.source}); largest difference {worst:.2f}"
        )
    if not rows:
        return []
    return ["Measured minus published:", markdown(["model", *FIGURES], rows), "\n".join(lines)]


def bootstrap_report(records: list[Record], published: Sequence[PublishedRow]) -> list[str]:
    """Show the 95% intervals, and the paired differences to the first row with a plain verdict for each."""
    column = FIGURES.index(RANKED_BY)
    draws = " and ".join(dict.fromkeys(f"{r['resamples']:,} resamples, seed {r['seed']}" for r in records))
    title = f"95% intervals, bootstrap over pairs ({draws}):"
    parts = [title, figure_table(records, lambda r, f: f"{100 * r[f + '_low']:.2f} to {100 * r[f + '_high']:.2f}")]
    lines = []
    for record in records:
        low, high = (100 * record[f"{RANKED_BY}_{end}"] for end in ("low", "high"))
        others = [r for r in published if r in COMPARABLE_ROWS and r is not find_published(record["model"])]
        inside = [row.model for row in others if low <= row.figures[column] <= high]
        if inside:
            lines.append(
                f"- The published {RANKED_BY} of {', '.join(inside)} lies inside the interval of {in_text(record)}: "
                "not distinguishable here (no figures of single pairs are published, so this is unpaired)."
            )
    compared = [record for record in records if record.get("compared_with")]
    for record in compared:
        low, high = (100 * record[f"{RANKED_BY}_difference_{end}"] for end in ("low", "high"))
        outcome = "distinguishable from noise" if low > 0 or high < 0 else "not distinguishable from noise"
        lines.append(
            f"- {in_text(record)} against {one_cell(record['compared_with'])}, {RANKED_BY}: "
            f"{100 * record[f'{RANKED_BY}_difference']:+.2f} (95% {low:+.2f} to {high:+.2f}, "
            f"p = {record[f'{RANKED_BY}_p']:.2g}) on {record['rows']:,} pairs: {outcome}"
        )
    for base in dict.fromkeys(record["compared_with"] for record in compared):
        parts.append(f"Paired difference to {one_cell(base)}, its 95% interval and two-sided p-value:")
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
    count: int,
    cosine: np.ndarray,
    gold: np.ndarray,
    sentences1: Sequence[str],
    sentences2: Sequence[str],
    scale: tuple[float, float] = (0, 5),
) -> str:
    """List the pairs whose ranks by cosine and by gold score, both (pairs,) and gold in 0..1, differ most."""
    low, high = scale
    disagreement = rankdata(cosine) - rankdata(gold)
    worst = np.argsort(-np.abs(disagreement), kind="stable")[:count]
    rows = [
        [
            f"{low + (high - low) * gold[i]:.2f}",
            f"{cosine[i]:.4f}",
            f"{disagreement[i]:+.0f}",
            sentences1[i],
            sentences2[i],
        ]
        for i in worst
    ]
    header = [f"gold ({low:g}-{high:g})", "cosine", "cosine rank minus gold rank", "sentence1", "sentence2"]
    return markdown(header, rows, texts=("sentence1", "sentence2"))


def markdown(header: list[str], rows: list[list[str]], texts: Sequence[str] = ("source",)) -> str:
    """Make a Markdown table: the first column and those named in `texts` to the left, numbers to the right."""
    align = [":--" if name in (header[0], *texts) else "--:" for name in header]
    lines = [header, align, *([one_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_text(record: Record) -> str:
    """Name a record outside a table."""
    return one_cell(label(record))


def one_cell(text: str) -> str:
    """Keep foreign text from ending its line or cell, opening HTML or steering the terminal."""
    return " ".join(printable(text).replace("|", r"\|").replace("<", "&lt;").split())
