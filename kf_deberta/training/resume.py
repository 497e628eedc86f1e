"""Flags of a training script, and the run that --resume goes on with; nothing slow to import."""

import argparse
import json
import os
import sys
from pathlib import Path

from kf_deberta.data.official import git_blob_id
from kf_deberta.errors import InputError, check_writable, remove, say, write_atomically

STARTED, FINISHED = "args.json", "results.json"  # files of a run: from its start on, and once it is complete
# flags that may differ on --resume: they do not change the result, or only its rounding; data are compared by content
FREE = {"output_dir", "output_prefix", "resume", "save_steps", "logging_steps", "report_to", "run_name", "download"}
FREE |= {"dataset_path", "dataloader_num_workers", "eval_batch_size", "nli_mini_batch_size", "gradient_checkpointing"}


def parse_flags(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; with --resume, flags that are not given are those that the run was started with.

    In what is returned, local paths are absolute, and --resume is the run's directory. InputError if there is no such
    run, or a given flag would change its result; exit status 0 if it is finished.
    """
    args = _absolute(parser.parse_args())
    if args.resume and os.environ.get("RANK", "0") == "0":  # other processes get the flags of the first later
        directory = _find_run(args, Path(parser.prog).name)
        facts = read_json(directory / STARTED)
        started = facts["args"]
        parser.set_defaults(**started)
        args = _absolute(parser.parse_args())
        for name, value in plain(args).items():
            if name not in FREE and value != (was := started.get(name, value)):
                raise InputError(f"{directory}: --{name} was {was}, not {value}; a run keeps the flags of its start")
        if (directory / FINISHED).exists():
            clean(directory)
            files = {args.dataset_path / name: blob for name, blob in facts["data"].items()}
            if changed := [path for path, blob in files.items() if path.is_file() and git_blob_id(path) != blob]:
                raise InputError(f"{changed[0]}: not as it was when {directory} was started; start a new run")
            print(f"{directory}: this run is finished; start a new one without --resume")
            sys.exit(0)
        args.resume, args.revision = str(directory), facts["base_revision"] or args.revision  # main may have moved
    check_writable(Path(args.resume or args.output_dir))
    world, address = os.environ.get("WORLD_SIZE", "1"), os.environ.get("MASTER_ADDR")
    if world != "1" and not address:
        raise InputError(f"WORLD_SIZE is {world}, but MASTER_ADDR is not set; start with torchrun, or unset it")
    meeting = f", then meeting {world} processes at {address}" if world != "1" else ""
    say(f"loading libraries{meeting}")
    return args


def _absolute(args: argparse.Namespace) -> argparse.Namespace:
    """Make local paths absolute, because a run may be resumed from another directory."""
    args.dataset_path = args.dataset_path.absolute()
    for name in ("model_name_or_path", "teacher"):
        if (text := vars(args).get(name)) and Path(text).is_dir():
            vars(args)[name] = str(Path(text).resolve())
    return args


def _find_run(args: argparse.Namespace, script: str) -> Path:
    """Return the directory that --resume means: the given one, or the newest unfinished run of this script."""
    if args.resume != "newest":
        file = Path(args.resume).absolute() / STARTED
        if not file.is_file() or read_json(file)["script"] != script:
            raise InputError(f"{file.parent}: not a run of {script}; give the directory of one")
        return file.parent
    found = args.output_dir.absolute().glob(f"*/{STARTED}")
    for file in sorted(found, key=lambda file: file.parent.name[-19:], reverse=True):
        finished = file.with_name(FINISHED).exists() and not _leftovers(file.parent)
        if not finished and read_json(file)["script"] == script:
            return file.parent
    raise InputError(f"{args.output_dir}: no unfinished run of {script}; start one without --resume")


def checkpoints(directory: Path) -> list[Path]:
    """Return all checkpoints below `directory`, newest first; others, such as checkpoint-2.bak, are the user's."""
    found = [path for path in directory.rglob("checkpoint-*") if path.name.partition("-")[2].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True)


def _leftovers(directory: Path) -> list[Path]:
    """Return what only an unfinished run needs, and what a killed process left."""
    files = [path for pattern in (".part-*", "teacher-*.npy", ".lock") for path in directory.rglob(pattern)]
    return [*checkpoints(directory), *files]


def clean(directory: Path) -> None:
    """Delete the leftovers of a finished run."""
    for path in _leftovers(directory):
        remove(path)


def plain(args: argparse.Namespace) -> dict:
    """Return the flags as JSON has them."""
    return json.loads(json.dumps(vars(args), default=str))


def read_json(path: Path) -> dict:
    """Read a file that `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, facts: dict) -> None:
    """Write a file that is there whole, or not at all."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
