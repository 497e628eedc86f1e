"""The evaluator of training runs against the library's, and the files it writes."""

import csv

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from data_util import load_kor_sts
from kf_deberta.cli import InputError, progress
from kf_deberta.evaluation.evaluator import PairEvaluator

SIMILARITIES = ["cosine", "euclidean", "manhattan", "dot"]


@pytest.fixture(scope="module")
def model(toy_base):
    return SentenceTransformer(str(toy_base), device="cpu")


@pytest.fixture(scope="module")
def pairs(toy_data):
    return load_kor_sts(toy_data / "KorSTS" / "sts-test.tsv")


def test_figures_and_files_are_the_librarys(model, pairs, tmp_path):
    evaluator = PairEvaluator(pairs, "sts-test", 7, [16, 8])
    scores = evaluator(model)
    evaluator.write_csv(tmp_path / "ours", [{"epoch": 0.5, "step": 3} | {f"eval_{k}": v for k, v in scores.items()}])
    for dimension in (None, 16, 8):
        name = "sts-test" if dimension is None else f"sts-test-{dimension}"
        library = EmbeddingSimilarityEvaluator(
            *pairs.with_format(None)[:].values(),
            name=name,
            similarity_fn_names=SIMILARITIES,
            truncate_dim=dimension,
        )
        expected = library(model, str(tmp_path / "library"), 0.5, 3)
        for similarity in SIMILARITIES:
            assert scores[f"{name}_pearson_{similarity}"] == pytest.approx(
                expected[f"{name}_pearson_{similarity}"], abs=1e-6
            )
            # rounding may swap two neighbors of 20 pairs: 0.0015 in rho
            assert scores[f"{name}_spearman_{similarity}"] == pytest.approx(
                expected[f"{name}_spearman_{similarity}"], abs=2e-3
            )
        ours, theirs = (
            list(csv.reader((tmp_path / kind / library.csv_file).open(newline=""))) for kind in ("ours", "library")
        )
        assert ours[0] == theirs[0] and ours[1][:2] == theirs[1][:2]
        assert [float(value) for value in ours[1]] == pytest.approx([float(value) for value in theirs[1]], abs=2e-3)
    assert evaluator.percent(scores)["8_dot_pearson"] == pytest.approx(100 * scores["sts-test-8_pearson_dot"])


def test_equal_similarities_have_no_correlation(model, pairs):
    one = pairs["sentence1"][0]
    constant = pairs.with_format(None).map(lambda row: {"sentence1": one, "sentence2": one})
    with pytest.raises(InputError, match="all pairs have the same cosine similarity.* 1 different embeddings for 1 "):
        PairEvaluator(constant, "sts-test", 7)(model)


def test_progress_on_a_pipe_is_a_line_every_30_seconds_at_most(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    lines = progress(1000, "round", "rounds", initial=100)
    lines.write("loss 0.5")
    for _ in range(450):
        clock[0] += 0.2
        lines.update(2)
    out = capsys.readouterr().err.splitlines()
    assert out[0] == "round 150/1,000, 10.0 rounds/s, 01:25 left: loss 0.5"
    assert len(out) == 3  # after 5, 35 and 65 of 90 seconds
    slow = progress(10, "round", "rounds")
    clock[0] += 50
    slow.update(1)
    assert capsys.readouterr().err == "round 1/10, 50.00 s per round, 07:30 left\n"
