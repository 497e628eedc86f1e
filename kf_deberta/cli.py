"""One clear line and exit status 2 instead of a traceback, for every script of this repository."""

import contextlib
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

INPUT_ERROR_STATUS = 2


class InputError(Exception):
    """What the user gave cannot be used; the message says what is wrong, where, and the remedy."""


def run(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its status; an InputError becomes one line on stderr and exit status 2.

    A full or read-only disk (OSError) is reported the same way: it is the machine's state, not a bug.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary files go
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        sys.exit(main())
    except InputError as error:
        message = str(error)
    except BrokenPipeError:  # the reader of our output, such as head, is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno is None:  # a library's own OSError, not the operating system's: keep its traceback
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
        remedy = "; free space or choose another directory" if full else ""
        message = f"{error.filename or 'a file'}: {error.strerror}{remedy}"
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if os.environ.get("RANK", "0") == "0":  # all processes of torchrun meet the same error
        print(f"error: {message}", file=sys.stderr)
    sys.exit(INPUT_ERROR_STATUS)


def one_line(error: Exception, length: int = 200) -> str:
    """Return the message of `error` on one line of at most `length` characters."""
    return " ".join(str(error).split())[:length] or type(error).__name__


def check_writable(directory: Path) -> None:
    """Create `directory` and raise InputError where no file can be written into it, before any long work starts."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{directory}: not writable ({error.strerror}); choose another directory") from error


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends well and is gone otherwise."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path, keys: dict[str, type]) -> dict:
    """Read a JSON object that this repository wrote and someone may have damaged since.

    Args:
        path: the file.
        keys: the description of this kind of file: what it must hold, and of which type.

    Raises:
        InputError: the file cannot be read, is not a JSON object, or a key is missing or of another type.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({one_line(error)})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    for key, kind in keys.items():
        if not isinstance(value.get(key), kind):
            problem = f"{key} is not {getattr(kind, '__name__', kind)}" if key in value else f"{key} is missing"
            raise InputError(f"{path}: {problem}; it was damaged or edited")
    return value
