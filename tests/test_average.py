"""bin/average.py: the mean of weights is the mean, kept only where it is best on dev; models must be of one kind."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import rankdata, spearmanr
from sentence_transformers import SentenceTransformer

from kf_deberta.model.load import load_model
from kf_deberta.model.save import save_model

AVERAGE = "the average of their weights"


@pytest.fixture(scope="module")
def folders(toy_base, tmp_path_factory):
    """A model with noise added, the same with the noise taken away, and between them the model itself."""
    root = tmp_path_factory.mktemp("models")
    folders = [root / name for name in ("more", "less", "middle")]
    save_model(load_model(str(toy_base), device="cpu"), folders[2])
    middle = load_file(folders[2] / "model.safetensors")
    torch.manual_seed(0)
    noise = {name: 0.05 * torch.randn_like(tensor) for name, tensor in middle.items()}
    for folder, sign in zip(folders[:2], (1, -1), strict=True):
        shutil.copytree(folders[2], folder)
        noisy = {name: tensor + sign * noise[name] for name, tensor in middle.items()}
        save_file(noisy, folder / "model.safetensors", metadata={"format": "pt"})
    return folders


@pytest.fixture(scope="module")
def dev(toy_data, folders, tmp_path_factory):
    """Dev pairs of different sentences, ranked by gold as the middle model ranks them."""
    folder = tmp_path_factory.mktemp("data") / "KorSTS"
    folder.mkdir()
    header, *lines = (toy_data / "KorSTS" / "sts-dev.tsv").read_text("utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    rows = [row for row in rows if row[5] != row[6]]
    for row, rank in zip(rows, rankdata(cosines(folders[2], rows)), strict=True):
        row[4] = f"{5 * rank / len(rows):.3f}"
    (folder / "sts-dev.tsv").write_text("\n".join([header, *map("\t".join, rows)]) + "\n", encoding="utf-8")
    return folder / "sts-dev.tsv"


def cosines(folder, rows):
    model = SentenceTransformer(str(folder), device="cpu")
    left, right = (model.encode([row[column] for row in rows]) for column in (5, 6))
    return (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


@pytest.fixture
def average(repo, dev):
    def call(*words):
        command = [sys.executable, repo / "bin" / "average.py", "--dataset_path", dev.parents[1]]
        command += ["--model_name_or_path", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=dev.parent)

    return call


@pytest.mark.parametrize(("numbers", "kept"), [((0, 1), AVERAGE), ((0, 2), "middle")])
def test_the_result_is_the_mean_or_the_best_single_model(average, folders, dev, tmp_path, numbers, kept, monkeypatch):
    chosen, output = [folders[number] for number in numbers], tmp_path / "결과"
    result = average(*chosen, "--output_dir", output)
    assert result.returncode == 0, result.stderr
    facts = json.loads((output / "average.json").read_text())
    assert facts["kept"] == kept and f"kept: {kept}\n" in result.stdout
    assert f"{kept}, the best on sts-dev.tsv" in (output / "README.md").read_text()
    rows = [line.split("\t") for line in dev.read_text("utf-8").splitlines()[1:]]
    gold, scores = [float(row[4]) for row in rows], dict(facts["dev_cosine_spearman"])
    for name, folder in [(folder.name, folder) for folder in chosen] + [(kept, output)]:
        assert scores[name] == pytest.approx(100 * spearmanr(cosines(folder, rows), gold)[0], abs=1e-3)
    assert scores[kept] == pytest.approx(100) and min(scores.values()) < 99.9
    states = [load_file(folder / "model.safetensors") for folder in chosen]
    for name, tensor in load_file(output / "model.safetensors").items():
        mean = torch.stack([state[name].double() for state in states]).mean(0)
        expected = mean.float() if kept == AVERAGE else states[1][name]
        assert torch.equal(tensor, expected), name
    assert not list(tmp_path.glob(".*"))
    code = re.search(r"```python\n(.*?)```", (output / "README.md").read_text("utf-8"), re.S)[1]
    monkeypatch.chdir(dev.parent)
    names = {}
    exec(code.replace('"결과"', repr(str(output))), names)
    assert names["embeddings"].shape[0] == 2


def test_models_of_another_kind_and_bad_places_are_refused(average, folders, tmp_path):
    other, short = tmp_path / "other", tmp_path / "short"
    save_model(load_model(str(folders[0]), device="cpu", normalize=True), other)
    save_model(load_model(str(folders[0]), device="cpu", max_seq_length=16), short)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(folders[1], unfinished)
    (unfinished / "training_arguments.json").write_text('{"status": "unfinished"}')
    output = ["--output_dir", tmp_path / "mean"]
    for words, message in (
        ([folders[0], other, *output], f"{other}: other modules than {folders[0]}"),
        ([folders[0], short, *output], f"{short}: other max_seq_length than {folders[0]}"),
        ([folders[0], folders[0], *output], "give two or more different folders"),
        ([folders[0], unfinished, *output], f"{unfinished}: this run is not finished"),
        ([folders[0], tmp_path, *output], f"{tmp_path}: no modules.json in it"),
        ([*folders[:2], "--output_dir", other], f"{other}: exists; give another --output_dir"),
    ):
        result = average(*words)
        assert result.returncode == 2 and message in result.stderr, result.stderr
        assert result.stderr.count("error:") == 1 and "Traceback" not in result.stderr
        assert not (tmp_path / "mean").exists()
