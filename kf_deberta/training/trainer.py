"""A narrow SentenceTransformerTrainer for one or several objectives that take turns, as the published run trained.

The library's Trainer has one batch size and one AdamW for all data sets, and a schedule over steps. Here every
objective has its own batch size and its own AdamW moments, and the schedule, one of three kinds, counts rounds
(a round is one step of each).
"""

import json
from collections import defaultdict
from pathlib import Path

import torch
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import ConcatDataset, DataLoader
from transformers import TrainingArguments

from kf_deberta.cli import InputError, one_line, say
from kf_deberta.model.load import default_prompt
from kf_deberta.model.packing import take_masks_from_host
from kf_deberta.training.batches import AlternatingBatchSampler
from kf_deberta.training.checkpoints import (
    reading,
    save_summed,
    sum_weights,
    write_checkpoint,
)
from kf_deberta.training.run import STATE, checkpoints, remove

PENDING_LOG = "pending_log.json"  # losses since the last log line, which a resumed run must not lose


class PerObjectiveAdamW(torch.optim.AdamW):
    """AdamW that keeps the moments of each objective apart, over the same parameters and rates.

    The moments never mix, so an objective with small gradients takes full-size Adam steps of its own.
    """

    def __init__(self, *args, **kwargs) -> None:
        """Take what torch's AdamW takes."""
        super().__init__(*args, **kwargs)
        self.states: dict[str, dict] = {}  # moments by objective; `self.state` is the one whose turn it is

    def turn_to(self, objective: str) -> None:
        """Make the next step one of `objective`."""
        self.state = self.states.setdefault(objective, defaultdict(dict))

    def state_dict(self) -> dict:
        """Return the state of every objective by name, each as torch's AdamW returns its single one."""
        packed = {}
        for name in self.states:
            self.turn_to(name)
            packed[name] = super().state_dict()
        return packed

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what `state_dict` returned."""
        for name, state in state_dict.items():
            super().load_state_dict(state)
            self.states[name] = self.state


class MultiTaskTrainer(SentenceTransformerTrainer):
    """Trains the objectives of `train_dataset` in strict alternation."""

    def __init__(self, *, batch_samplers: dict[str, DefaultBatchSampler], **kwargs) -> None:
        """Take what SentenceTransformerTrainer takes, with `train_dataset` and `loss` as dicts keyed by objective.

        Args:
            batch_samplers: for each objective of `train_dataset` its batches, in the same order.
            **kwargs: those of SentenceTransformerTrainer.
        """
        self.batch_samplers = batch_samplers
        self.last_checkpoint: str | None = None  # the newest complete one
        self.evaluating = False  # stays True where an evaluation fails
        self._checkpoint_parent: Path | None = None  # where one is being written
        self.logged: dict[str, dict] = {name: {} for name in batch_samplers}
        kwargs["args"].prompts = default_prompt(kwargs["model"]) or None  # the texts that evaluation encodes
        super().__init__(**kwargs)
        take_masks_from_host(self.model)

    def add_model_card_callback(self, default_args_dict: dict) -> None:
        """Do nothing: the run writes its own card, and the library's would ask the hub for every data set."""

    def init_hf_repo(self, *args, **kwargs) -> None:
        """Create the repository of --push_to_hub before training; InputError where this user may not."""
        try:
            super().init_hf_repo(*args, **kwargs)
        except (HfHubHTTPError, httpx.TransportError) as error:
            raise InputError(
                f"--push_to_hub: {self.args.hub_model_id} cannot be created ({one_line(error)}); "
                "log in with hf auth login as a user who may write there"
            ) from error

    # 1. Batches: every process builds the same global batches and takes its own share of each.
    def get_train_dataloader(self) -> DataLoader:
        """Return a loader of alternating batches; not wrapped by accelerate, whose sharding assumes one batch size."""
        dataset = ConcatDataset(self.train_dataset.values())
        self.batches = AlternatingBatchSampler(
            dataset, list(self.batch_samplers.values()), rank=self.args.process_index, world_size=self.args.world_size
        )
        # the Trainer reaches the sampler's set_epoch only through accelerate's wrappers
        self.batches.set_epoch(int(self.state.epoch or 0))
        return DataLoader(
            dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    def _run_epoch(self, *args, **kwargs) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed from the last checkpoint of all
            return
        self.batches.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _prepare_inputs(self, inputs: dict) -> dict:
        # without waiting for the device, as the library does; masks stay here, where the model lays the tokens out
        return {
            name: value.to(self.args.device, non_blocking=True)
            if torch.is_tensor(value) and not name.endswith("attention_mask")
            else value
            for name, value in inputs.items()
        }

    # 2. One AdamW with moments for each objective, one schedule that counts rounds.
    def get_optimizer_cls_and_kwargs(self, args: TrainingArguments, model: torch.nn.Module | None = None) -> tuple:
        """Return the class above with the arguments that the library gives its AdamW."""
        return PerObjectiveAdamW, super().get_optimizer_cls_and_kwargs(args, model)[1]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """Build the library's schedule over the rounds, warm-up in rounds too; the steps of a round share its rate."""
        objectives = len(self.batch_samplers)
        schedule = super().create_scheduler(num_training_steps // objectives, optimizer)
        schedule.lr_lambdas = [lambda step, rate=rate: rate(step // objectives) for rate in schedule.lr_lambdas]
        return schedule

    # 3. A step belongs to one objective; what it logs carries that objective's name.
    def training_step(self, model: torch.nn.Module, inputs: dict, num_items_in_batch=None) -> torch.Tensor:
        """Run forward and backward of one batch, and stop the run when the loss is not finite."""
        self.objective = inputs["dataset_name"]
        self.optimizer.optimizer.turn_to(self.objective)  # the outer one is accelerate's
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._check_finite("loss", loss)
        values = self.logged[self.objective]
        values.setdefault("losses", []).append(loss.detach())
        values["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        return loss

    def compute_loss(self, model: torch.nn.Module, inputs: dict, *args, **kwargs) -> torch.Tensor:
        """Compute the loss as the library does, but with both sentences of a pair in one forward pass.

        The library keeps columns apart that may be query and document; here they are sentences of one kind.
        """
        features, labels = self.collect_features(inputs)
        loss = self.loss[inputs["dataset_name"]]
        if len(features) != 2 or not hasattr(loss, "compute_loss_from_embeddings"):  # a MatryoshkaLoss
            return super().compute_loss(model, inputs, *args, **kwargs)
        return loss.compute_loss_from_embeddings(embed_columns(model, features, separate_first=False), labels)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor:
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self._check_finite("gradient", torch.as_tensor(grad_norm))
        self.logged[self.objective]["grad_norm"] = grad_norm
        return grad_norm

    def _check_finite(self, what: str, value: torch.Tensor) -> None:
        if torch.isfinite(value).all():
            return
        objective = self.objective
        number = self.state.global_step // len(self.batch_samplers)
        index = list(self.batch_samplers).index(objective)
        rows = self.batches.round_batches(number)[index]
        first = [value for value in self.train_dataset[objective][rows[0]].values() if isinstance(value, str)]
        raise InputError(
            f"non-finite {what} of objective {objective} in round {number}, rows {rows} of its data set (from 0; the "
            f"first: {' | '.join(first[:-1])[:80]}); last good checkpoint: {self.last_checkpoint or 'none yet'}; "
            "lower --learning_rate or look at these rows"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log loss, learning rate and gradient norm under `<objective>_...` instead of one mixed figure."""
        if "loss" in logs or "train_runtime" in logs:  # the last window of a run may be a shorter one
            logs = {key: value for key, value in logs.items() if key not in ("loss", "learning_rate", "grad_norm")}
            if any(values.get("losses") for values in self.logged.values()):
                logs["round"] = self.state.global_step // len(self.batch_samplers)
            for objective, values in self.logged.items():
                if losses := values.pop("losses", []):
                    mean = self.accelerator.reduce(torch.stack(losses).mean(), reduction="mean")
                    logs[f"{objective}_loss"] = mean.item()
                    logs[f"{objective}_learning_rate"] = values["learning_rate"]
                    logs[f"{objective}_grad_norm"] = float(values["grad_norm"])
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Evaluate as the library does, and let it be seen."""
        self.evaluating = True
        metrics = super().evaluate(*args, **kwargs)
        self.evaluating = False
        return metrics

    # 4. Checkpoints appear whole or not at all; the newest and the best are kept.
    def _get_output_dir(self, trial=None) -> str:
        return str(self._checkpoint_parent or self.args.output_dir)

    def _save_checkpoint(self, model: torch.nn.Module, trial=None) -> None:
        run_dir = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        say(f"writing {name}")
        best = f"checkpoint-{self.state.best_global_step}" if self.state.best_global_step else None
        with write_checkpoint(run_dir, name, self.accelerator) as (parent, self._sums):
            self._checkpoint_parent = parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._checkpoint_parent = None
            logged = self._pending_log()
            if self.args.should_save:
                self.state.best_model_checkpoint = None  # best_global_step tells it without a directory
                self.state.save_to_json(parent / name / STATE)
                (parent / name / PENDING_LOG).write_text(json.dumps(logged))
        self.state.best_model_checkpoint = best and str(run_dir / best)
        self.last_checkpoint = str(run_dir / name)
        if self.args.should_save:
            for path in checkpoints(run_dir):
                if path.name not in (name, best):
                    remove(path)

    def _save(self, output_dir: str, state_dict: dict | None = None) -> None:
        # no training_args.bin beside the model: nothing reads it, and it would hold tokens and directories
        self.model.save_pretrained(output_dir, create_model_card=False)
        weights = Path(output_dir) / "model.safetensors"
        if weights.is_file():  # else sharded
            encoder = getattr(self.model[0], "auto_model", self.model[0])  # static embeddings are their own
            self._sums[weights.name] = sum_weights(weights, encoder.state_dict())

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            self._sums["optimizer.pt"] = save_summed(self.optimizer.state_dict(), Path(output_dir) / "optimizer.pt")
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _pending_log(self) -> dict[str, dict]:
        """Return what the next log line already knows, as plain numbers and equal on all processes."""
        plain = {}
        for objective, values in self.logged.items():
            plain[objective] = {key: float(value) for key, value in values.items() if key != "losses"}
            if losses := values.get("losses"):
                plain[objective]["losses"] = self.accelerator.reduce(torch.stack(losses), reduction="mean").tolist()
        return plain

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.last_checkpoint = checkpoint
            with reading(checkpoint):
                super()._load_optimizer_and_scheduler(checkpoint)
                self.logged = json.loads((Path(checkpoint) / PENDING_LOG).read_text())
                for values in self.logged.values():
                    losses = values.get("losses", [])
                    values["losses"] = [torch.tensor(loss, device=self.args.device) for loss in losses]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        # the library only logs a failure here and would then score another model than it names
        self._load_from_checkpoint(self.state.best_model_checkpoint)
