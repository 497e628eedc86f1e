"""Benchmark results as files and as Markdown: the table to paste, published rows, intervals, worst pairs.

A result is a record, one flat dict for each row of a table: its `label`, `model`, `revision` (hub commit or full local
path), `dimensions` (None: all), `precision`, `error` (None, or why there are no figures), `data`, `rows`, `blob_id`
(git's id of a file), `data_revision` (hub commit), `note` (how a file differs from the official one), `date`,
`versions`, `settings`, `sentences`, `seconds`, the figures, -1..1, and what bootstrap.add_bootstrap adds to them.
"""

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from kf_deberta.data.official import BLOB_IDS
from kf_deberta.data.pairs import Pairs
from kf_deberta.errors import write_atomically
from kf_deberta.evaluation.scoring import FIGURES

REPRODUCED_WITHIN = 0.05  # points, that is, correlations times 100
RANKED_BY = "cosine_spearman"
Record = dict[str, object]


@dataclass(frozen=True)
class PublishedRow:
    """Published results on the KorSTS test file, a row of published.csv."""

    model: str  # name in the table it was published in
    hub_name: str
    figures: tuple[float, ...]  # correlations times 100 in the order of FIGURES
    pooling: str  # mean or cls, of the model that was measured
    source: str
    url: str
    altered_text: str  # how the test sentences were changed first, or ""


with open(Path(__file__).with_name("published.csv"), encoding="utf-8", newline="") as _file:
    PUBLISHED_ROWS = tuple(
        PublishedRow(figures=tuple(float(row.pop(name)) for name in FIGURES), **row) for row in csv.DictReader(_file)
    )
COMPARABLE_ROWS = tuple(row for row in PUBLISHED_ROWS if not row.altered_text)


def find_published(model: str) -> PublishedRow | None:
    """Return the comparable row of a hub name such as upskyy/kf-deberta-multitask, or None."""
    return next((row for row in COMPARABLE_ROWS if row.hub_name == model), None)


def published_pooling(name: str) -> str | None:
    """Return the pooling that a published model's figures are of, None for any other name."""
    return next((row.pooling for row in PUBLISHED_ROWS if row.hub_name == name), None)


def report(records: Sequence[Record], with_published: bool = True, reproduces: str | None = None) -> str:
    """Return the records as Markdown: a section for each data set, then the averages.

    `with_published` shows the published rows under the official test file; models without one of their own are
    compared with that of the hub name `reproduces`.
    """
    names = dict.fromkeys(record["data"] for record in records)
    groups = [[record for record in records if record["data"] == name] for name in names]
    sections = [_section(group, with_published, reproduces) for group in groups]
    if len(groups) > 1:
        rows = []
        for label in dict.fromkeys(record["label"] for record in records):
            values = [_figures(record) for record in records if record["label"] == label]
            rows.append((label, None if None in values else np.mean(values, axis=0).tolist(), True))
        sections.append(f"Average over {len(groups)} data sets:\n\n{markdown(['model', *FIGURES], _in_bold(rows))}")
    return "\n\n".join(sections)


def _figures(record: Record) -> list[float] | None:
    return None if record["error"] else [100 * record[figure] for figure in FIGURES]


def _in_bold(rows: Sequence[tuple]) -> list[list[str]]:
    """Format rows (name, figures or None, whether it competes, other cells), the best of each column in bold."""
    competing = [figures for _, figures, competes, *_ in rows if competes and figures]
    best = [f"{max(column):.2f}" for column in zip(*competing, strict=True)] or [""] * len(FIGURES)
    table = []
    for name, figures, competes, *others in rows:
        cells = [f"{figure:.2f}" for figure in figures or ()] or ["–"] * len(FIGURES)
        bold = [f"**{text}**" if competes and text == top else text for text, top in zip(cells, best, strict=True)]
        table.append([name, *bold, *others])
    return table


def _section(records: list[Record], with_published: bool, reproduces: str | None) -> str:
    """Report on the records of one data set: table, verdicts, intervals, paired differences."""
    first, scored = records[0], [record for record in records if not record["error"]]
    is_official = first["blob_id"] == BLOB_IDS["KorSTS/sts-test.tsv"]
    published = PUBLISHED_ROWS if with_published and is_official else ()
    known_by = f"git blob {first['blob_id']}" if first["blob_id"] else f"hub commit {first['data_revision']}"
    rows = [(r["label"], _figures(r), True, f"failed: {r['error']}" if r["error"] else "measured") for r in records]
    for row in published:
        note = f"; not the same text: {row.altered_text}" if row.altered_text else ""
        rows.append((row.model, row.figures, not row.altered_text, f"published, {row.source}{note}"))
    note = f" This is {first['note']}." if first["note"] else ""
    parts = [f"{cell(first['data'])}: {first['rows']:,} pairs, {known_by}; correlations times 100"]
    parts.append(markdown(["model", *FIGURES, "source"], _in_bold(rows)))
    parts.append(f"Bold: best of the column among all rows on the same text.{note}")
    advice = "is negative; if high scores mean different sentences, swap the ends of --scale, such as 1,0"
    parts += [f"- {cell(r['label'])}: its {RANKED_BY} {advice}" for r in scored if r[RANKED_BY] < -0.1]
    parts += _verdicts(scored, reproduces) if is_official else []
    bootstrapped = [record for record in scored if record.get("resamples")]
    parts += _intervals(bootstrapped, published) if bootstrapped else []
    return "\n\n".join(parts)


