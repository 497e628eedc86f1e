"""Fixtures: scripts run as a user runs them, a tiny model made on the spot, the shared data where it is at hand."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("KF_SHARED", REPO.parent / "shared"))


# a shell's background job starts with Ctrl-C ignored, which the tests of signals would inherit
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def run_script():
    """Run a script of the repository: run_script("bin/benchmark.py", "--split", "dev", env={...}, cwd=...)."""

    def run(script: str, *args: object, env: dict[str, str] | None = None, cwd: Path | None = None, check=False):
        environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]} | (env or {})
        command = [sys.executable, str(REPO / script), *map(str, args)]
        result = subprocess.run(
            command, env=os.environ | environment, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if check:
            assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-5000:]
        return result

    return run


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not at hand")
    return SHARED


@pytest.fixture(scope="session")
def kor_nlu(shared) -> Path:
    return shared / "kor-nlu-datasets"


@pytest.fixture(scope="session")
def tiny_deberta(shared) -> Path:
    return shared / "models" / "tiny-deberta"


@pytest.fixture(scope="session")
def e5_small(shared) -> Path:
    return shared / "models" / "e5-small-ko"


@pytest.fixture(scope="session")
def toy_base(tmp_path_factory) -> Path:
    """A tiny random DebertaV2 with a tokenizer of the sample corpus."""
    from build_base import build_base

    path = tmp_path_factory.mktemp("toy") / "toy-base"
    build_base(path, hidden_size=32, num_hidden_layers=2, vocab_size=1200)
    return path


@pytest.fixture(scope="session")
def still_base(toy_base, tmp_path_factory) -> Path:
    """The toy base without dropout."""
    path = shutil.copytree(toy_base, tmp_path_factory.mktemp("still") / "still-base")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory) -> Path:
    """KorNLI and KorSTS files of random words: 300 premises (600 triplets), 28/20/20 pairs; fast, teaches nothing."""
    import numpy as np

    generator = np.random.default_rng(0)
    words = [first + second for first in "가나다라마바사아자차" for second in "강금돈말밥산집책"]

    def sentence(length: int = 6) -> str:
        return " ".join(generator.choice(words, length))

    root = tmp_path_factory.mktemp("toy") / "toy-data"
    (root / "KorNLI").mkdir(parents=True)
    (root / "KorSTS").mkdir()
    rows = []
    for number in range(300):
        premise = f"{sentence()} {number}"
        rows += [(premise, f"{sentence()} {label} {number}", label) for label in ("entailment", "contradiction")]
    lines = ["sentence1\tsentence2\tgold_label", *("\t".join(row) for row in rows)]
    (root / "KorNLI" / "toy.train.ko.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split, size in (("train", 28), ("dev", 20), ("test", 20)):
        lines = ["genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2"]
        for number in range(size):
            score = 5 * generator.random()
            first, other = sentence().split(), sentence().split()
            kept = generator.random(len(first)) < score / 5
            first, second = " ".join(first), " ".join(np.where(kept, first, other))
            lines.append(f"toy\ttoy\t2026\t{number}\t{score:.3f}\t{first}\t{second}")
        (root / "KorSTS" / f"sts-{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root
