"""Published results on the KorSTS test file (1,379 pairs), as their authors report them: the rows of published.csv."""

import csv
from dataclasses import dataclass
from pathlib import Path

from kf_deberta.evaluation.scoring import FIGURES


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table.

    Attributes:
        model: name in the table it was published in.
        hub_name: name on the hub.
        figures: correlations times 100 in the order of scoring.FIGURES.
        pooling: mean or cls, of the model that was measured.
        source: where it was published, and its `url`.
        altered_text: how the test sentences were changed first; empty where they were not.
    """

    model: str
    hub_name: str
    figures: tuple[float, ...]
    pooling: str
    source: str
    url: str
    altered_text: str


def _read(path: Path) -> tuple[PublishedRow, ...]:
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return tuple(PublishedRow(figures=tuple(float(row.pop(name)) for name in FIGURES), **row) for row in rows)


PUBLISHED_ROWS = _read(Path(__file__).with_suffix(".csv"))
COMPARABLE_ROWS = tuple(row for row in PUBLISHED_ROWS if not row.altered_text)


def find_published(model: str) -> PublishedRow | None:
    """Return the comparable row of a hub name such as upskyy/kf-deberta-multitask, or None."""
    return next((row for row in COMPARABLE_ROWS if row.hub_name.lower() == model.lower()), None)


def published_pooling(model: str) -> str | None:
    """Return the pooling that a published model's figures are of, None for any other name."""
    return next((row.pooling for row in PUBLISHED_ROWS if row.hub_name.lower() == model.lower()), None)
