"""Writing checkpoints that are either complete or not there."""

import contextlib
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator

from kf_deberta.cli import InputError, is_out_of_memory, one_line, writing
from kf_deberta.training.run import MANIFEST, UNFINISHED, checkpoints, remove, size_and_crc


@contextlib.contextmanager
def reading(checkpoint: str) -> Iterator[None]:
    """Turn what libraries raise for files of other content into one line; pickles that hold code are never run.

    Raises:
        InputError: a file of the checkpoint is not what a run writes.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):  # no reason to delete it
            raise
        raise InputError(
            f"{checkpoint}: not a checkpoint of this run ({one_line(error)}); delete it to go on from the one before"
        ) from error


@contextlib.contextmanager
def write_checkpoint(run_dir: Path, name: str, accelerator: Accelerator) -> Iterator[tuple[Path, dict]]:
    """Yield a directory in which `name` is written; it moves to `run_dir/name` only when complete.

    Yielded with it is a dictionary for the size and CRC-32 of files that were summed while they were written; the
    others, all small, are read.

    Raises:
        InputError: the checkpoint cannot be written; what was written of it is removed, earlier ones stay.
    """
    parent, sums = run_dir / UNFINISHED, {}
    if accelerator.is_main_process:
        shutil.rmtree(parent, ignore_errors=True)
        for path in checkpoints(run_dir):
            if path.name == name:  # left by a run that went further before it was killed
                remove(path)
    accelerator.wait_for_everyone()
    try:
        with writing(run_dir / name, f"free space, then go on with --resume {run_dir}"):
            yield parent, sums
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                folder = parent / name
                for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                    file = path.relative_to(folder).as_posix()
                    sums[file] = sums.get(file) or size_and_crc(path)
                (folder / MANIFEST).write_text(json.dumps(sums, indent=1))
                folder.rename(run_dir / name)
                parent.rmdir()
    except Exception:
        shutil.rmtree(parent, ignore_errors=True)
        raise
    accelerator.wait_for_everyone()


class SummedFile:
    """A new binary file that knows its size and CRC-32 without being read."""

    def __init__(self, path: Path) -> None:
        """Open `path` for writing."""
        self.file = path.open("wb")
        self.size_and_crc = [0, 0]

    def write(self, data: memoryview) -> int:
        """Write and sum `data`."""
        size, crc = self.size_and_crc
        self.size_and_crc = [size + len(data), zlib.crc32(data, crc)]
        return self.file.write(data)

    def flush(self) -> None:
        """Do what a file does."""
        self.file.flush()


def save_summed(value: object, path: Path) -> list[int]:
    """Write `value` as torch.save does; return size and CRC-32."""
    file = SummedFile(path)
    with file.file:
        torch.save(value, file)
    return file.size_and_crc


def sum_weights(path: Path, tensors: dict[str, torch.Tensor]) -> list[int]:
    """Return size and CRC-32 of a safetensors file from the tensors it was written from; its header alone is read."""
    with path.open("rb") as file:
        header = file.read(8)
        header += file.read(int.from_bytes(header, "little"))
    places = json.loads(header[8:])
    places.pop("__metadata__", None)
    if not places.keys() <= tensors.keys():  # saved under other names
        return size_and_crc(path)
    crc = zlib.crc32(header)
    for name in sorted(places, key=lambda name: places[name]["data_offsets"]):
        data = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        crc = zlib.crc32(data.numpy(), crc)
    return [path.stat().st_size, crc]
