"""The real mteb package beside our own scores, on the same pairs; skipped where mteb is not installed."""

import json
import re

import pytest

pytest.importorskip("mteb")


def test_mteb_gives_our_figures(run_script, toy_base, repo, tmp_path):
    arguments = ["--model_name_or_path", toy_base, "--sts_file", repo / "sample" / "KorSTS" / "sts-test.tsv"]
    result = run_script("dev/mteb_check.py", *arguments, "--name", "me/toy", "--output_dir", tmp_path, check=True)
    rows = re.findall(r"^(\w+_(?:pearson|spearman)) +(-?\d+\.\d+) +(-?\d+\.\d+)$", result.stdout, re.M)
    assert len(rows) == 6
    folder = tmp_path / "results" / "me__toy" / "local"
    (scores,) = json.loads((folder / "KorSTS.json").read_text())["scores"]["test"]
    for name, theirs, ours in rows:
        assert float(theirs) == pytest.approx(100 * scores[name], abs=1e-4)
        assert float(ours) == pytest.approx(float(theirs), abs=0.005), name
    meta = json.loads((folder / "model_meta.json").read_text())
    assert sorted(meta["training_datasets"]) == ["KorNLI", "KorSTS"] and meta["embed_dim"] == 32
