"""What every command shares: one clear line instead of a traceback, signs of life, files that appear whole."""

import contextlib
import errno
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

STATUS = 2  # exit status for input that cannot be used
OTHERS_WAIT_SECONDS = 10  # torchrun ends the other processes within this time after the first error
REMEDIES = {errno.ENOSPC: "; free space", errno.EDQUOT: "; free space", errno.EACCES: "; check the permissions"}
OUT_OF_MEMORY = ("out of memory", "enough memory", "allocate memory", "bad_alloc", "a primitive", "worker (pid")


class InputError(Exception):
    """The user's input cannot be used; the message says what is wrong, where, and the remedy."""


def run(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its status, or with 2 and one line on stderr if the input cannot be used.

    A full disk, missing permissions and memory that is used up are one line too; with KF_DEBUG=1, below a traceback.
    """
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    with contextlib.suppress(AttributeError):  # not a text file, as in some notebooks
        sys.stdout.reconfigure(errors="replace")  # Hangul on a terminal that has none
    rank = int(os.environ.get("RANK", "0")) if "LOCAL_RANK" in os.environ else 0
    try:
        status = main()
        sys.stdout.flush()
        sys.exit(status)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, OSError) and error.errno and not error.filename:  # of stdout; else it comes again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader of the output, such as head, has finished
            sys.exit(141)
        if rank:  # usually every process meets the same error; the first reports it, and its exit ends the others here
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(OTHERS_WAIT_SECONDS)
        if isinstance(error, InputError):
            message = str(error)
        elif is_out_of_memory(error):
            message = f"out of memory ({one_line(error, 100)}); use smaller batches or fewer workers; then --resume"
        elif isinstance(error, OSError) and error.strerror:
            message = f"{error.filename or 'output'}: {error.strerror}{REMEDIES.get(error.errno, '')}"
        else:  # not foreseen
            raise
        if os.environ.get("KF_DEBUG"):
            traceback.print_exception(error)
        print(f"error: {f'process {rank}: ' if rank else ''}{message}", file=sys.stderr)
        sys.exit(STATUS)


def say(text: str) -> None:
    """Print a line to stderr, above a progress bar if there is one, and once for all processes of a machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        tqdm.write(text, file=sys.stderr)


def one_line(error: Exception, length: int = 200) -> str:
    """Return the message of `error` on one line of at most `length` characters."""
    return " ".join(str(error).split())[:length] or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of any library means that the memory of the GPU or the machine is used up."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in OUT_OF_MEMORY)


def check_writable(directory: Path) -> None:
    """Raise InputError if no file can be created in `directory`, which need not exist yet and is not created."""
    existing = next(path for path in (directory, *directory.parents) if os.path.lexists(path))
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise InputError(f"{directory}: not writable ({error.strerror}); choose another directory") from error


@contextlib.contextmanager
def writing(path: Path, remedy: str = "free space or choose another directory") -> Iterator[None]:
    """Raise InputError for every library's way to say that `path` cannot be written."""
    try:
        yield
    except Exception as error:
        foreign = type(error).__name__ in ("SafetensorError", "Fail", "Exception")  # of tokenizers, a bare Exception
        if is_out_of_memory(error) or not (foreign or isinstance(error, OSError | RuntimeError)):
            raise
        raise InputError(f"{path}: cannot be written ({one_line(error)}); {remedy}") from error


@contextlib.contextmanager
def write_atomically(path: Path, **remedy: str) -> Iterator[Path]:
    """Yield a path in the same directory, for a file or a directory, which replaces `path` if the block ends well.

    InputError if it cannot be written; nothing is left of it, and an existing `path` stays as it was.
    """
    temporary = path.with_name(f".part-{path.name}")
    with writing(path, **remedy):
        remove(temporary)  # left by a process that was killed
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if temporary.is_dir():
                remove(path)  # os.replace takes no directory that is not empty
            temporary.replace(path)
        finally:
            remove(temporary)


def remove(path: Path) -> None:
    """Delete a file, or a directory with all that is in it, if there is one."""
    shutil.rmtree(path, ignore_errors=True)  # of a file, nothing
    path.unlink(missing_ok=True)
