"""A training run: its processes, its directory, its checkpoints, and what it leaves when it is finished."""

import argparse
import contextlib
import os
import platform
import shlex
import sys
import time
import weakref
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from sentence_transformers import SentenceTransformer
from torch import Tensor
from tqdm import tqdm

from kf_deberta.data.official import git_blob_id
from kf_deberta.errors import InputError, one_line, remove, say, writing
from kf_deberta.evaluation.scoring import PairEvaluator
from kf_deberta.model.cpu import keep_freed_memory
from kf_deberta.model.load import check_no_prompt, check_vocabulary, describe, load_model
from kf_deberta.model.save import format_problem, save_model
from kf_deberta.training.card import stage_rows, write_card
from kf_deberta.training.curves import draw_training_curves
from kf_deberta.training.resume import FINISHED, STARTED, clean, plain, read_json, write_json

LIBRARIES = ("sentence-transformers", "torch", "transformers", "datasets", "tokenizers", "numpy")
BIN = Path(__file__).resolve().parents[2] / "bin"


class Run:
    """The processes of a training run, `world` many, and its directory, which is created with the run.

    InputError if the machine cannot do what a flag asks for, or a batch cannot be shared equally.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        # 1. Processes; all of them use the flags and the directory of the first
        cpu = not torch.accelerator.is_available()  # else accelerate starts no process group without a GPU
        if missing := set(args.report_to or ()) - {str(tracker) for tracker in get_available_trackers()}:
            raise InputError(f"--report_to {' '.join(missing)}: not installed; pip install it, or remove the flag")
        self.accelerator = Accelerator(cpu=cpu, log_with=args.report_to, project_dir=args.output_dir)
        self.first, self.world = self.accelerator.is_main_process, self.accelerator.num_processes
        vars(args).update(self.on_first(lambda: vars(args)))
        for name in ("batch_size", "nli_batch_size", "sts_batch_size"):
            if (size := vars(args).get(name, 0)) % self.world:
                raise InputError(f"--{name} {size}: not divisible by {self.world} processes; batch sizes are totals")
        self.args, self.directory = args, self.on_first(lambda: self._open_directory(args))
        # 2. What may fail on this machine fails now, not after the data are loaded
        if args.tf32:
            torch.set_float32_matmul_precision("high")
        if cpu:
            keep_freed_memory()
        try:
            if args.torch_compile:
                torch.compile(torch.nn.GELU())(torch.ones(64, device=self.accelerator.device))
            self.accelerator.project_configuration.set_directories(str(self.directory))
            names = {"wandb": {"name": args.run_name or self.directory.name}}
            config = {name: value for name, value in plain(args).items() if isinstance(value, int | float | str)}
            self.accelerator.init_trackers("kf-deberta-multitask", config, names)
        except Exception as error:  # compilers and trackers raise types of their own
            flags = " ".join(f"--{name}" for name in ("torch_compile", "report_to") if vars(args)[name])
            raise InputError(f"{flags}: {one_line(error)}; remove the flag, or install what is missing") from error

    def _open_directory(self, args: argparse.Namespace) -> Path:
        directory = Path(args.resume) if args.resume else _new_directory(args)
        weakref.finalize(self, _remove_if_unused, directory)
        self.lock = FileLock(directory / ".lock")
        try:
            self.lock.acquire(blocking=False)
        except Timeout as error:
            raise InputError(f"{directory}: still running in another process; stop that first") from error
        return directory

    # Processes
    def on_first(self, function: Callable[[], Any]) -> Any:
        """Call `function` on the first process; all processes return its result, or raise its error, together."""
        result, failure = None, None
        if self.first:
            try:
                result = function()
            except Exception as error:
                result, failure = InputError(one_line(error)), error
        (result,) = broadcast_object_list([result])  # nothing to do in a single process
        if failure or isinstance(result, InputError):
            raise failure or result
        return result

    def share(self, batch: list[int]) -> list[int]:
        """Return this process's part of a batch; if there are no equal parts, all of it: the same gradient."""
        size, rest = divmod(len(batch), self.world)
        start = self.accelerator.process_index * size
        return batch if rest else batch[start : start + size]

    def average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their mean over all processes, in place."""
        tensors = tensors if self.world > 1 else []
        for work in [torch.distributed.all_reduce(tensor.div_(self.world), async_op=True) for tensor in tensors]:
            work.wait()

    def largest(self, number: int) -> int:
        """Return the largest of all processes' numbers."""
        if self.world == 1:  # a GPU is not waited for
            return number
        return int(self.accelerator.gather(torch.tensor(number, device=self.accelerator.device)).max())

    # The run
    def begin(self, model: SentenceTransformer, test: PairEvaluator, files: list[Path], teacher: str = "") -> None:
        """Score the untrained model on test and save what the run starts with; InputError if a resumed one differs."""
        self.facts = self.on_first(lambda: self._start(model, test, files, teacher))
        untrained = self.facts["baseline"]["cosine_spearman"]
        self.print(f"before training: {test.name} cosine Spearman {100 * untrained:.2f}")

    def _start(self, model: SentenceTransformer, test: PairEvaluator, files: list[Path], teacher: str) -> dict:
        root = self.args.dataset_path
        data = {path.relative_to(root).as_posix(): git_blob_id(path) for path in files}
        if self.args.resume:
            facts = read_json(self.directory / STARTED)
            if changed := {name for name, _ in data.items() ^ facts["data"].items()}:
                raise InputError(f"{root / min(changed)}: not as it was when {self.directory} was started; restore it")
            if (before := facts["processes"]) != self.world:
                raise InputError(f"{self.directory}: started with {before} processes, not {self.world}; use as many")
            return facts
        say(f"scoring the untrained model on {test.name}, {len(test.gold):,} pairs")
        base = Path(self.args.model_name_or_path)
        facts = dict(script=Path(sys.argv[0]).name, args=plain(self.args), processes=self.world, teacher=teacher)
        facts["libraries"] = {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}
        facts |= {"data": data, "trained_on": {name: blob for name, blob in data.items() if "train" in name}}
        facts |= {"base": base.name if base.is_dir() else str(base), "base_on_hub": not base.is_dir()}
        facts |= {"base_revision": model.revision, "test_pairs": len(test.gold), "baseline": test(model)}
        if (base / STARTED).is_file():  # a run of ours: the card names what that one began with
            before = read_json(base / STARTED)
            facts |= {name: before[name] for name in ("base", "base_on_hub", "base_revision")}
            facts["trained_on"] = before["trained_on"] | facts["trained_on"]
            facts["teacher"] = teacher or before.get("teacher")
        write_json(self.directory / STARTED, facts)
        return facts

    def finish(self, model, test: PairEvaluator, stages: dict[str, tuple], kept: str = "", dev: dict = None) -> None:
        """Save the model, score it on test as it loads from disk, and write card, curves and results.json.

        `stages` are, by their names ("" for the only one), the objectives of each, its state at the end and its flags;
        `kept` says what the model is and `dev` are its figures, by default those of the last stage's best round.
        """
        self.on_first(lambda: self._finish(model, test, stages, kept, dev))
        self.accelerator.end_training()

    def _finish(self, model, test, stages, kept, dev) -> None:
        # 1. The model, and its figures as it loads from disk
        with writing(self.directory, f"free space, then go on with --resume {self.directory}"):
            save_model(model, self.directory)
        if problem := format_problem(model):
            self.print(f"note: only sentence-transformers 6 and later load this model ({problem})")
        final = load_model(str(self.directory), device=str(model.device))
        say(f"scoring the final model on {test.name}, {len(test.gold):,} pairs")
        figures = test(final)
        # 2. What the run leaves
        logs = {name: state.log for name, (_, state, _) in stages.items()}
        if not kept:
            *_, (_, state, _) = stages.values()
            kept, dev = f"round {state.best_round:,}", state.best_row
        test.write_csv(self.directory, [{"epoch": dev["epoch"], "steps": dev["round"]} | figures])
        facts = self.facts | {"test": figures, "dev": dev, "kept": kept}
        facts["stages"] = [row for name, stage in stages.items() for row in stage_rows(name, *stage)]
        write_card(final, facts, self.directory)
        draw_training_curves(logs, facts, self.directory / "training_curves.png")
        write_json(self.directory / FINISHED, facts)
        clean(self.directory)
        # 3. Summary
        self.print(f"\n{test.name} x100 (before -> after training)")
        for name, value in figures.items():
            self.print(f"  {name:<24} {100 * facts['baseline'][name]:6.2f} -> {100 * value:6.2f}")
        self.print(f"best on dev: {kept}, cosine Spearman {100 * dev['cosine_spearman']:.2f}")
        folder, data = shlex.quote(str(self.directory)), shlex.quote(str(self.args.dataset_path / "KorSTS"))
        flags = f"--model_name_or_path {folder} --sts_dataset_path {data}"
        self.print(f"model:     {self.directory}")
        self.print(f"benchmark: python {shlex.quote(str(BIN / 'benchmark.py'))} {flags}")
        self.print(f"export:    python {shlex.quote(str(BIN / 'export_onnx.py'))} {flags} --quantize")
        self.print(f"upload:    hf upload OWNER/MODEL {folder} --exclude {STARTED} --exclude {FINISHED}")

    def print(self, text: str) -> None:
        """Print a line to stdout, above the progress bar, on the first process only."""
        if self.first:
            tqdm.write(text)
            sys.stdout.flush()

    def stop(self, number: int) -> None:
        """Exit after signal `number`, and say how to go on."""
        launcher = f"torchrun --nproc_per_node {os.environ['LOCAL_WORLD_SIZE']}" if self.world > 1 else "python"
        self.print(f"stopped; to go on:\n  {launcher} {shlex.join([sys.argv[0], '--resume', str(self.directory)])}")
        sys.exit(128 + number)


