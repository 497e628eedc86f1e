"""Cloning the data set: from local repositories, with the real git."""

import os
import socket
import stat
import subprocess

import pytest

from kf_deberta.data import official
from kf_deberta.data.official import ensure_kor_nlu_datasets
from kf_deberta.errors import InputError


def git(folder, *arguments):
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "core.autocrlf=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def origin(tmp_path, monkeypatch):
    """A repository with the data set's files; its commit and blob ids, asked of git, stand for the official ones."""
    for name in ("GIT_DIR", "GIT_INDEX_FILE"):  # set if a git hook runs the tests
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "origin"
    for name in official.BLOB_IDS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"sentence1\tsentence2\n{name}\t한국어\n".encode())
    git(tmp_path, "init", "--quiet", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "data")
    monkeypatch.setattr(official, "COMMIT", git(folder, "rev-parse", "HEAD"))
    blob_ids = {name: git(folder, "rev-parse", f"HEAD:{name}") for name in official.BLOB_IDS}
    monkeypatch.setattr(official, "BLOB_IDS", blob_ids)
    (folder / "KorSTS" / "sts-dev.tsv").write_text("a later version\n")
    git(folder, "commit", "--quiet", "--all", "-m", "later")
    monkeypatch.setenv("KOR_NLU_DATASETS_URL", str(folder))
    for name, value in {"COUNT": "1", "KEY_0": "core.autocrlf", "VALUE_0": "true"}.items():  # as on Windows
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    return folder


@pytest.fixture
def parent(tmp_path):
    folder = tmp_path / "대상 폴더"
    folder.mkdir()
    return folder


def test_clone_has_the_pinned_files_and_is_announced(origin, parent, capfd):
    path = parent / "deep" / "kor-nlu-datasets"
    ensure_kor_nlu_datasets(path, download=True)
    for name in official.BLOB_IDS:
        assert (path / name).read_bytes() == f"sentence1\tsentence2\n{name}\t한국어\n".encode()
    assert os.listdir(parent) == ["deep"] and os.listdir(path.parent) == ["kor-nlu-datasets"]
    assert path.stat().st_mode & stat.S_IROTH
    announcement, *progress = capfd.readouterr().err.splitlines()
    for part in (str(path), str(origin), "CC BY-SA 4.0", official.COMMIT):
        assert part in announcement
    assert any("Cloning into" in line for line in progress) and "verified" in progress[-1]


def test_an_empty_directory_is_filled_and_stays_the_same_one(origin, parent, monkeypatch):
    monkeypatch.chdir(parent)
    mount = parent / "kor-nlu-datasets"  # the default path, as a docker mount whose source was missing
    mount.mkdir()
    (mount / ".keep").touch()
    inode = mount.stat().st_ino
    ensure_kor_nlu_datasets(official.DEFAULT_PATH)
    assert {"KorNLI", "KorSTS", ".keep"} <= set(os.listdir(mount)) and mount.stat().st_ino == inode
    assert official.verify(mount) == dict.fromkeys(official.BLOB_IDS, "ok")
    assert not list(mount.glob(".kor-nlu-datasets-*"))


def test_what_exists_is_never_touched(parent, monkeypatch, capfd):
    monkeypatch.setenv("PATH", "")
    own = parent / "own"
    (own / "KorSTS").mkdir(parents=True)
    (parent / "file").write_text("a file\n")
    (parent / "dangling").symlink_to("nowhere")
    for name in ("own", "file", "dangling"):
        ensure_kor_nlu_datasets(parent / name, download=True)
    assert sorted(os.listdir(parent)) == ["dangling", "file", "own"] and os.listdir(own) == ["KorSTS"]
    assert capfd.readouterr() == ("", "")


def test_another_path_needs_the_flag(origin, parent):
    (parent / "empty").mkdir()
    for name, what in (("typo", "no such"), ("empty", "empty")):
        with pytest.raises(InputError, match=rf"{name}: {what} directory; give .* or add --download"):
            ensure_kor_nlu_datasets(parent / name)
    assert os.listdir(parent) == ["empty"]


def test_files_that_are_not_the_official_ones_are_refused(origin, parent, monkeypatch):
    monkeypatch.setattr(official, "COMMIT", git(origin, "rev-parse", "HEAD"))  # sts-dev.tsv differs there
    with pytest.raises(InputError, match=r"not the official files: KorSTS/sts-dev\.tsv differs .*; use ") as error:
        ensure_kor_nlu_datasets(parent / "data", download=True)
    assert "sts-train" not in str(error.value)
    monkeypatch.setattr(official, "COMMIT", "0df0fe7d496eb61b092e022e238c2230b29f1cbc")  # which is not there
    with pytest.raises(InputError, match=r"cannot be cloned \(fatal: "):
        ensure_kor_nlu_datasets(parent / "data", download=True)
    assert os.listdir(parent) == []


def test_unreachable_is_one_line_with_the_ways_out(parent, monkeypatch):
    monkeypatch.setattr(official, "REACH_SECONDS", 1)

    def refused(url, reason):
        monkeypatch.setenv("KOR_NLU_DATASETS_URL", url)
        with pytest.raises(InputError, match=f"cannot be cloned .*{reason}.*; connect to the internet, set ") as error:
            ensure_kor_nlu_datasets(parent / "data", download=True)
        assert "\n" not in str(error.value) and url in str(error.value) and os.listdir(parent) == []

    for url in ("http://127.0.0.1:9/data", "no/such/repository", "https://no-such-host.invalid/data"):
        refused(url, "fatal: ")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        refused(f"http://127.0.0.1:{silent.getsockname()[1]}/data", "no answer within 1 seconds")
    monkeypatch.setenv("PATH", str(parent))
    refused("anything", "git is not installed")


def test_an_interrupted_clone_leaves_nothing(origin, parent, monkeypatch):
    def interrupt(clone):
        assert (clone / "KorSTS").is_dir() and len(os.listdir(parent)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(official, "verify", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ensure_kor_nlu_datasets(parent / "data", download=True)
    assert os.listdir(parent) == []
