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
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
FOREIGN = ("SafetensorError", "Fail", "Exception")
OUT_OF_MEMORY = ("out of memory", "not enough memory", "cannot allocate memory", "can't allocate memory", "bad_alloc")


class InputError(Exception):
    """The user's input cannot be used; the message says what is wrong, where, and the remedy."""


def run(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its status, or with 2 and one line on stderr if the input cannot be used.

    A full disk, missing permissions and memory that is used up are reported in one line too, and so is an error of
    one of several processes. KF_DEBUG=1 in the environment shows the traceback above the line.
    """
    if sys.stdout is None:  # closed by the caller
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    with contextlib.suppress(AttributeError):  # not a text file, as in some notebooks
        sys.stdout.reconfigure(errors="replace")  # Hangul on a terminal that has none
    rank = int(os.environ.get("RANK", "0")) if "LOCAL_RANK" in os.environ else 0
    try:
        status = main()
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:  # the reader of the output, such as head, has finished
        _drop_stdout()
        sys.exit(141)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if rank:  # usually every process meets the same error; the first reports it, and its exit ends the others here
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(OTHERS_WAIT_SECONDS)
        if (message := _message(error)) is None:  # not foreseen: keep its traceback
            raise
        if os.environ.get("KF_DEBUG"):
            traceback.print_exception(error)
        print(f"error: {f'process {rank}: ' if rank else ''}{message}", file=sys.stderr)
        sys.exit(STATUS)


def _message(error: Exception) -> str | None:
    if isinstance(error, InputError):
        return str(error)
    if is_out_of_memory(error):
        return f"out of memory ({one_line(error, 100)}); use smaller batches, shorter texts or a smaller model"
    if "DataLoader worker" in str(error):  # killed for memory, or /dev/shm is too small
        return f"{one_line(error, 100)}; go on with --resume and fewer --dataloader_num_workers"
    if not isinstance(error, OSError) or not error.strerror:
        return None
    if error.filename is None:
        _drop_stdout()
    remedy = "; free space" if error.errno in FULL else "; check the permissions" if error.errno in DENIED else ""
    return f"{error.filename or 'output'}: {error.strerror}{remedy}"


def _drop_stdout() -> None:
    """Send later output to /dev/null, or Python reports the same error again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    directory = directory.absolute()
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
        # for a full disk torch, safetensors and onnxruntime raise types of their own, tokenizers a bare Exception
        of_libraries = isinstance(error, RuntimeError) or type(error).__name__ in FOREIGN
        if is_out_of_memory(error) or not (of_libraries or isinstance(error, OSError)):
            raise
        raise InputError(f"{path}: cannot be written ({one_line(error)}); {remedy}") from error


@contextlib.contextmanager
def write_atomically(path: Path, **remedy: str) -> Iterator[Path]:
    """Yield a path in the same directory, for a file or a directory, which replaces `path` if the block ends well.

    Raises:
        InputError: it cannot be written; nothing is left of it, and an existing `path` stays as it was.
    """
    temporary = path.with_name(f".part-{path.name}")
    with writing(path, **remedy):
        _remove(temporary)  # left by a process that was killed
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if temporary.is_dir():
                _remove(path)  # os.replace takes no directory that is not empty
            temporary.replace(path)
        finally:
            _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
