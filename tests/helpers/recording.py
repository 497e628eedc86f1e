"""Runs a training script in this process and writes down what each optimizer step really did."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from kf_deberta.training import trainer as trainer_module


@dataclasses.dataclass
class Step:
    """One optimizer step: whose turn, on which texts, with which rates, and what it left alone."""

    objective: str
    texts: list[tuple[str, ...]]
    learning_rates: list[float]
    clipped_norm: float
    others_untouched: bool
    mine_moved: bool


@dataclasses.dataclass
class Recording:
    """What a run did, and the objects it did it with."""

    steps: list[Step]
    trainer: trainer_module.MultiTaskTrainer
    directory: Path


def moments(state: dict) -> list[torch.Tensor]:
    return [values["exp_avg"].clone() for values in state.values()]


def equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


def record(module, arguments: list[object], output: Path) -> Recording:
    """Run `module.main()` with `arguments`, recording every step of its optimizers."""
    steps: list[Step] = []
    seen: dict = {}
    original_init = trainer_module.MultiTaskTrainer.__init__
    original_step = trainer_module.PerObjectiveAdamW.step

    def keep_trainer(self, **kwargs):
        original_init(self, **kwargs)
        seen["trainer"] = self
        collate = self.data_collator

        def remember(rows):
            seen["rows"] = rows
            return collate(rows)

        remember.valid_label_columns = collate.valid_label_columns
        self.data_collator = remember

    def recorded_step(self, closure=None):
        objective = seen["trainer"].objective
        others = [state for name, state in self.states.items() if name != objective]
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])).item()
        before, mine_before = [moments(other) for other in others], moments(self.states[objective])
        original_step(self, closure)
        after = [moments(other) for other in others]
        rows = seen.get("rows", ())  # none where a worker collates
        texts = [tuple(v for v in row.values() if isinstance(v, str))[: len(row) - 1] for row in rows]
        steps.append(
            Step(
                objective,
                texts,
                [group["lr"] for group in self.param_groups],
                norm,
                all(map(equal, before, after)),
                not equal(mine_before, moments(self.states[objective])),
            )
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module.MultiTaskTrainer, "__init__", keep_trainer)
        patch.setattr(trainer_module.PerObjectiveAdamW, "step", recorded_step)
        patch.setattr(sys, "argv", [module.__file__, *map(str, arguments), "--output_dir", str(output)])
        module.main()
    return Recording(steps, seen["trainer"], Path(seen["trainer"].args.output_dir))
