"""Checkpoints that are either complete or not there, and the choice of the one to resume from."""

import contextlib
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from kf_deberta.cli import InputError, one_line

MANIFEST = "checkpoint_files.json"  # file name -> [size in bytes, CRC-32]; what it does not match is not loaded
UNFINISHED = "unfinished-checkpoint"
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch and safetensors have their own "disk full"


def cannot_write(what: Path, run_dir: Path, error: Exception) -> InputError:
    """Return the error that says what could not be written, why, and how the run goes on."""
    return InputError(f"{what}: cannot be written ({one_line(error)}); free space, then go on with --resume {run_dir}")


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
            sums = {str(path.relative_to(folder)): _size_and_crc(path) for path in files}
            (folder / MANIFEST).write_text(json.dumps(sums, indent=1))
            folder.rename(run_dir / name)
            parent.rmdir()
    except WRITE_ERRORS as error:
        shutil.rmtree(parent, ignore_errors=True)
        raise cannot_write(run_dir / name, run_dir, error) from error
    accelerator.wait_for_everyone()


def _size_and_crc(path: Path) -> list[int]:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return [path.stat().st_size, crc]


def keep_newest_and_best(run_dir: Path, newest: str, best: str | None) -> None:
    """Delete every checkpoint of the run but the newest and the best."""
    for path in run_dir.glob("checkpoint-*"):
        if path.name != newest and (best is None or path.name != Path(best).name):
            shutil.rmtree(path, ignore_errors=True)


def is_complete(checkpoint: Path) -> bool:
    """Tell whether every file of a checkpoint is as it was written."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())
        return bool(files) and all(_size_and_crc(checkpoint / name) == sums for name, sums in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest checkpoint that is complete, its best one too, or None; others are named and passed over."""
    found = sorted(run_dir.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    for path in found:
        if is_complete(path):
            best = json.loads((path / "trainer_state.json").read_text())["best_global_step"]
            if not best or is_complete(run_dir / f"checkpoint-{best}"):
                return path
            print(f"{path}: the best checkpoint that it names, checkpoint-{best}, is damaged", flush=True)
        else:
            print(f"{path}: damaged or cut short, not used", flush=True)
    print(f"{run_dir}: no usable checkpoint, the run starts anew", flush=True)
    return None
