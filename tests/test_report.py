"""The report on hand-made records: bold, published rows, verdicts, intervals, averages, and the scatter figure."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes

from kf_deberta.data.pairs import Pairs
from kf_deberta.evaluation import scatter
from kf_deberta.evaluation.bootstrap import add_bootstrap
from kf_deberta.evaluation.report import (
    COMPARABLE_ROWS,
    PUBLISHED_ROWS,
    errors_table,
    escape_markdown,
    find_published,
    markdown,
    published_pooling,
    report,
    write_results,
)
from kf_deberta.evaluation.scoring import FIGURES, score

OFFICIAL_TEST = "d2a7c958d520ed84402c0042142a60d9a18ee3e4"


def make_record(model="my/model", figures=(80.0,) * 8, **fields):
    record = {"model": model, "label": model, "dimensions": None, "precision": "float32", "error": None, "note": None}
    record |= {"data": "sts-test.tsv", "rows": 1379, "blob_id": OFFICIAL_TEST, "data_revision": None}
    return record | {name: value / 100 for name, value in zip(FIGURES, figures, strict=True)} | fields


def row_of(text, name):
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")][1:]


def test_columns_are_in_the_published_order_and_the_best_of_each_is_bold():
    text = report([make_record("a", range(60, 68)), make_record("b", [60.001, *range(60, 67)])], with_published=False)
    header = next(line for line in text.splitlines() if line.startswith("| model"))
    names = "cosine_pearson cosine_spearman euclidean_pearson euclidean_spearman manhattan_pearson manhattan_spearman"
    assert [cell.strip() for cell in header.strip("|").split("|")][1:9] == f"{names} dot_pearson dot_spearman".split()
    assert row_of(text, "a") == ["**60.00**", *(f"**{value}.00**" for value in range(61, 68)), "measured"]
    assert row_of(text, "b") == [
        "**60.00**",
        *(f"{value}.00" for value in range(60, 67)),
        "measured",
    ]  # a tie as shown


def test_published_rows_follow_the_measured_ones_with_their_source():
    text = report([make_record()])
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows[0].startswith("| my/model |") and len(rows) == 1 + len(PUBLISHED_ROWS) == 12
    assert row_of(text, "kf-deberta-multitask")[1] == "**86.25**"
    assert row_of(text, "kf-deberta-multitask")[8] == "published, upskyy/kf-deberta-multitask model card"
    assert row_of(text, "KoSimCSE-RoBERTa-multitask")[7] == "**85.99**"
    assert sum("published, BM-K/KoSimCSE README |" in row for row in rows) == 2
    assert sum("published, jhgan00/ko-sentence-transformers README |" in row for row in rows) == 7
    assert "Bold: best of the column among all rows on the same text." in text
    assert row_of(text, "simcse-ko-bert-supervised")[8].endswith("not the same text: commas and quotes deleted")
    assert "KoSimCSE" not in report([make_record()], with_published=False)
    assert published_pooling("BM-K/KoSimCSE-roberta-multitask") == "cls" and published_pooling("my/model") is None


def test_another_file_is_not_compared_with_published_rows():
    text = report([make_record("upskyy/kf-deberta-multitask", blob_id="0" * 40)])
    assert "86.25" not in text and "reproduced" not in text
    note = "not the official KorSTS file of 1,379 pairs, so its figures compare with no published ones"
    text = report([make_record(blob_id="0" * 40, note=note)])
    assert f"This is {note}." in text


@pytest.mark.parametrize("offset", [0.0, 0.0501, -0.05, 0.06, -0.06])  # 0.05 as shown, with two decimals
def test_verdict_on_a_published_model(offset):
    verdict = "reproduced: all eight figures" if abs(offset) < 0.055 else "NOT reproduced: 7 of eight figures"
    figures = list(find_published("jhgan/ko-sroberta-nli").figures)
    figures[4] += offset
    text = report([make_record("jhgan/ko-sroberta-nli", figures)])
    assert f"- jhgan/ko-sroberta-nli: {verdict}" in text
    assert row_of(text.split("Measured minus published:")[1], "jhgan/ko-sroberta-nli")[4] == f"{offset:+.2f}"
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
    assert "reproduced" not in report([make_record(altered.hub_name)])


def test_a_negative_spearman_gets_one_line():
    text = report([make_record("reversed", [-58.97] * 8), make_record("random", [-3.0] * 8)], with_published=False)
    (line,) = [line for line in text.splitlines() if "--scale" in line]
    assert line.startswith("- reversed: its cosine_spearman is negative") and line.endswith("such as 1,0")


def test_bootstrap_report_tells_a_real_difference_from_noise():
    generator = np.random.default_rng(0)
    gold = generator.random(400)
    good = np.stack([gold + generator.normal(0, 0.3, 400)] * 4)
    variants = {
        "good": good,
        "same": good + generator.normal(0, 0.01, 400),
        "bad": good + generator.normal(0, 0.6, 400),
    }
    records = [make_record(name, rows=400) | score(values, gold) for name, values in variants.items()]
    add_bootstrap(records, list(variants.values()), gold, 200, seed=1)
    lines = report([make_record("failed", error="no such file"), *records], with_published=False).splitlines()
    verdicts = [next(line for line in lines if line.startswith(f"- {name} against good,")) for name in ("same", "bad")]
    assert verdicts[0].endswith("on 400 pairs: not distinguishable from noise")
    assert verdicts[1].endswith("on 400 pairs: distinguishable from noise")
    low, high = (f"{100 * records[2][f'cosine_spearman_difference_{end}']:+.2f}" for end in ("low", "high"))
    assert f"(95% {low} to {high}, p = " in verdicts[1]
    assert any(line.startswith("| bad |") and f"[{low}, {high}] p=0.01 |" in line for line in lines)


def test_worst_pairs_come_first():
    gold = np.array([0.0, 0.2, 0.4, 0.6, 1.0])
    cosine = np.array([0.1, 0.9, 0.3, 0.4, 0.2])  # ranks 1 5 3 4 2 for gold ranks 1 2 3 4 5
    title, *_, first, second = errors_table(
        2, "m", cosine, Pairs("x", list("abcde"), list("ABCDE"), gold)
    ).splitlines()
    assert title == "Pairs of x that m ranks most wrongly by cosine:"
    assert [first, second] == ["| 1.00 | 0.9000 | +3 | b | B |", "| 5.00 | 0.2000 | -3 | e | E |"]


def test_foreign_text_breaks_neither_tables_nor_terminals_nor_files(tmp_path):
    assert markdown(["model"], [["a|b\nc"]]).splitlines()[2] == r"| a\|b c |"
    assert markdown(["model"], [['\x1b[31m<img "x">\x9b\ud800']]).splitlines()[2] == '| [31m&lt;img "x"> |'
    assert escape_markdown("a_b*`c\n<d> & |") == r"a\_b\*\`c \<d\> &amp; \|"
    records = [make_record("evil|\n\x1b]0;<b>", data="a\nb|<c>.tsv"), make_record('가, "x"', dimensions=64)]
    text = report(records)
    assert "\x1b" not in text and "<" not in text and text.startswith(r"a b\|&lt;c>.tsv: 1,379 pairs")
    write_results(tmp_path / "a.json", records)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == records
    write_results(tmp_path / "a.csv", records)
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").startswith("model,label,dimensions,precision,error,")


def test_scatter_draws_names_as_they_are(tmp_path, monkeypatch, capsys, recwarn):
    titles, original = [], Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **kw: titles.append(text) or original(self, text, **kw))
    monkeypatch.setattr(scatter, "HANGUL_FONTS", ("Hangul",))  # which is not installed
    pairs = Pairs("x", [], [], np.linspace(0, 1, 9))
    for name in ("plot.png", "plot.svg"):
        scatter.plot(tmp_path / name, [(make_record("모델_$x_\\frac$"), pairs.gold, pairs)])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "<!-- fit: 0.200 gold + " in (tmp_path / "plot.svg").read_text(encoding="utf-8")  # beside its glyphs
    assert "no Hangul font" in capsys.readouterr().err
    assert titles == ["??_$x_\\frac$"] * 2 and not [w for w in recwarn if "Glyph" in str(w.message)]


def test_scatter_in_the_environment_of_a_notebook(repo, tmp_path):
    code = "import sys, numpy as np; from kf_deberta.data.pairs import Pairs; "
    code += "from kf_deberta.evaluation import report, scatter; gold = np.linspace(0, 1, 9); "
    code += "assert not {'matplotlib', 'torch'} & set(sys.modules); "
    code += "record = dict.fromkeys(report.FIGURES, 0.5) | {'label': 'a'}; "
    code += "scatter.plot(report.Path(sys.argv[1]), [(record, gold, Pairs('x', [], [], gold))])"
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "plot.png"], env=environment, cwd=repo, check=True)
    assert (tmp_path / "plot.png").stat().st_size > 1000
