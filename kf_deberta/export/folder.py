"""The folder that an export is delivered in: its names, its lock, and a record of what exports wrote there.

The record is a file for `sha256sum -c`. A file that it does not list, or that has other content
by now, is the user's: it is never replaced or removed.
"""

import contextlib
import errno
import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from kf_deberta.cli import InputError, check_writable, lock, one_line

SUMS, LOCK, WORK = "EXPORT.sha256", ".export.lock", ".export-unfinished"
KINDS = ("float32", "int8", "float16")
# where hub clients look for the kinds of a graph
HUB_NAMES = dict(zip(KINDS, ("onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/model_fp16.onnx"), strict=True))
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def plain_names(stem: str) -> dict[str, str]:
    """File names of the kinds of a graph that lies at the top of its folder."""
    return dict(zip(KINDS, (f"{stem}.onnx", f"{stem}-int8.onnx", f"{stem}-fp16.onnx"), strict=True))


@contextlib.contextmanager
def reserved(directory: Path) -> Iterator[Path]:
    """Make `directory`, keep other exports out of it and yield an empty working directory inside, removed at the end.

    Directories that it made go too where nothing was put into them.

    Raises:
        InputError: another export is at work there, nothing can be written, or the disk is full.
    """
    check_writable(directory)
    made = list(itertools.takewhile(lambda path: not path.exists(), (directory, *directory.parents)))
    directory.mkdir(parents=True, exist_ok=True)
    taken = lock(directory / LOCK, f"{directory}: another export is writing there; wait, or give another folder")
    work = directory / WORK
    try:
        shutil.rmtree(work, ignore_errors=True)  # of an export that was killed
        work.mkdir()
        yield work
    except Exception as error:
        if (reason := disk_full(error)) is not None:
            raise InputError(f"{directory}: {reason}; free space or choose another directory") from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        with contextlib.suppress(OSError):  # Windows: open files stay
            (directory / LOCK).unlink()  # before its release, so that who waits for it takes a new one
        taken.release()
        with contextlib.suppress(OSError):  # not empty: an export went well
            for path in made:
                path.rmdir()


def disk_full(error: BaseException | None) -> str | None:
    """Return the system's words where `error` or its cause is a full disk, whatever type a library made of it."""
    while error is not None:
        for number in DISK_FULL:
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


def check_free(directory: Path, names: Iterable[str]) -> None:
    """Raise InputError where one of `names` in `directory` is a file that no export wrote."""
    written = _written(directory)
    for name in names:
        path = directory / name
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file() or (_sha256(path), name) not in written):
            raise InputError(f"{path}: no export wrote it, and it would be overwritten; choose another folder")


def check_alone(directory: Path, names: Iterable[str], stem: str) -> None:
    """Raise InputError where `directory` holds a graph beside `names`: it would need another tokenizer.json."""
    folders = [folder for folder in (directory, directory / "onnx") if folder.is_dir()]
    graphs = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix == ".onnx"]
    others = [path for path in graphs if path.relative_to(directory).as_posix() not in names]
    if others:
        raise InputError(f"{others[0]}: would need its own tokenizer.json; give --output_dir {directory / stem}")


def deliver(work: Path, directory: Path) -> list[Path]:
    """Put the files of `work` into `directory`, over those of earlier exports; the paths of graphs that are gone.

    Old graphs go first and new ones come last, each in one step: killed at any moment, this leaves no graph beside
    the tokenizer of another, and the next export may go on from there.

    Raises:
        InputError: a file is in the way that no export wrote.
    """
    names = {path.relative_to(work).as_posix(): path for path in work.rglob("*") if path.is_file()}
    check_free(directory, names)
    old = {(digest, name) for digest, name in _written(directory) if (directory / name).is_file()}
    old = {(digest, name) for digest, name in old if _sha256(directory / name) == digest}
    new = {(_sha256(path), name) for name, path in names.items()}
    _record(directory, old | new)
    for _, name in sorted(old, key=lambda entry: not entry[1].endswith(".onnx")):
        if name.endswith(".onnx") or name not in names:
            (directory / name).unlink()
            with contextlib.suppress(OSError):  # not empty
                (directory / name).parent.rmdir()
    for name in sorted(names, key=lambda name: (name.endswith(".onnx"), name)):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        names[name].replace(directory / name)
    _record(directory, new)
    return [directory / name for _, name in sorted(old) if name.endswith(".onnx") and name not in names]


def _written(directory: Path) -> set[tuple[str, str]]:
    """Digest and name of every file that exports wrote into `directory`."""
    path = directory / SUMS
    if not path.exists():
        return set()
    entries = set()
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
            if match is None or PurePosixPath(match[2]).is_absolute() or ".." in PurePosixPath(match[2]).parts:
                raise InputError(f"{path}:{number}: not of an export; choose another folder")
            entries.add((match[1], match[2]))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); choose another folder") from error
    return entries


def _record(directory: Path, entries: set[tuple[str, str]]) -> None:
    temporary = directory / WORK / SUMS
    lines = [f"{digest}  {name}\n" for digest, name in sorted(entries, key=lambda entry: entry[::-1])]
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(directory / SUMS)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
