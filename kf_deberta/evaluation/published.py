"""Published results on the KorSTS test file (1,379 pairs), correlations times 100, as their authors report them."""

from dataclasses import dataclass

KF_DEBERTA = "upskyy/kf-deberta-multitask README"
KO_SIM_CSE = "BM-K/KoSimCSE README"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a published table; `figures` times 100 in the order of scoring.FIGURES."""

    model: str
    hub_name: str
    figures: tuple[float, ...]
    source: str


PUBLISHED_ROWS = (
    PublishedRow(
        "kf-deberta-multitask",
        "upskyy/kf-deberta-multitask",
        (85.75, 86.25, 84.79, 85.25, 84.80, 85.27, 82.93, 82.86),
        KF_DEBERTA,
    ),
    PublishedRow(
        "KoSimCSE-RoBERTa-multitask",
        "BM-K/KoSimCSE-roberta-multitask",
        (85.08, 86.12, 85.84, 86.12, 85.83, 86.12, 85.03, 85.99),
        KO_SIM_CSE,
    ),
    PublishedRow(
        "KoSimCSE-BERT-multitask",
        "BM-K/KoSimCSE-bert-multitask",
        (85.29, 86.02, 85.63, 86.01, 85.57, 85.97, 85.26, 85.93),
        KO_SIM_CSE,
    ),
    PublishedRow(
        "ko-sroberta-multitask",
        "jhgan/ko-sroberta-multitask",
        (84.77, 85.60, 83.71, 84.40, 83.70, 84.38, 82.42, 82.33),
        KF_DEBERTA,
    ),
    PublishedRow(
        "ko-sbert-multitask",
        "jhgan/ko-sbert-multitask",
        (84.13, 84.71, 82.42, 82.66, 82.41, 82.69, 80.05, 79.69),
        KF_DEBERTA,
    ),
    PublishedRow(
        "ko-sroberta-base-nli",
        "jhgan/ko-sroberta-nli",
        (82.83, 83.85, 82.87, 83.29, 82.88, 83.28, 80.34, 79.69),
        KF_DEBERTA,
    ),
    PublishedRow(
        "ko-sbert-nli",
        "jhgan/ko-sbert-nli",
        (82.24, 83.16, 82.19, 82.31, 82.18, 82.30, 79.30, 78.78),
        KF_DEBERTA,
    ),
    PublishedRow(
        "ko-sroberta-sts",
        "jhgan/ko-sroberta-sts",
        (81.84, 81.82, 81.15, 81.25, 81.14, 81.25, 79.09, 78.54),
        KF_DEBERTA,
    ),
    PublishedRow(
        "ko-sbert-sts",
        "jhgan/ko-sbert-sts",
        (81.55, 81.23, 79.94, 79.79, 79.90, 79.75, 76.02, 75.31),
        KF_DEBERTA,
    ),
)


def find_published(model: str) -> PublishedRow | None:
    """Return the published row of a hub name such as upskyy/kf-deberta-multitask, or None."""
    return next((row for row in PUBLISHED_ROWS if row.hub_name.lower() == model.lower()), None)
