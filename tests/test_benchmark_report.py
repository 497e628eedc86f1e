"""The report on hand-made records: bold, published rows, verdicts, intervals, and result files that do not fit."""

import json

import numpy as np
import pytest

from kf_deberta.cli import InputError
from kf_deberta.evaluation.published import COMPARABLE_ROWS, PUBLISHED_ROWS, find_published
from kf_deberta.evaluation.report import errors_table, markdown, published_table, report
from kf_deberta.evaluation.results import add_bootstrap, read_results, write_results
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


def test_results_survive_a_file_and_mix_only_on_equal_data(tmp_path):
    first, second, other = (tmp_path / f"{name}.json" for name in ("first", "second", "other"))
    records = [
        make_record('가, "x" \udcff', list(np.random.default_rng(0).random(8) * 100), dimensions=64, extra=None)
    ]
    write_results(first, records)
    write_results(second, [make_record("b"), make_record("c", error="failed, badly")])
    assert read_results([first]) == records
    first.write_bytes(b"\xef\xbb\xbf" + first.read_bytes())  # as an editor may save it
    assert [record["model"] for record in read_results([first, second])] == ['가, "x" \udcff', "b", "c"]
    write_results(other, [make_record("d", blob_id="0" * 40, data="sts-dev.tsv")])
    with pytest.raises(InputError, match=r"other.*scored on sts-dev\.tsv, but .*first.* on sts-test\.tsv"):
        read_results([first, other])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in (first, second, other))


BOOTSTRAPPED = {"resamples": 100, "seed": 0} | {f"{name}_{end}": 0.5 for name in FIGURES for end in ("low", "high")}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("{}", "not a list of result records"),
        ("[]", "not a list of result records"),
        ("[1]", "record 1 is not an object"),
        ("[" * 100_000, "maximum recursion depth"),
        ("[" + "9" * 5000 + "]", "4300 digits"),
        ([{"model": "a"}], "record 1 has no precision"),
        ([make_record(), make_record(rows="1379")], "record 2: rows is '1379', not a whole number"),
        ([make_record(rows=True)], "record 1: rows is True, not a whole number"),
        ([make_record(seed=-1, **{"resamples": 10})], "record 1 has no cosine_pearson_low"),
        ([make_record(**BOOTSTRAPPED | {"seed": 2**70})], "record 1: seed is 1180591620717411303424, not"),
        ([make_record(**BOOTSTRAPPED | {"dot_pearson_low": "x"})], "record 1: dot_pearson_low is 'x', not"),
        ([make_record(**BOOTSTRAPPED, compared_with=["a"])], "record 1 has no cosine_pearson_difference"),
        ([make_record(model=["a"])], "record 1: model is ['a'], not text"),
        ([make_record(model="")], "record 1: model is '', not text"),
        ([make_record(blob_id=None)], "record 1: blob_id is None, not text"),
        ([make_record(error={})], "record 1: error is {}, not text"),
        ([make_record(dimensions=1.5)], "record 1: dimensions is 1.5, not a whole number"),
        ([make_record(settings=7)], "record 1: settings is 7, not text"),
        ([make_record(dot_pearson=None)], "record 1: dot_pearson is None, not a number"),
        ([make_record(dot_pearson=10**400)], "record 1: dot_pearson is 1000"),
        (json.dumps([make_record()]).replace("0.8", "1e999"), "record 1: cosine_pearson is inf, not a number"),
        (json.dumps([make_record()]).replace("0.8", "NaN"), "record 1: cosine_pearson is nan, not a number"),
    ],
)
def test_damaged_results_are_one_line_that_names_the_key(content, reason, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=r"results\.json: no readable results") as error:
        read_results([path])
    assert reason in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 300
