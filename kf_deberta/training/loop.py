"""The training loop. Objectives take turns, a round is one step of each, and everything is counted in rounds.

Each objective has a plain AdamW and a schedule of its own over the same weights, as sentence-transformers 2.x trained:
the moments never mix, so an objective with small gradients takes full-size Adam steps.
"""

import contextlib
import math
import os
import signal
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_scheduler

from kf_deberta.errors import InputError
from kf_deberta.evaluation.scoring import PairEvaluator
from kf_deberta.training.batches import ShuffledBatches, TripletBatches
from kf_deberta.training.checkpoints import State, load_best, load_checkpoint, save_checkpoint
from kf_deberta.training.run import Run

SELECTED_BY = "cosine_spearman"  # on dev; the figure that the published table ranks by


@dataclass
class Objective:
    """What is trained on what."""

    name: str  # such as nli; names its columns of the log
    rows: Dataset  # columns of texts and, behind them, `score` or `label` if the loss needs one
    batches: ShuffledBatches | TripletBatches  # row numbers of each batch, without end; the length is that of one pass
    loss: nn.Module  # one of the library's, on the model that is trained
    whole: bool = False  # every process takes whole batches, because the loss compares all rows with each other
    unread: list[tuple] = field(default_factory=list, init=False)  # steps that the device may still be busy with


def train(model, objectives: list[Objective], dev: PairEvaluator, directory: Path, args: Namespace, run: Run) -> State:
    """Train `model`, or go on from the newest checkpoint, and give it the weights that were best on dev.

    The model is scored on `dev` every `eval_steps` rounds of an epoch and at its end. `directory` gets checkpoints and
    eval/*.csv; `args` are the flags of a training script. InputError if a loss or gradient is not finite, or all
    rounds are warm-up; exit status 128 + number after SIGINT, SIGTERM or SIGHUP, once a checkpoint is written.
    """
    # 1. An AdamW and a schedule for each objective; both count rounds, and so does the warm-up
    epoch = min(len(objective.batches) for objective in objectives)
    rounds = min(epoch * args.num_epochs, args.max_rounds or math.inf)
    warmup = math.ceil(args.warmup_steps * rounds) if args.warmup_steps < 1 else int(args.warmup_steps)
    if warmup >= rounds:
        raise InputError(f"--warmup_steps {args.warmup_steps:g}: takes all {rounds} rounds; lower it, or train longer")
    for objective in objectives:
        weights = [weight for weight in objective.loss.parameters() if weight.requires_grad]
        groups = [{"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": args.weight_decay}]
        groups += [{"params": [weight for weight in weights if weight.dim() < 2], "weight_decay": 0.0}]
        objective.optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, fused=True)
        objective.schedule = get_scheduler(args.lr_scheduler_type, objective.optimizer, warmup, rounds)

    # 2. From the start, or from the newest checkpoint
    torch.manual_seed(args.seed)
    parts = [part for objective in objectives for part in (objective.optimizer, objective.schedule)]
    parts += [o.loss.projection for o in objectives if getattr(o.loss, "projection", None)]  # of EmbedDistillLoss
    state = load_checkpoint(directory, model, parts, run)
    for objective in objectives:
        objective.stream = _batches(objective, model, state.round, args.dataloader_num_workers, run)
    seen = [f"{min(epoch * o.batches.batch_size, len(o.rows)):,} of {len(o.rows):,} {o.name} rows" for o in objectives]
    run.print(f"{rounds:,} rounds; an epoch is {epoch:,} rounds: {' and '.join(seen)}")
    bar = tqdm(total=rounds, initial=state.round, unit="round", disable=not run.first)

    # 3. Rounds
    with bfloat16_forward(model, args.bf16), _signals() as received, bar:
        if not state.round:
            _evaluate(model, dev, directory, state, epoch, run)
        for number in range(state.round + 1, rounds + 1):
            model.train()
            for objective in objectives:
                result = step(model, objective, next(objective.stream), args.max_grad_norm, run)
                objective.unread.append((number, result))
            stopped = run.largest(received[0] if received else 0)
            evaluates = number % epoch % args.eval_steps == 0 or number == rounds
            saves = evaluates or stopped or (args.save_steps and number % args.save_steps == 0)
            logs = number % args.logging_steps == 0 or number == rounds
            state.round = number
            _read(objectives, state, run, number if saves or logs else number - 1)  # a GPU is not waited for
            bar.update()
            if logs:
                bar.set_postfix_str(_log(objectives, state, run), refresh=False)
            if evaluates:
                _evaluate(model, dev, directory, state, epoch, run)
            if saves:
                save_checkpoint(directory, model, parts, state, run)
            if stopped:
                run.stop(stopped)

    # 4. The best weights
    load_best(directory, model, state, run)
    return state


def step(model: SentenceTransformer, objective: Objective, batch: tuple, max_grad_norm: float, run: Run) -> tuple:
    """Run one optimizer step; returns [loss, gradient norm] on the host, and the event after which they are there."""
    loss = loss_of(model, objective.loss, *batch)
    loss.backward()
    weights = [weight for weight in objective.loss.parameters() if weight.grad is not None]
    loss, objective.rate = loss.detach().float(), objective.schedule.get_last_lr()[0]
    run.average([loss, *(weight.grad for weight in weights)])
    norm = nn.utils.clip_grad_norm_(weights, max_grad_norm)
    objective.optimizer.step()
    objective.schedule.step()
    objective.optimizer.zero_grad()
    result = torch.stack((loss, norm.float())).to("cpu", non_blocking=True)
    event = torch.get_device_module(loss.device).Event()
    event.record()
    return result, event


