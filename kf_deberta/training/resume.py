"""Flags of a training script, and the run that --resume goes on with; nothing slow to import."""

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path

from kf_deberta.data.official import git_blob_id
from kf_deberta.errors import InputError, check_writable, say

STARTED, FINISHED = "args.json", "results.json"  # files of a run: from its start on, and once it is complete
# flags that may differ on --resume: they do not change the result, or only its rounding; data are compared by content
FREE = {"output_dir", "output_prefix", "resume", "save_steps", "logging_steps", "eval_batch_size", "dataset_path"}
FREE |= {
    "download",
    "dataloader_num_workers",
    "report_to",
    "run_name",
    "nli_mini_batch_size",
    "gradient_checkpointing",
}


def parse_flags(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; with --resume, flags that are not given are those that the run was started with.

    Returns:
        The flags, with local paths made absolute and --resume as the run's directory.

    Raises:
        InputError: there is no such run, or a given flag would change its result.
        SystemExit: 0, the run is finished.
    """
    args = _absolute(parser.parse_args())
    if args.resume and os.environ.get("RANK", "0") == "0":  # other processes get the flags of the first later
        directory = _find_run(args, Path(parser.prog).name)
        facts = json.loads((directory / STARTED).read_text(encoding="utf-8"))
        parser.set_defaults(**facts["args"])
        args = _absolute(parser.parse_args())
        for name, value in plain(args).items():
            if name not in FREE and value != (old := facts["args"].get(name, parser.get_default(name))):
                raise InputError(
                    f"{directory}: --{name} was {old}, not {value}; a run keeps the flags it was started with"
                )
        if (directory / FINISHED).exists():
            clean(directory)
            if args.dataset_path.exists():
                files = [args.dataset_path / name for name in facts["data"]]
                check_data(directory, facts["data"], files, args.dataset_path)
            print(f"{directory}: this run is finished; start a new one without --resume")
            sys.exit(0)
        args.resume, args.revision = str(directory), facts["base_revision"] or args.revision  # main may have moved
    check_writable(Path(args.resume) if args.resume else args.output_dir)
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1" and "MASTER_ADDR" not in os.environ:
        raise InputError(
            f"WORLD_SIZE is {world}, but MASTER_ADDR is not set; start with torchrun, or unset WORLD_SIZE"
        )
    say(
        "loading libraries"
        + (f", then meeting {world} processes at {os.environ['MASTER_ADDR']}" if world != "1" else "")
    )
    return args


def leftovers(directory: Path) -> list[Path]:
    """Return what only an unfinished run needs, and what a killed process left."""
    found = [path for path in directory.rglob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+(.damaged)?", path.name)]
    return [*found, *directory.rglob(".part-*"), *directory.glob(".lock")]


def clean(directory: Path) -> None:
    """Delete the leftovers of a finished run."""
    for path in leftovers(directory):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def plain(args: argparse.Namespace) -> dict:
    """Return the flags as JSON has them."""
    return json.loads(json.dumps(vars(args), default=str))


def check_data(directory: Path, started: dict[str, str], files: list[Path], root: Path) -> dict[str, str]:
    """Return the git blob ids of data files, by their path below `root`.

    Raises:
        InputError: they are not those that the run in `directory` was started with.
    """
    found = {path.relative_to(root).as_posix(): git_blob_id(path) for path in files if path.is_file()}
    for name in sorted(started.keys() | found.keys() if started else ()):
        if started.get(name) != found.get(name):
            raise InputError(
                f"{root / name}: not as it was when {directory} was started; restore it, or start a new run"
            )
    return found


def _absolute(args: argparse.Namespace) -> argparse.Namespace:
    """Make local paths absolute, because a run may be resumed from another directory."""
    args.dataset_path = args.dataset_path.absolute()
    if Path(args.model_name_or_path).is_dir():
        args.model_name_or_path = str(Path(args.model_name_or_path).resolve())
    return args


def _find_run(args: argparse.Namespace, script: str) -> Path:
    """Return the directory that --resume means: the given one, or the newest unfinished run of this script."""
    if args.resume != "newest":
        file = Path(args.resume).absolute() / STARTED
        started = json.loads(file.read_text(encoding="utf-8"))["script"] if file.is_file() else None
        if started != script:
            problem = f"a run of {started}" if started else f"no {STARTED} in it"
            raise InputError(f"{file.parent}: {problem}; give the directory of a run of {script}")
        return file.parent
    found = args.output_dir.absolute().glob(f"*/{STARTED}")
    for file in sorted(found, key=lambda file: file.parent.name[-19:], reverse=True):
        finished = file.with_name(FINISHED).exists() and not leftovers(file.parent)
        if not finished and json.loads(file.read_text(encoding="utf-8"))["script"] == script:
            return file.parent
    raise InputError(f"{args.output_dir}: no unfinished run of {script}; start one without --resume")