def _new_directory(args: argparse.Namespace) -> Path:
    base = Path(args.model_name_or_path)
    name = base.name if base.is_dir() else str(base).replace("/", "-")
    while True:
        directory = args.output_dir.absolute() / f"{args.output_prefix}{name}-{datetime.now():%Y-%m-%d_%H-%M-%S}"
        with contextlib.suppress(FileExistsError):  # another run of the same second
            directory.mkdir(parents=True)
            return directory
        time.sleep(0.2)


def _remove_if_unused(directory: Path) -> None:
    """Remove a directory in which no run has begun, because the data or the model could not be loaded."""
    if not (directory / STARTED).exists():
        remove(directory)


def load_base(args: argparse.Namespace, sentences: list[str]) -> SentenceTransformer:
    """Load the base encoder with mean pooling, in float32, as the flags say; it must know these sentences."""
    name = args.model_name_or_path
    model = load_model(name, revision=args.revision, max_seq_length=args.max_seq_length, normalize=args.normalize)
    check_no_prompt(model, name)
    check_vocabulary(model, sentences, name)
    if (size := model.get_embedding_dimension()) < max(args.matryoshka_dims or [0]):
        raise InputError(f"--matryoshka_dims {max(args.matryoshka_dims)}: {name} has {size} dimensions")
    if args.gradient_checkpointing:
        model[0].model.activation_checkpointing_enable()  # its name in transformers 5.23
    if args.torch_compile:
        model[0].model.compile(dynamic=True)
    say(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, {describe(model)}, {model.device}")
    return model
