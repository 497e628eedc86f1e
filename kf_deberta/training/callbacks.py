"""When a run evaluates, saves, tells where it stands, and stops."""

import contextlib
import os
import signal
import types
from collections.abc import Callable

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from kf_deberta.cli import STOP_SIGNALS, progress


class ProgressLines(TrainerCallback):
    """Where training stands: a bar on a terminal, plain lines elsewhere, with rate, time left and losses."""

    def __init__(self, objectives: int) -> None:
        """Take the objectives per round."""
        self.objectives = objectives

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Show nothing while the untrained model is evaluated: that time is none of a round's."""
        self.bar = None

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Start at the round that a resumed run goes on from."""
        if self.bar is None:
            rounds = (state.max_steps // self.objectives, state.global_step // self.objectives)
            self.bar = progress(rounds[0], "round", "rounds", rounds[1], disable=not state.is_world_process_zero)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Count whole rounds."""
        self.bar.update(state.global_step // self.objectives - self.bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict | None = None, **kwargs
    ) -> None:
        """Print loss, learning rate and gradient norm of each objective."""
        if "round" not in logs or self.bar is None or not state.is_world_process_zero:
            return
        names = [key.removesuffix("_learning_rate") for key in logs if key.endswith("_learning_rate")]
        parts = [
            f"{name} loss {logs[f'{name}_loss']:.4f} lr {logs[f'{name}_learning_rate']:.2e} "
            f"grad {logs[f'{name}_grad_norm']:.3f}"
            for name in names
        ]
        self.bar.write(" | ".join(parts))

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()


class RecipeCallback(TrainerCallback):
    """Evaluates inside an epoch every `eval_steps` rounds, saves every `save_steps` rounds, stops on a signal.

    The epoch's end is the library's to evaluate and save. A checkpoint goes with every evaluation.
    """

    def __init__(
        self,
        objectives: int,
        rounds_per_epoch: int,
        eval_steps: int,
        save_steps: int | None,
        write_csv: Callable[[list[dict]], None],
    ) -> None:
        """Take objectives per round, rounds per epoch, rounds between evaluations and between checkpoints.

        `write_csv` writes the evaluations of a log; a resumed run's log ends at its checkpoint, so its files do too.
        """
        self.objectives = objectives
        self.rounds_per_epoch = rounds_per_epoch
        self.eval_steps = eval_steps
        self.save_steps = save_steps
        self.write_csv = write_csv
        self.signal: int | None = None
        self.handlers: dict[int, Callable | int | None] = {}  # those before training

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Take Ctrl-C and what ends processes: the first asks for a checkpoint, a second one stops at once."""
        for number in (signal.SIGINT, *STOP_SIGNALS):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.handlers[number] = signal.signal(number, self._take_signal)
        if state.is_world_process_zero:
            self.write_csv(state.log_history)
        if state.best_global_step:  # a resumed run may have been moved since
            state.best_model_checkpoint = f"{args.output_dir}/checkpoint-{state.best_global_step}"

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Give the signals back: what follows training is short."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _take_signal(self, number: int, frame: types.FrameType | None) -> None:
        self.signal = number
        if os.environ.get("LOCAL_RANK", "0") == "0":
            with contextlib.suppress(OSError):  # print may be mid-call, the terminal gone
                os.write(2, b"\nfinishing the step, then a checkpoint; once more stops at once\n")
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Decide after each step whether to evaluate, save or stop."""
        self._agree(args)
        if self.signal is not None:
            control.should_training_stop = True
        if self._ends_epoch(state):
            return
        rounds, rest = divmod(state.global_step, self.objectives)
        if rest == 0 and rounds % self.rounds_per_epoch % self.eval_steps == 0:
            control.should_evaluate = control.should_save = True
        elif self.signal is not None or (self.save_steps and rest == 0 and rounds % self.save_steps == 0):
            control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Leave out the evaluation that ends an epoch when a signal cut the epoch short."""
        if self.signal is not None and not self._ends_epoch(state):
            control.should_evaluate = control.should_save = False

    def _ends_epoch(self, state: TrainerState) -> bool:
        steps = self.rounds_per_epoch * self.objectives
        return state.global_step % steps == 0 or state.global_step >= state.max_steps

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict, **kwargs
    ) -> None:
        """Print one line per evaluation and write its figures."""
        if state.is_world_process_zero:
            self.write_csv(state.log_history)
            score = metrics[args.metric_for_best_model]
            rounds = state.global_step // self.objectives
            total = state.max_steps // self.objectives
            best = "before training"
            if rounds:
                best = f"best so far {100 * max(score, -1 if state.best_metric is None else state.best_metric):.2f}"
            print(
                f"\nround {rounds}/{total}, epoch {state.epoch:.2f}: "
                f"KorSTS dev cosine Spearman {100 * score:.2f}, {best}",
                flush=True,
            )

    def _agree(self, args: TrainingArguments) -> None:
        """Let all processes stop at the same step when one of them got a signal."""
        if args.world_size > 1:
            number = torch.tensor(self.signal or 0, device=args.device)
            torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
            self.signal = number.item() or None
