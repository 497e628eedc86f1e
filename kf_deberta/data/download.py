"""Fetch KorNLI and KorSTS once, at the pinned commit: cloned with git, every file checked, moved into place whole."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kf_deberta.cli import InputError
from kf_deberta.data.official import verify

URL = "https://github.com/kakaobrain/kor-nlu-datasets"  # environment variable KOR_NLU_DATASETS_URL overrides it
COMMIT = "0df0fe7d496eb61b092e022e238c2230b29f1cbc"
LICENSE = "CC BY-SA 4.0"
DEFAULT_PATH = Path("kor-nlu-datasets")
REACH_SECONDS = 10  # a server that has not answered by then counts as unreachable
# A transfer that stalls for half a minute ends; line ends stay as committed, or no file would verify on Windows.
GIT_OPTIONS = ("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=30", "-c", "core.autocrlf=false")


def check_data_set(path: Path, download: bool) -> None:
    """Raise InputError where there is no data set at `path` and none may be cloned there, so that a typo shows.

    It may at DEFAULT_PATH, and anywhere with `download`, the flag --download.
    """
    if not (download or path == DEFAULT_PATH or os.path.lexists(path)):
        raise InputError(
            f"{path}: no such directory; give the folder that holds KorNLI/ and KorSTS/, "
            "or add --download to clone the data set there"
        )


def ensure_kor_nlu_datasets(path: str | Path) -> None:
    """Clone the data set (KorNLI/ and KorSTS/, about 160 MB) to `path`, unless something is there already.

    Whatever exists at `path` is taken as it is, neither checked nor changed. A clone that fails or is interrupted
    leaves nothing behind. Safe to call from several processes: the first to finish wins.

    Raises:
        InputError: git is missing, the server cannot be reached, or what was cloned is not the official data.
    """
    path = Path(path)
    if os.path.lexists(path):
        return
    url = os.environ.get("KOR_NLU_DATASETS_URL") or URL
    by_hand = f"or put the data set's folders KorNLI/ and KorSTS/ into {path}"
    if shutil.which("git") is None:
        raise InputError(f"{path}: no data, and no git to clone {url}; install git, {by_hand}")
    print(f"{path} does not exist: cloning {url} ({LICENSE}, commit {COMMIT}) into it", file=sys.stderr, flush=True)
    _check_reachable(url, by_hand)

    existing = next(parent for parent in path.absolute().parents if parent.is_dir())
    with _temporary_directory(existing) as directory:
        clone = directory / "clone"
        status, _ = _git("clone", "--progress", "--no-checkout", "--", url, str(clone), stderr=None)
        if status != 0:
            raise InputError(f"{url}: the clone failed, as git says above; try again, {by_hand}")
        status, errors = _git("-C", str(clone), "checkout", "--quiet", "--detach", COMMIT)
        if status != 0:
            raise InputError(f"{url}: cannot check out {COMMIT} ({_last_line(errors)}); use {URL}, {by_hand}")
        if wrong := {name: result for name, result in verify(clone).items() if result != "ok"}:
            details = ", ".join(f"{name} {result}" for name, result in wrong.items())
            raise InputError(f"{url}: not the official files: {details}; use {URL}, {by_hand}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            clone.rename(path)
        except OSError:
            if not path.is_dir():  # else another process was faster
                raise
    print(f"{path}: all files verified", file=sys.stderr, flush=True)


def _git(*arguments: str, timeout: float | None = None, stderr: int | None = subprocess.PIPE) -> tuple[int, str]:
    """Run git, never asking for a password; return its exit status and what it wrote to stderr (if piped)."""
    # A git hook that runs this sets GIT_DIR and GIT_INDEX_FILE, which would lead git to the hook's own repository.
    environment = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_INDEX_FILE")}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": ""}
    environment.setdefault("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")
    command = ["git", *GIT_OPTIONS, *arguments]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, errors="replace"
    ) as process:
        try:
            _, errors = process.communicate(timeout=timeout)
        except BaseException:  # also KeyboardInterrupt and SystemExit
            process.terminate()  # not kill: git must stop its own children, or they go on writing
            raise
    return process.returncode, errors or ""


def _check_reachable(url: str, by_hand: str) -> None:
    """Raise InputError soon where git itself would wait minutes for a connection."""
    try:
        status, errors = _git("ls-remote", "--", url, "HEAD", timeout=REACH_SECONDS)
        reason = _last_line(errors)
    except subprocess.TimeoutExpired:
        status, reason = None, f"no answer within {REACH_SECONDS} seconds"
    if status != 0:
        ways_out = f"connect to the internet, set KOR_NLU_DATASETS_URL to a mirror, {by_hand}"
        raise InputError(f"{url}: cannot be cloned ({reason}); {ways_out}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("fatal:", "error:"))]  # advice may follow them
    return (errors or lines or ["git gives no reason"])[-1]


@contextmanager
def _temporary_directory(parent: Path) -> Iterator[Path]:
    """Make a directory in `parent`, where a rename is atomic; gone afterwards, after SIGTERM in cli.run too."""
    directory = Path(tempfile.mkdtemp(prefix=".kor-nlu-datasets-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
