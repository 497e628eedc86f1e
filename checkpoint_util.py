"""Checkpoints that are either complete or not there, and the search for the run to resume."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from cli_util import InputError

MANIFEST = "checkpoint_files.json"  # file name -> size in bytes; what it does not match is not loaded
UNFINISHED = "unfinished-checkpoint"


@contextlib.contextmanager
def write_checkpoint(run_dir: Path, name: str, accelerator: Accelerator) -> Iterator[Path]:
    """Yield a directory in which `name` is written; it moves to `run_dir/name` only when complete.

    Raises:
        InputError: the checkpoint cannot be written; what was written of it is removed, earlier ones stay.
    """
    parent = run_dir / UNFINISHED
    if accelerator.is_main_process:
        shutil.rmtree(parent, ignore_errors=True)
        shutil.rmtree(run_dir / name, ignore_errors=True)  # left by a run that went further before it was killed
    accelerator.wait_for_everyone()
    try:
        yield parent
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            folder = parent / name
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
            (folder / MANIFEST).write_text(json.dumps(sizes, indent=1))
            folder.rename(run_dir / name)
            parent.rmdir()
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own "disk full"
        shutil.rmtree(parent, ignore_errors=True)
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{run_dir / name}: cannot be written ({reason}); free space, then go on with --resume {run_dir}"
        ) from error
    accelerator.wait_for_everyone()


def keep_newest_and_best(run_dir: Path, newest: str, best: str | None) -> None:
    """Delete every checkpoint of the run but the newest and the best."""
    for path in run_dir.glob("checkpoint-*"):
        if path.name != newest and (best is None or path.name != Path(best).name):
            shutil.rmtree(path, ignore_errors=True)


def is_complete(checkpoint: Path) -> bool:
    """Tell whether every file of a checkpoint is there in its full size."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())
        return bool(files) and all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None; cut-short ones are named and passed over."""
    found = sorted(run_dir.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    for path in found:
        if is_complete(path):
            return path
        print(f"{path}: cut short, the one before it is used", flush=True)
    return None
