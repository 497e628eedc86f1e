"""The directory of a training run: made new, or found again to be resumed."""

import argparse
import dataclasses
import datetime
import fcntl
import glob
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from accelerate.utils import broadcast_object_list
from sentence_transformers import SentenceTransformerTrainingArguments

from kf_deberta.cli import InputError, write_atomically
from kf_deberta.training.checkpoints import newest_checkpoint
from kf_deberta.training.flags import SAME_RESULT

RUN_FILE = "training_arguments.json"
LIBRARIES = ("sentence-transformers", "torch", "transformers", "datasets", "accelerate", "tokenizers", "numpy")
_locks: list = []  # open lock files: a lock lasts as long as its file is open


@dataclasses.dataclass
class Run:
    """A run directory, its facts (what RUN_FILE holds) and the checkpoint to go on from, if any."""

    directory: Path
    facts: dict
    checkpoint: Path | None = None

    def save(self) -> None:
        """Write the facts atomically."""
        with write_atomically(self.directory / RUN_FILE) as path:
            path.write_text(json.dumps(self.facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def open_run(args: argparse.Namespace, training_args: SentenceTransformerTrainingArguments) -> Run:
    """Create the run directory, or find the one to resume; every process gets the same.

    Raises:
        InputError: not writable, nothing to resume, or another recipe than the one to resume.
    """
    arguments = json.loads(json.dumps({k: v for k, v in vars(args).items() if k != "resume"}, default=str))
    arguments["processes"] = training_args.world_size
    libraries = {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}
    facts = {
        "script": Path(sys.argv[0]).name,
        "status": "unfinished",
        "seed": args.seed,
        "arguments": arguments,
        "libraries": libraries,
    }
    found = [None]
    if training_args.process_index == 0:
        try:
            found = [_resumed_run(args, facts) if args.resume else _new_run(args, facts)]
        except InputError as error:
            found = [error]
    run = broadcast_object_list(found)[0]  # a no-op in a single process
    if isinstance(run, InputError):
        raise run
    training_args.output_dir = str(run.directory)
    return run


def _new_run(args: argparse.Namespace, facts: dict) -> Run:
    base = Path(args.model_name_or_path)
    name = base.resolve().name if base.is_dir() else args.model_name_or_path.replace("/", "-")
    while True:
        stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        directory = Path(args.output_dir).resolve() / f"{args.output_prefix}{name}-{stamp}"
        try:
            directory.mkdir(parents=True)
        except FileExistsError:  # another run of the same second
            time.sleep(0.2)
            continue
        _lock(directory)
        run = Run(directory, facts)
        run.save()
        return run


def _resumed_run(args: argparse.Namespace, facts: dict) -> Run:
    if args.resume == "newest":
        paths = list(Path(args.output_dir).resolve().glob(f"{glob.escape(args.output_prefix)}*/{RUN_FILE}"))
    else:
        paths = [Path(args.resume).resolve() / RUN_FILE]
        if not paths[0].is_file():
            raise InputError(f"{args.resume}: no {RUN_FILE} in it; give the directory of an unfinished run")
    for path in sorted(paths, key=lambda path: path.parent.name[-19:], reverse=True):
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            changed = _changed_argument(old["arguments"], facts["arguments"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if args.resume == "newest":
                continue
            raise InputError(f"{path}: not a readable run description; start a new run without --resume") from error
        problem = None
        if old["status"] != "unfinished":
            problem = "this run is finished; start a new one without --resume"
        elif old["script"] != facts["script"]:
            problem = f"this is a run of {old['script']}; resume it with that script"
        elif changed:
            problem = f"cannot be resumed with another recipe: {changed}"
        elif not _lock(path.parent):
            problem = "still running in another process; stop that first"
        if problem and args.resume == "newest":
            continue
        if problem:
            raise InputError(f"{path.parent}: {problem}")
        if old["libraries"] != facts["libraries"]:
            print(f"{path.parent}: begun with other library versions; figures may differ from an unbroken run's")
        return Run(path.parent, old, newest_checkpoint(path.parent))
    raise InputError(f"{args.output_dir}: no unfinished run with these arguments; start one without --resume")


def _lock(directory: Path) -> bool:
    """Take the run for this process until it ends; False where another process has it."""
    file = (directory / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return False
    _locks.append(file)
    return True


def _changed_argument(old: dict, new: dict) -> str | None:
    for name in sorted((old.keys() | new.keys()) - SAME_RESULT):
        if old.get(name) != new.get(name):
            if name == "processes":
                return f"started with {old.get(name)} processes, now {new[name]}: torchrun --nproc_per_node sets them"
            return f"--{name} was {old.get(name)}, is {new.get(name)}"
    return None
