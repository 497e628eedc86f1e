"""Checkpoints of a training: written whole or not at all, and the newest one that loads is used.

`checkpoint-<round>` is the directory of a model, with two more files: state.json and, in the two newest, moments.pt.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate.utils import gather_object
from sentence_transformers import SentenceTransformer

from kf_deberta.errors import is_out_of_memory, one_line, remove, say, write_atomically
from kf_deberta.model.load import load_model
from kf_deberta.model.save import save_model
from kf_deberta.training.resume import checkpoints, read_json, write_json
from kf_deberta.training.run import Run

MOMENTS, STATE = "moments.pt", "state.json"
TRAINED = "log.json"  # the state at the end of a training


@dataclass
class State:
    """Where a training is."""

    round: int = 0  # the last complete one
    best_round: int = 0  # whose weights were best on dev; 0 before the first evaluation of trained weights
    best_score: float = -2.0  # its cosine Spearman on dev, -1..1
    log: list[dict] = field(default_factory=list)  # a row for each evaluation, and for every `logging_steps` rounds
    losses: dict[str, list[float]] = field(default_factory=dict)  # by objective, since the last row of the log

    @property
    def best_row(self) -> dict:
        """The evaluation of the best round."""
        return next(row for row in self.log if row["round"] == self.best_round and "epoch" in row)


def save_checkpoint(directory: Path, model: SentenceTransformer, parts: list, state: State, run: Run) -> None:
    """Write the checkpoint of this round on the first process; `parts` are the optimizers and schedules."""
    states = [torch.get_rng_state()]
    if model.device.type != "cpu":
        states.append(torch.get_device_module(model.device).get_rng_state())
    random = gather_object([states])  # of all processes, in their order

    def write() -> None:
        path = directory / f"checkpoint-{state.round}"
        say(f"writing {path.name}")
        with write_atomically(path, remedy=f"free space, then go on with --resume {run.directory}") as temporary:
            save_model(model, temporary)
            torch.save({"parts": [part.state_dict() for part in parts], "random": random}, temporary / MOMENTS)
            write_json(temporary / STATE, asdict(state))
        _prune(directory, state.best_round, kept=2)

    run.on_first(write)


def load_checkpoint(directory: Path, model: SentenceTransformer, parts: list, run: Run) -> State:
    """Restore the newest checkpoint that loads; returns its state, or that of the end, or of the start."""
    if (directory / TRAINED).exists():
        return State(**read_json(directory / TRAINED))
    for path in [path for path in checkpoints(directory) if (path / MOMENTS).exists()]:
        say(f"resuming from {path}")
        try:
            state = State(**read_json(path / STATE))
            saved = torch.load(path / MOMENTS, map_location="cpu", weights_only=True)
            model.load_state_dict(load_model(str(path), device="cpu").state_dict())
            for part, values in zip(parts, saved["parts"], strict=True):
                part.load_state_dict(values)
            cpu, *device = saved["random"][run.accelerator.process_index]
            torch.set_rng_state(cpu)
            for values in device:
                torch.get_device_module(model.device).set_rng_state(values)
            return state
        except Exception as error:  # every library raises its own types for a damaged file
            if is_out_of_memory(error):
                raise
            say(f"{path}: cannot be loaded ({one_line(error)}); trying the one before")
            run.on_first(lambda path=path: path.rename(path.with_name(f".part-{path.name}")))
    return State()


def load_best(directory: Path, model: SentenceTransformer, state: State, run: Run) -> None:
    """End a training: save its state, delete all checkpoints but the best, and load that one's weights."""
    run.on_first(lambda: write_json(directory / TRAINED, asdict(state)))
    run.on_first(lambda: _prune(directory, state.best_round, kept=0))
    best = load_model(str(directory / f"checkpoint-{state.best_round}"), device="cpu")
    model.load_state_dict(best.state_dict())


def _prune(directory: Path, best_round: int, kept: int) -> None:
    """Delete all checkpoints but the newest `kept` and what they need: models that were the best at their time."""
    newest, older = checkpoints(directory)[:kept], checkpoints(directory)[kept:]
    rounds = [best_round, *(read_json(path / STATE)["best_round"] for path in newest)]
    for path in older:
        remove(path / MOMENTS)
        if path.name not in [f"checkpoint-{number}" for number in rounds]:
            remove(path)