def _verdicts(records: Sequence[Record], reproduces: str | None) -> list[str]:
    """Compare every full-size float32 record with its published row, or with that of `reproduces`."""
    rows, lines = [], []
    for record in records:
        row = find_published(record["model"]) or find_published(reproduces or "")
        if row is None or record["dimensions"] or record["precision"] != "float32":
            continue
        # of the figures as shown, so that a reader can check it
        differences = [round(round(100 * record[f], 2) - p, 2) for f, p in zip(FIGURES, row.figures, strict=True)]
        rows.append([record["label"], *(f"{value:+.2f}" for value in differences)])
        count = sum(abs(value) <= REPRODUCED_WITHIN for value in differences)
        verdict = "reproduced: all eight" if count == 8 else f"NOT reproduced: {count} of eight"
        verdict += f" figures within {REPRODUCED_WITHIN} of {row.model}'s published row ({row.source})"
        lines.append(f"- {cell(record['label'])}: {verdict}; largest difference {max(map(abs, differences)):.2f}")
    return rows and ["Measured minus published:", markdown(["model", *FIGURES], rows), "\n".join(lines)]


def _intervals(records: Sequence[Record], published: Sequence[PublishedRow]) -> list[str]:
    """Show the 95% intervals, and the paired differences to the first row with a plain verdict for each."""

    def table(rows: Sequence[Record], show: Callable[[Record, str], str]) -> str:
        return markdown(["model", *FIGURES], [[r["label"], *(show(r, figure) for figure in FIGURES)] for r in rows])

    def ends(record: Record, name: str, sign: str, between: str) -> str:
        return between.join(f"{100 * record[f'{name}_{end}']:{sign}.2f}" for end in ("low", "high"))

    def difference(record: Record, figure: str) -> str:
        name = f"{figure}_difference"
        return f"{100 * record[name]:+.2f} [{ends(record, name, '+', ', ')}] p={record[f'{figure}_p']:.2g}"

    first, lines = records[0], []
    parts = [f"95% intervals, bootstrap over pairs ({first['resamples']:,} resamples, seed {first['seed']}):"]
    parts.append(table(records, lambda record, figure: ends(record, figure, "", " to ")))
    for record in records:
        low, high = (100 * record[f"{RANKED_BY}_{end}"] for end in ("low", "high"))
        others = [row for row in published if row in COMPARABLE_ROWS and row is not find_published(record["model"])]
        if inside := [row.model for row in others if low <= row.figures[FIGURES.index(RANKED_BY)] <= high]:
            found = f"The published {RANKED_BY} of {', '.join(inside)} is inside the interval of"
            found = f"{found} {cell(record['label'])}: not distinguishable here"
            lines.append(f"- {found} (unpaired: no single pairs are published).")
    if records[1:]:
        parts.append(f"Paired difference to {cell(first['label'])}, its 95% interval and two-sided p-value:")
        parts.append(table(records[1:], difference))
    for record in records[1:]:
        name = f"{RANKED_BY}_difference"
        verdict = "" if record[f"{name}_low"] > 0 or record[f"{name}_high"] < 0 else "not "
        found = f"95% {ends(record, name, '+', ' to ')}, p = {record[f'{RANKED_BY}_p']:.2g}"
        found = f"{RANKED_BY}: {100 * record[name]:+.2f} ({found}) on {record['rows']:,} pairs"
        both = f"{cell(record['label'])} against {cell(first['label'])}"
        lines.append(f"- {both}, {found}: {verdict}distinguishable from noise")
    return [*parts, "\n".join(lines)] if lines else parts


def errors_table(count: int, label: str, cosine: np.ndarray, pairs: Pairs) -> str:
    """List the pairs whose ranks by the cosines of the row `label`, (pairs,), and by gold score differ most."""
    (low, high), rows, disagreement = pairs.scale, [], rankdata(cosine) - rankdata(pairs.gold)
    for i in np.argsort(-np.abs(disagreement), kind="stable")[:count]:
        numbers = [f"{low + (high - low) * pairs.gold[i]:.2f}", f"{cosine[i]:.4f}", f"{disagreement[i]:+.0f}"]
        rows.append([*numbers, pairs.sentences1[i], pairs.sentences2[i]])
    header = [f"gold ({low:g}-{high:g})", "cosine", "cosine rank minus gold rank", "sentence1", "sentence2"]
    table = markdown(header, rows, texts=("sentence1", "sentence2"))
    return f"Pairs of {cell(pairs.name)} that {cell(label)} ranks most wrongly by cosine:\n\n{table}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], texts: Sequence[str] = ("source",)) -> str:
    """Make a Markdown table: the first column and those named in `texts` to the left, numbers to the right."""
    align = [":--" if name in (header[0], *texts) else "--:" for name in header]
    lines = [header, align, *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Keep foreign text from ending its line or cell, opening HTML or steering the terminal."""
    return _one_line(text).replace("|", r"\|").replace("<", "&lt;")


def escape_markdown(text: str) -> str:
    """Return `text` on one line, with nothing in it that Markdown or HTML takes for its own, in tables too."""
    return re.sub(r"([\\`*_\[\]<>#|~])", r"\\\1", _one_line(text)).replace("&", "&amp;")


def _one_line(text: str) -> str:
    return " ".join(re.sub("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", " ", text).split())


def write_results(path: Path, records: Sequence[Record]) -> None:
    """Write records as .json or .csv by the file's suffix."""
    with write_atomically(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        if path.suffix == ".csv":
            columns = dict.fromkeys(name for record in records for name in record)
            writer = csv.DictWriter(file, list(columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows(records)
        else:
            json.dump(records, file, ensure_ascii=False, indent=2, allow_nan=False)
