"""The report on hand-made records: bold, published rows, verdicts, intervals."""

import numpy as np
import pytest

from kf_deberta.evaluation.published import COMPARABLE_ROWS, PUBLISHED_ROWS, find_published
from kf_deberta.evaluation.report import errors_table, markdown, published_table, report
from kf_deberta.evaluation.results import add_bootstrap
from kf_deberta.evaluation.scoring import FIGURES, score

OFFICIAL_TEST = "d2a7c958d520ed84402c0042142a60d9a18ee3e4"


def make_record(model="my/model", figures=None, **fields):
    values = figures if figures is not None else [80.0] * 8
    record = {"model": model, "dimensions": None, "precision": "float32", "error": None, "data": "sts-test.tsv"}
    record |= {"rows": 1379, "blob_id": OFFICIAL_TEST, "settings": "cpu"}
    return record | {name: value / 100 for name, value in zip(FIGURES, values, strict=True)} | fields


def row_of(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")][1:]


def test_columns_are_in_the_published_order_and_the_best_of_each_is_bold():
    text = report([make_record("a", range(60, 68)), make_record("b", [60.001, *range(60, 67)])], with_published=False)
    header = next(line for line in text.splitlines() if line.startswith("| model"))
    assert [cell.strip() for cell in header.strip("|").split("|")][1:9] == [
        *("cosine_pearson", "cosine_spearman", "euclidean_pearson", "euclidean_spearman"),
        *("manhattan_pearson", "manhattan_spearman", "dot_pearson", "dot_spearman"),
    ]
    assert row_of(text, "a") == ["**60.00**", *(f"**{value}.00**" for value in range(61, 68)), "measured"]
    assert row_of(text, "b") == [
        "**60.00**",
        *(f"{value}.00" for value in range(60, 67)),
        "measured",
    ]  # a tie as shown


def test_published_rows_stand_under_the_measured_ones_with_their_source():
    text = report([make_record()])
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows[0].startswith("| my/model |") and len(rows) == 1 + len(PUBLISHED_ROWS) == 12
    assert row_of(text, "kf-deberta-multitask")[1] == "**86.25**"
    assert row_of(text, "KoSimCSE-RoBERTa-multitask")[7] == "**85.99**"
    assert sum("published, BM-K/KoSimCSE README |" in row for row in rows) == 2
    assert "Bold: best of the column among all rows on the same text, measured and published." in text
    assert row_of(text, "simcse-ko-bert-supervised")[1] == "86.00"
    assert row_of(text, "simcse-ko-bert-supervised")[8].endswith("not the same text: commas and quotes deleted")
    assert "KoSimCSE" not in report([make_record()], with_published=False)


def test_published_rows_are_not_compared_with_another_file():
    text = report([make_record("upskyy/kf-deberta-multitask", blob_id="0" * 40)])
    assert "86.25" not in text and "reproduced" not in text
    assert "No published rows" in text


@pytest.mark.parametrize(
    ("offset", "verdict"),
    [
        (0.0, "reproduced: all eight figures"),
        (0.0501, "reproduced: all eight figures"),  # 0.05 as shown, with two decimals
        (-0.05, "reproduced: all eight figures"),
        (0.06, "NOT reproduced: 7 of eight figures"),
        (-0.06, "NOT reproduced: 7 of eight figures"),
    ],
)
def test_verdict_on_a_published_model(offset, verdict):
    figures = list(find_published("jhgan/ko-sroberta-nli").figures)
    figures[4] += offset
    text = report([make_record("jhgan/ko-sroberta-nli", figures)])
    assert f"- jhgan/ko-sroberta-nli: {verdict}" in text
    differences = text.split("Measured minus published:")[1]
    assert row_of(differences, "jhgan/ko-sroberta-nli")[4] == f"{offset:+.2f}"
    assert "reproduced" not in report([make_record("jhgan/ko-sroberta-nli", figures, dimensions=256)])


def test_a_run_of_ones_own_gets_a_verdict_against_the_row_it_is_to_reach():
    figures = [value + 0.04 for value in find_published("upskyy/kf-deberta-multitask").figures]
    assert "reproduced" not in report([make_record("output/my-run", figures)])
    text = report([make_record("output/my-run", figures)], reproduces="upskyy/kf-deberta-multitask")
    assert "- output/my-run: reproduced: all eight figures within 0.05 of kf-deberta-multitask's published row" in text


def test_a_row_on_altered_text_wins_no_column_and_judges_no_model():
    altered = next(row for row in PUBLISHED_ROWS if row.hub_name == "snumin44/simcse-ko-bert-supervised")
    assert altered not in COMPARABLE_ROWS and find_published(altered.hub_name) is None
    best = [max(row.figures[i] for row in COMPARABLE_ROWS) for i in range(8)]
    assert sum(figure > top for figure, top in zip(altered.figures, best, strict=True)) == 4
    row = row_of(published_table(), "simcse-ko-bert-supervised †")
    assert row == [*(f"{figure:.2f}" for figure in altered.figures), "[4]"]
    assert "reproduced" not in report([make_record(altered.hub_name, [80.0] * 8)])


def test_bootstrap_report_tells_a_real_difference_from_noise():
    generator = np.random.default_rng(0)
    gold = generator.random(400)
    good = np.stack([gold + generator.normal(0, 0.3, 400)] * 4)
    same = good + generator.normal(0, 0.01, 400)
    worse = good + generator.normal(0, 0.6, 400)
    similarities = [None, good, same, worse]
    names = ["failed", "good", "same", "worse"]
    records = [
        make_record(name, **(score(values, gold) if values is not None else {"error": "no such file"}), rows=400)
        for name, values in zip(names, similarities, strict=True)
    ]
    add_bootstrap(list(zip(records, similarities, strict=True)), gold, 400, seed=1)
    lines = report(records, with_published=False).splitlines()
    verdicts = {name: next(line for line in lines if line.startswith(f"- {name} against good,")) for name in names[2:]}
    assert verdicts["same"].endswith("on 400 pairs: not distinguishable from noise")
    assert verdicts["worse"].endswith("on 400 pairs: distinguishable from noise")
    assert "compared_with" not in records[0] and "compared_with" not in records[1]


def test_worst_pairs_come_first():
    gold = np.array([0.0, 0.2, 0.4, 0.6, 1.0])
    cosine = np.array([0.1, 0.9, 0.3, 0.4, 0.2])  # ranks 1 5 3 4 2 for gold ranks 1 2 3 4 5
    rows = errors_table(2, cosine, gold, list("abcde"), list("ABCDE")).splitlines()[2:]
    assert rows == ["| 1.00 | 0.9000 | +3 | b | B |", "| 5.00 | 0.2000 | -3 | e | E |"]


def test_cells_cannot_break_the_table():
    assert markdown(["model"], [["a|b\nc"]]).splitlines()[2] == r"| a\|b c |"
    assert markdown(["model"], [['\x1b[31m<img "x">\x9b\ud800']]).splitlines()[2] == '| [31m&lt;img "x"> |'
    text = report([make_record("evil|\n\x1b]0;<b>", data="a\nb|<c>.tsv")])
    assert "\x1b" not in text and "<" not in text and text.startswith(r"a b\|&lt;c>.tsv: 1,379 pairs")
