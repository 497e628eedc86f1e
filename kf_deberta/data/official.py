"""The official KorNLI and KorSTS files: what git knows them by, and a clone of them in which every file is checked."""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from kf_deberta.errors import InputError, say

URL = "https://github.com/kakaobrain/kor-nlu-datasets"  # environment variable KOR_NLU_DATASETS_URL overrides it
COMMIT = "0df0fe7d496eb61b092e022e238c2230b29f1cbc"
DEFAULT_PATH = Path("kor-nlu-datasets")
REACH_SECONDS = 10  # git itself would wait for minutes for a server that does not answer
# a transfer that stalls for half a minute ends; line ends stay as committed, or no file would verify on Windows
GIT = ("git", "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=30", "-c", "core.autocrlf=false")
KOR_STS_ROWS = {"sts-train.tsv": 5749, "sts-dev.tsv": 1500, "sts-test.tsv": 1379}
BLOB_IDS = {  # git's ids of the files at COMMIT
    "KorSTS/sts-train.tsv": "91fc16190dd0102a3cad2f0abf83317703438869",
    "KorSTS/sts-dev.tsv": "3686d9394fa63bcfd6b1bc7c70a60b1dfe08d388",
    "KorSTS/sts-test.tsv": "d2a7c958d520ed84402c0042142a60d9a18ee3e4",
    "KorNLI/snli_1.0_train.ko.tsv": "c91761e52fca2a7420104589811346986ce94073",
    "KorNLI/multinli.train.ko.tsv": "94d26a9d0dd045928148ef8691a256bd0e7d45c3",
    "KorNLI/xnli.dev.ko.tsv": "21305150d466aa35d42b14e1890b7dcd58084634",
    "KorNLI/xnli.test.ko.tsv": "89a0b11bffa775fafd88178b3980a1fe2d8aee52",
}


def git_blob_id(path: Path) -> str:
    """Return the id git gives the file's content: SHA-1 over "blob <size>", a NUL byte and the content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(b"blob %d\0" % path.stat().st_size)).hexdigest()


def verify(root: Path) -> dict[str, str]:
    """Compare a copy of the data set with the official one: {file: "ok", "missing" or "differs (...)"}."""
    results = dict.fromkeys(BLOB_IDS, "missing")
    for name in [name for name in BLOB_IDS if (root / name).is_file()]:
        found, official = git_blob_id(root / name), BLOB_IDS[name]
        results[name] = "ok" if found == official else f"differs (git blob {found}, official {official})"
    return results


def not_official(path: Path, rows: int) -> str:
    """Say that a file with an official name has another number of rows; "" if it has that, or another name."""
    official = KOR_STS_ROWS.get(path.name, rows)
    text = f"not the official KorSTS file of {official:,} pairs, so its figures compare with no published ones"
    return text if rows != official else ""


def ensure_kor_nlu_datasets(path: Path, download: bool = False) -> None:
    """Clone the data set (KorNLI/ and KorSTS/, about 160 MB) to `path`, unless something is there already.

    What is at `path` is not changed; only an empty directory, which docker makes for a missing mount, is filled.
    InputError if it cannot be cloned, or if `path` is not DEFAULT_PATH and `download` is False.
    """
    is_empty = path.is_dir() and all(child.name.startswith(".") for child in path.iterdir())
    if os.path.lexists(path) and not is_empty:
        return
    if not download and path.absolute() != DEFAULT_PATH.absolute():
        remedy = "give the directory of KorNLI/ and KorSTS/, or add --download to clone the data there"
        raise InputError(f"{path}: {'empty' if is_empty else 'no such'} directory; {remedy}")
    url = os.environ.get("KOR_NLU_DATASETS_URL") or URL
    say(f"cloning {url} (CC BY-SA 4.0, commit {COMMIT}) into {path}")
    existing = path if is_empty else next(parent for parent in path.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=".kor-nlu-datasets-", dir=existing, ignore_cleanup_errors=True) as folder:
        clone = Path(folder, "clone")
        _git(url, path, "ls-remote", "--", url, "HEAD", timeout=REACH_SECONDS)
        _git(url, path, "clone", "--progress", "--no-checkout", "--", url, str(clone), stderr=None)
        _git(url, path, "-C", str(clone), "checkout", "--quiet", "--detach", COMMIT)
        if wrong := [f"{name} {result}" for name, result in verify(clone).items() if result != "ok"]:
            raise InputError(f"{url}: not the official files: {', '.join(wrong)}; use {URL}")
        path.parent.mkdir(parents=True, exist_ok=True)
        for part in clone.iterdir() if is_empty else [clone]:  # an empty directory may be a mount: it must stay
            part.rename(path / part.name if is_empty else path)
    say(f"{path}: all files verified")


def _git(url: str, path: Path, *arguments: str, timeout: int | None = None, stderr: int | None = subprocess.PIPE):
    """Run git without a question to the user; InputError with its last error and the ways out."""
    options = {"env": os.environ | {"GIT_TERMINAL_PROMPT": "0"}, "errors": "replace"}
    options |= {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": stderr, "timeout": timeout}
    try:
        done = subprocess.run([*GIT, *arguments], **options)
        if done.returncode == 0:
            return
        lines = [line for line in (done.stderr or "").splitlines() if line.startswith(("fatal:", "error:"))]
        reason = lines[-1] if lines else "git gives the reason above"
    except FileNotFoundError:
        reason = "git is not installed"
    except subprocess.TimeoutExpired:
        reason = f"no answer within {timeout} seconds"
    ways_out = "connect to the internet, set KOR_NLU_DATASETS_URL to a mirror"
    raise InputError(f"{url}: cannot be cloned ({reason}); {ways_out}, or put KorNLI/ and KorSTS/ into {path}")
