"""Runs a training script in this process and writes down what each of its optimizer steps really did."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kf_deberta.training import loop


@dataclass
class Step:
    """One optimizer step: whose turn, on which texts, at which rates, and what it left alone."""

    objective: loop.Objective
    rows: list[dict]
    rates: list[float]
    clipped_norm: float
    others_untouched: bool

    @property
    def texts(self) -> list[tuple[str, ...]]:
        return [tuple(value for value in row.values() if isinstance(value, str)) for row in self.rows]


@dataclass
class Recording:
    """What a run did, and what it left."""

    steps: list[Step]
    model: torch.nn.Module
    directory: Path

    def of(self, name: str) -> list[Step]:
        return [step for step in self.steps if step.objective.name == name]

    def json(self, name: str) -> dict:
        return json.loads((self.directory / name).read_text(encoding="utf-8"))

    def log(self, column: str) -> list[float]:
        return [row[column] for row in self.json("log.json")["log"] if column in row]


def moments(objective: loop.Objective) -> list[torch.Tensor]:
    return [values["exp_avg"].clone() for values in objective.optimizer.state.values()]


def record(module, flags: list[object], output: Path) -> Recording:
    """Run `module.main()` with `flags`, recording every step."""
    steps, seen, models = [], {}, []
    original_step, original_collate = loop.step, loop.collate

    def collate(model, rows):
        seen.setdefault(tuple(rows[0]), []).append(rows)  # by the names of its columns
        return original_collate(model, rows)

    def step(model, objective, batch, max_grad_norm, run):
        models.append(model)
        others = [step.objective for step in steps if step.objective is not objective]
        before, norms = [moments(other) for other in others[-1:]], []
        rates = [group["lr"] for group in objective.optimizer.param_groups]
        gradients = [w for group in objective.optimizer.param_groups for w in group["params"]]
        hook = objective.optimizer.register_step_pre_hook(
            lambda *_: norms.append(
                torch.stack([w.grad.norm() for w in gradients if w.grad is not None]).norm().item()
            )
        )
        result = original_step(model, objective, batch, max_grad_norm, run)
        hook.remove()
        after = [moments(other) for other in others[-1:]]
        same = all(
            torch.equal(x, y) for xs, ys in zip(before, after, strict=True) for x, y in zip(xs, ys, strict=True)
        )
        rows = seen[tuple(objective.rows.column_names)].pop(0)
        steps.append(Step(objective, rows, rates, norms[0], same))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "step", step)
        patch.setattr(loop, "collate", collate)
        patch.setattr(sys, "argv", [module.__file__, *map(str, flags), "--output_dir", str(output)])
        module.main()
    (directory,) = output.iterdir()
    return Recording(steps, models[0], directory)