def loss_of(model: SentenceTransformer, loss: nn.Module, features: list[dict], labels: Tensor | None) -> Tensor:
    """Compute a loss as the library does, but with both sentences of a pair in one forward pass."""
    if len(features) == 2 and hasattr(loss, "compute_loss_from_embeddings"):
        return loss.compute_loss_from_embeddings(embed_columns(model, features, separate_first=False), labels)
    return loss(features, labels)


def _batches(objective: Objective, model: SentenceTransformer, start: int, workers: int, run: Run) -> Iterator[tuple]:
    """Yield features, one dictionary per column of texts, and labels of this process's share of each batch."""
    shares = (batch if objective.whole else run.share(batch) for batch in islice(objective.batches, start, None))
    loader = DataLoader(
        objective.rows,
        batch_sampler=shares,
        collate_fn=partial(collate, model),
        num_workers=workers,
        generator=torch.Generator(),  # else it draws from dropout's random numbers, and a resumed run draws others
        pin_memory=model.device.type == "cuda",
    )
    for batch in loader:
        yield move(*batch, model.device)


def move(features: list[dict], labels: Tensor | None, device: torch.device) -> tuple[list[dict], Tensor | None]:
    """Send a batch to the device, without waiting for it."""
    for column in features:
        column |= {name: v.to(device, non_blocking=True) for name, v in column.items() if torch.is_tensor(v)}
    return features, None if labels is None else labels.to(device, non_blocking=True)


def collate(model: SentenceTransformer, rows: list[dict]) -> tuple[list[dict], Tensor | None]:
    """Tokenize the text columns of `rows`, and return `score` or `label` as a tensor."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    labels = columns.pop("score", None) or columns.pop("label", None)
    return [model.preprocess(texts) for texts in columns.values()], None if labels is None else torch.tensor(labels)


def _read(objectives: list[Objective], state: State, run: Run, last: int) -> None:
    """Take the losses up to round `last` into `state`; InputError if a loss or a gradient is not finite."""
    for objective in objectives:
        while objective.unread and objective.unread[0][0] <= last:
            number, (result, event) = objective.unread.pop(0)
            event.synchronize()
            loss, objective.norm = result.tolist()
            if not math.isfinite(loss + objective.norm):
                rows = next(islice(objective.batches, number - 1, None))
                what = f"{'gradient' if math.isfinite(loss) else 'loss'} of {objective.name} in round {number}"
                first = " | ".join(map(str, objective.rows[rows[0]].values()))[:80]
                remedy = f"lower --learning_rate or look at these rows; checkpoints in {run.directory} are older"
                raise InputError(f"non-finite {what}, rows {rows} (from 0; the first: {first}); {remedy}")
            state.losses.setdefault(objective.name, []).append(loss)


def _log(objectives: list[Objective], state: State, run: Run) -> str:
    """Log each objective's mean loss since the last time, and its learning rate and gradient norm."""
    row = {"round": state.round}
    for objective in objectives:
        losses = state.losses.pop(objective.name)
        row[f"{objective.name}_loss"] = sum(losses) / len(losses)
        row[f"{objective.name}_learning_rate"] = objective.rate
        row[f"{objective.name}_grad_norm"] = objective.norm
    state.log.append(row)
    run.accelerator.log(row, step=state.round)
    return " ".join(f"{name} {value:.4f}" for name, value in row.items() if name.endswith("_loss"))


def _evaluate(model, dev: PairEvaluator, directory: Path, state: State, epoch: int, run: Run) -> None:
    """Score the model on dev, on the first process, and note whether it is the best so far."""
    figures = run.on_first(lambda: dev(model))
    state.log.append({"round": state.round, "epoch": state.round / epoch} | figures)
    run.accelerator.log({f"{dev.name}_{name}": value for name, value in figures.items()}, step=state.round)
    if state.round and figures[SELECTED_BY] > state.best_score:
        state.best_round, state.best_score = state.round, figures[SELECTED_BY]
    note = f"best so far {100 * state.best_score:.2f}" if state.round else "before training"
    run.print(f"round {state.round:,}: {dev.name} cosine Spearman {100 * figures[SELECTED_BY]:.2f}, {note}")
    rows = [row | {"steps": row["round"]} for row in state.log if SELECTED_BY in row]
    run.on_first(lambda: dev.write_csv(directory / "eval", rows))


@contextlib.contextmanager
def bfloat16_forward(model: SentenceTransformer, enabled: bool) -> Iterator[None]:
    """Run forward passes of training in bfloat16 autocast; embeddings, losses and evaluation stay float32."""
    forward = model.forward

    def autocast_forward(features: dict, **kwargs) -> dict:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.training):
            output = forward(features, **kwargs)
        return output | {"sentence_embedding": output["sentence_embedding"].float()}

    if enabled:
        model.forward = autocast_forward
    yield
    model.__dict__.pop("forward", None)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM or SIGHUP: the first ends training after the round, a second one at once."""
    received = []

    def receive(number: int, frame) -> None:
        received.append(number)
        with contextlib.suppress(OSError):  # the terminal is gone; print may be in the middle of a call
            os.write(2, b"\nstopping after this round, with a checkpoint; once more stops at once\n")
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # not so under nohup
    before = {number: signal.signal(number, receive) for number in heard}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
