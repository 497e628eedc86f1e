import argparse
import importlib
import json
import subprocess
import sys

import pytest
from test_data_kor_nli import as_tuples, check_triplets, plain_partners, read_plainly

from data_util import load_kor_nli


@pytest.fixture
def speed_load(repo, monkeypatch):
    monkeypatch.syspath_prepend(repo / "bin")
    return importlib.import_module("speed_load")


def test_both_loaders_build_triplets_from_the_same_partners(speed_load, tmp_path):
    path = tmp_path / "a.tsv"
    speed_load.write_synthetic_kor_nli(path, 3000, 0)
    content = path.read_bytes()
    speed_load.write_synthetic_kor_nli(path, 3000, 0)
    assert path.read_bytes() == content
    partners = plain_partners(read_plainly(path))
    assert len(read_plainly(path)) == 3000
    for triplets in (speed_load.load_plainly([path], 0), as_tuples(load_kor_nli([path], 0))):
        check_triplets(triplets, partners)


def test_report_has_a_row_for_each_loader_and_the_ratios(speed_load, capsys):
    parser = argparse.ArgumentParser()
    speed_load.add_arguments(parser)
    speed_load.run(parser.parse_args(["--repeats", "1", "--scale", "0.005"]))
    table = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row[0] for row in table] == ["loader", "---|---|---|---", "plain", "data_util", "data_util / plain"]
    peaks = [float(row[2].removesuffix(" MiB")) for row in table[2:4]]
    assert float(table[4][2]) == pytest.approx(peaks[1] / peaks[0], rel=0.02)  # of whole MiB


def test_peak_memory_is_that_of_the_process_itself(speed_load, repo, tmp_path):
    path = tmp_path / "a.train.ko.tsv"
    speed_load.write_synthetic_kor_nli(path, 300, 0)
    ballast = bytearray(b"x") * (400 << 20)  # a large parent must not show in the figures of its child
    command = [sys.executable, repo / "dev" / "speed_load.py", "data_util", tmp_path]
    result = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert 20 < result["peak"] < len(ballast) / (1 << 20)
    assert 0 <= result["added"] < result["peak"] and result["seconds"] > 0
