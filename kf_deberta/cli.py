"""What every command shares: flags with one wording per fault, and one clear line instead of a traceback."""

import argparse
import contextlib
import difflib
import errno
import itertools
import json
import logging
import math
import os
import re
import signal
import stat
import sys
import tempfile
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from filelock import FileLock, Timeout
from tqdm import tqdm

INPUT_ERROR_STATUS = 2
HUB_TIMEOUT_SECONDS = 5.0  # to the hub's answer
FIRST_SECONDS, PLAIN_SECONDS = 5.0, 30.0  # to the first line of progress on a pipe, and between lines
OTHERS_WAIT_SECONDS = 10.0  # torchrun ends the other processes sooner than that after the first error

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


from kf_deberta.errors import InputError  # noqa: E402


def run(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its status; an InputError becomes one line on stderr and exit status 2.

    A full or read-only disk (OSError) and memory that is used up are reported the same way: they are the machine's
    state, not a bug. With KF_DEBUG=1 in the environment the traceback stands above the line.
    """
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that temporary files go
    logging.basicConfig(format="%(levelname)s: %(message)s")
    with contextlib.suppress(AttributeError):  # no stdout at all
        sys.stdout.reconfigure(errors="replace")  # Hangul on a terminal that has none
    with _errors_in_one_line():
        status = main()
        if sys.stdout is not None:
            sys.stdout.flush()
        sys.exit(status)


def flags_first(parse_args: Callable[[], argparse.Namespace]) -> None:
    """Parse the command line of the running script before its slow imports: --help and errors answer at once."""
    if parse_args.__module__ == "__main__":
        with _errors_in_one_line():
            parse_args()
        say("loading libraries")  # 5 seconds and more


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
        return
    except InputError as error:
        message, cause = str(error), error
    except BrokenPipeError:  # the reader of our output, such as head, is done
        _drop_stdout()
        sys.exit(141)
    except Exception as error:
        if is_out_of_memory(error):
            message = f"out of memory ({one_line(error, 100)}); give smaller batches, a smaller model or less data"
        elif isinstance(error, OSError) and error.errno is not None:  # the operating system's
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
            remedy = "; free space or choose another directory" if full else ""
            message = f"{error.filename or _unnamed_output()}: {error.strerror}{remedy}"
        else:  # not foreseen: keep its traceback
            raise
        cause = error
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if os.environ.get("KF_DEBUG"):
        traceback.print_exception(cause)
    if "LOCAL_RANK" in os.environ and (rank := os.environ.get("RANK", "0")) != "0":
        # most errors are met by all processes and told by the first, whose end ends the others while they wait here
        signal.signal(signal.SIGTERM, lambda *_: os._exit(INPUT_ERROR_STATUS))
        time.sleep(OTHERS_WAIT_SECONDS)
        message = f"process {rank}: {message}"
    print(f"error: {message}", file=sys.stderr)
    sys.exit(INPUT_ERROR_STATUS)


def _drop_stdout() -> None:
    """Let what stdout could not write go nowhere, or Python complains of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unnamed_output() -> str:
    """Name what an OSError without a file name is about: standard output where that cannot be written."""
    try:
        sys.stdout.flush()
        os.write(sys.stdout.fileno(), b"")
    except OSError:
        _drop_stdout()
        return "standard output"
    return "a file"


def say(text: str) -> None:
    """Show a sign of life on stderr, once for all processes of a machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        tqdm.write(text, file=sys.stderr)  # above a bar where there is one


class PlainProgress:
    """What tqdm is on a terminal, for a pipe or a file: a line of text, at most one every PLAIN_SECONDS."""

    def __init__(self, total: int, desc: str, unit: str, initial: int = 0) -> None:
        """Take how many units there are, what is counted and what was done before."""
        self.total, self.desc, self.unit, self.n, self.initial = total, desc, unit, initial, initial
        self.start = time.monotonic()
        self.next = self.start + FIRST_SECONDS
        self.text = ""

    def write(self, text: str) -> None:
        """Have the lines from now on end with `text`."""
        self.text = f": {text}"

    def update(self, number: int) -> None:
        """Count `number` more units, and print where things stand unless that was done a moment ago."""
        self.n += number
        now = time.monotonic()
        if not number or now < self.next or not self.initial < self.n < self.total:
            return
        self.next = now + PLAIN_SECONDS
        seconds = (now - self.start) / (self.n - self.initial)
        rate = f"{1 / seconds:.1f} {self.unit}/s" if seconds < 1 else f"{seconds:.2f} s per {self.unit[:-1]}"
        rate += f", {tqdm.format_interval((self.total - self.n) * seconds)} left"
        print(f"{self.desc} {self.n:,}/{self.total:,}, {rate}{self.text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Do what tqdm does."""


def progress(total: int, desc: str, unit: str, initial: int = 0, disable: bool = False) -> "tqdm | PlainProgress":
    """Return a progress bar on a terminal, plain lines elsewhere, nothing where `disable` says so."""
    if disable or sys.stderr.isatty():
        return tqdm(total=total, desc=desc, unit=unit, initial=initial, disable=disable, dynamic_ncols=True)
    return PlainProgress(total, desc, unit, initial)


class WatchedOutput:
    """An output stream whose closed reader (`| head`, a lost terminal) counts as SIGTERM; the rest goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        """Take sys.stdout or sys.stderr."""
        self.stream = stream

    def __getattr__(self, name: str) -> object:
        """Be the stream in all else."""
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write `text`."""
        self._watch(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        self._watch(self.stream.flush)

    def _watch(self, call: Callable, *arguments: str) -> None:
        try:
            call(*arguments)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            os.kill(os.getpid(), signal.SIGTERM)


def one_line(error: Exception, length: int = 200) -> str:
    """Return the message of `error` on one line of at most `length` characters."""
    return " ".join(str(error).split())[:length] or type(error).__name__


def printable(text: str) -> str:
    """Replace what would steer a terminal or cannot be written: control characters and halves of characters."""
    return "".join(" " if unicodedata.category(char) in ("Cc", "Cs") else char for char in text)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of any library says that memory, the GPU's or the machine's, is used up."""
    text = str(error).lower()
    signs = ("out of memory", "not enough memory", "cannot allocate memory", "can't allocate memory", "bad_alloc")
    return isinstance(error, MemoryError) or any(sign in text for sign in (*signs, "failed to allocate"))


# flags


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """The docstring as it stands, "(default: X)" behind every flag, and short names for values."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if not action.option_strings or "(default:" in action.help or isinstance(action, argparse._HelpAction):
            return action.help
        if action.required:
            return f"{action.help} (required)"
        shown = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        if shown is None or shown is False or shown == "":
            shown = "off" if action.nargs == 0 else "none"
        return f"{action.help} (default: {str(shown).replace('%', '%%')})"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return getattr(action.type, "metavar", "TEXT")


class Parser(argparse.ArgumentParser):
    """Flags of a command, whose docstring is the help; what is wrong with a flag is an InputError."""

    def __init__(self, doc: str, refused: Mapping[str, str] | None = None, positional: str = "") -> None:
        """Take the docstring of the command, and for flags that are refused by name what to say of them."""
        usage = f"%(prog)s [flags]{positional}"
        super().__init__(description=doc, formatter_class=HelpFormatter, allow_abbrev=False, usage=usage)
        self.refused = refused or {}

    def error(self, message: str) -> None:
        """Raise the one line; argparse would print all flags above it."""
        raise InputError(message.removeprefix("argument "))

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """Parse the command line; an unknown flag is told with the nearest one that exists."""
        try:
            parsed, rest = self.parse_known_args(args, namespace)
        except InputError as error:
            if "required" not in str(error):
                raise
            # a required flag is missing, perhaps because it is misspelled
            words = itertools.takewhile("--".__ne__, sys.argv[1:] if args is None else args)
            known = self._option_string_actions
            rest = [word for word in words if word.startswith("--") and word.split("=")[0] not in known]
            if not rest:
                raise
        if not rest:
            return parsed
        flag = next((word for word in rest if word.startswith("--")), rest[0]).split("=")[0]
        name = flag.removeprefix("--").replace("-", "_")
        if name in self.refused:
            raise InputError(f"{flag} {self.refused[name]}")
        names = [option.removeprefix("--") for option in (*self._option_string_actions, *self.refused)]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean --{near[0]}?" if near else f"{self.prog} --help lists the flags"
        raise InputError(f"unknown flag {flag}; {hint}")


def number(
    kind: type, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> Callable[[str], float]:
    """Return an argparse type for finite numbers from `least`, or above `above`, up to `most`."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"must be a {'whole' if kind is int else 'finite'} number, not {text}")
        if value < least or value <= above:
            wanted = f"above {above}" if value <= above else f"{least} or more"
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {text}")
        if value > most:
            raise argparse.ArgumentTypeError(f"must be {most} or less, not {text}")
        return value

    convert.metavar = "N" if kind is int else "X"
    return convert


count = number(int, least=1, most=2**31 - 1)
seed = number(int, least=0, most=2**32 - 1)  # what every random generator takes
positive = number(float, above=0)
not_negative = number(float, least=0)


def one_of(*names: str) -> Callable[[str], str]:
    """Return an argparse type for one of `names`."""

    def convert(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"must be {', '.join(names[:-1])} or {names[-1]}, not {text}")
        return text

    convert.metavar = "|".join(names)
    return convert


def several(kind: Callable[[str], object]) -> Callable[[str], list]:
    """Return an argparse type for values of `kind` with commas between them, as in `768,256`."""

    def convert(text: str) -> list:
        return list(dict.fromkeys(map(kind, text.split(","))))

    convert.metavar = f"{kind.metavar},..."
    return convert


def model_name(text: str) -> str:
    """Return a path, or a model's hub name, with ~ expanded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:  # undecodable bytes; not all libraries take such a path
        raise argparse.ArgumentTypeError(f"must be UTF-8, not {os.fsencode(text)}; rename it") from error
    return os.path.expanduser(text)


def is_hub_name(name: str) -> bool:
    """Tell whether the hub could have a repository of this name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def check_model_name(name: str) -> None:
    """Raise InputError where `name` is no directory, and could be none of the hub's either."""
    if not Path(name).is_dir() and (Path(name).exists() or not is_hub_name(name)):
        raise InputError(f"{name}: not a model directory; give a directory or a hub name like owner/model")


def check_trained(folder: Path) -> None:
    """Raise InputError where `folder` is not that of a sentence-embedding model."""
    if not (folder / "modules.json").is_file():
        raise InputError(f"{folder}: no modules.json in it; give the folder of a sentence-embedding model")


def file_path(text: str) -> Path:
    """Return a path with ~ expanded."""
    return Path(model_name(text))


model_name.metavar, file_path.metavar = "MODEL", "PATH"


def add_model_flags(group: argparse._ActionsContainer) -> None:
    """Add the flags that say how a finished model is loaded; `model_options` turns them into load_model's."""
    add = group.add_argument
    add("--revision", metavar="R", help="commit, branch or tag of a hub model (default: main)")
    pooling = "pooling of an encoder without modules.json (default: as published, else mean)"
    add("--pooling", type=one_of("mean", "cls"), help=pooling)
    add("--prompt", help="text put before every sentence, '' for none (default: the model's own)")
    add("--trust_remote_code", action="store_true", help="run Python code from the model repository (default: off)")
    add("--no_fast_attention", action="store_true", help="use the library's slower DeBERTa attention (default: off)")


def model_options(args: argparse.Namespace) -> dict[str, object]:
    """Keyword arguments of load_model from the flags of `add_model_flags`."""
    options = {name: getattr(args, name) for name in ("revision", "pooling", "prompt", "trust_remote_code")}
    return options | {"fast_attention": not args.no_fast_attention}


# files


def check_input_file(file: Path) -> None:
    """Raise InputError where `file` cannot be read as a file; a pipe or a device is refused, not waited for."""
    try:
        mode = file.stat().st_mode
        if stat.S_ISREG(mode):
            file.open("rb").close()
            return
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; give the path of a readable file") from error
    kind = "Is a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
    raise InputError(f"{file}: {kind}; give the path of a readable file")


def check_writable(directory: Path) -> None:
    """Raise InputError where no file can be written into `directory`, which need not exist yet; nothing is made."""
    directory = directory.absolute()
    existing = next(parent for parent in (directory, *directory.parents) if os.path.lexists(parent))
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise InputError(f"{directory}: not writable ({error.strerror}); choose another directory") from error


def lock(path: Path, busy: str) -> FileLock:
    """Lock the file `path` until its release or the end of this process, or say that this file system has no locks.

    Raises:
        InputError: another process has it; `busy` says of what, and what to do.
    """
    taken = FileLock(path, fallback_to_soft=False)  # a soft lock outlives a killed process
    try:
        taken.acquire(blocking=False)
    except Timeout as error:
        raise InputError(busy) from error
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) not in (None, *NO_LOCKS):
            raise
        print(f"{path.parent}: no locks on this file system; see that no second process writes there", flush=True)
    return taken


@contextlib.contextmanager
def writing(what: Path, remedy: str = "free space or choose another directory") -> Iterator[None]:
    """Turn the errors that libraries raise for a full disk into one line with a remedy.

    Raises:
        InputError: `what` cannot be written.
    """
    try:
        yield
    except Exception as error:
        # torch and safetensors have their own "disk full", tokenizers raises a bare Exception
        of_libraries = isinstance(error, RuntimeError) or type(error).__name__ in ("SafetensorError", "Exception")
        if is_out_of_memory(error) or not (of_libraries or isinstance(error, OSError)):
            raise
        raise InputError(f"{what}: cannot be written ({one_line(error)}); {remedy}") from error


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends well and is gone otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk, met while writing
        raise
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


def escape_markdown(text: str) -> str:
    """Return `text` on one line, with nothing in it that Markdown or HTML takes for its own, in tables too."""
    return re.sub(r"([\\`*_\[\]<>#|~])", r"\\\1", " ".join(printable(text).split())).replace("&", "&amp;")
