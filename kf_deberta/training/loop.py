"""Training with everything around it: base, baseline, resume, the best model from disk scored, what a run leaves."""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import upload_folder
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from transformers import ProgressCallback

from kf_deberta.cli import InputError, WatchedOutput, is_out_of_memory, one_line, say, writing
from kf_deberta.evaluation.evaluator import PairEvaluator
from kf_deberta.evaluation.scoring import check_gold
from kf_deberta.model.attention import FastDebertaV2Encoder
from kf_deberta.model.cpu import keep_freed_memory
from kf_deberta.model.load import describe, load_model
from kf_deberta.model.save import format_problem, save_model
from kf_deberta.training.callbacks import ProgressLines, RecipeCallback
from kf_deberta.training.card import write_model_card
from kf_deberta.training.curves import draw_training_curves
from kf_deberta.training.run import NOT_PUSHED, Run, open_run, short, upload_command
from kf_deberta.training.trainer import MultiTaskTrainer

REPOSITORY = Path(__file__).resolve().parents[2]
LOWER_EVALUATION = "lower it by --eval_batch_size, which changes no result,"


def load_base(args: argparse.Namespace) -> SentenceTransformer:
    """Load the base encoder as the flags say.

    Raises:
        InputError: it cannot be loaded, or has fewer dimensions than --matryoshka_dims.
    """
    if not torch.accelerator.is_available():
        keep_freed_memory()
    with memory_advice("in loading the base", "take a smaller --model_name_or_path or --dtype bfloat16"):
        model = load_model(
            args.model_name_or_path,
            revision=args.revision,
            dtype=getattr(torch, args.dtype),
            fast_attention=not args.no_fast_attention,
            max_seq_length=args.max_seq_length,
            trust_remote_code=args.trust_remote_code,
            normalize=args.normalize,
            prompt=args.prompt,
        )
    size = model.get_embedding_dimension()
    if args.matryoshka_dims and args.matryoshka_dims[0] > size:
        raise InputError(
            f"--matryoshka_dims {args.matryoshka_dims[0]}: {args.model_name_or_path} has {size} dimensions"
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    fast = any(isinstance(module, FastDebertaV2Encoder) for module in model.modules())
    say(f"model: {parameters:,} parameters, {args.dtype}, {model.device}, {'fast' if fast else 'library'} attention")
    return model


def with_matryoshka(
    model: SentenceTransformer, losses: dict[str, torch.nn.Module], dims: list[int] | None
) -> dict[str, torch.nn.Module]:
    """Wrap every loss in a MatryoshkaLoss over `dims` (arXiv 2205.13147), or return them as they are without dims."""
    return {name: MatryoshkaLoss(model, loss, dims) for name, loss in losses.items()} if dims else losses


def kor_sts_evaluator(pairs: Dataset, path: Path, args: argparse.Namespace) -> PairEvaluator:
    """Return the evaluator of KorSTS pairs: all eight figures, at full size and at each Matryoshka dimension.

    The run keeps the model with the best cosine Spearman at full size, the figure that the published table ranks by.

    Args:
        pairs: what data_util.load_kor_sts returns for `path`.
        path: sts-dev.tsv or sts-test.tsv; the figures carry its name without suffix.
        args: the script's flags.

    Raises:
        InputError: one pair, or all scores are the same, so that no correlation exists.
    """
    check_gold(np.array(pairs["score"]), path)
    return PairEvaluator(pairs, path.stem, args.eval_batch_size, args.matryoshka_dims or [], not args.disable_tqdm)


def train_and_score(trainer: MultiTaskTrainer, args: argparse.Namespace, test_evaluator: PairEvaluator) -> None:
    """Train, reload the model that was best on dev from disk, score it on test, and write what the run leaves.

    Args:
        trainer: ready to train; its evaluator is the dev evaluator.
        args: the script's flags.
        test_evaluator: scores the untrained model (baseline) and the final one.

    Raises:
        InputError: the run directory cannot be written or resumed, or a figure is not a number.
        SystemExit: 130 after SIGINT, 143 after SIGTERM, once a checkpoint is written.
    """
    # 1. The untrained model on test, once; then the run's directory
    main = trainer.is_world_process_zero()
    begun_with = {"base_revision": trainer.model.revision}
    if main:
        print(f"{args.model_name_or_path}: {describe(trainer.model)}", flush=True)
    if main and args.resume is None:
        say(f"before training: scoring KorSTS test, {len(test_evaluator.gold):,} pairs")
        with memory_advice("in evaluation", "begin anew with a lower --eval_batch_size or --max_seq_length"):
            baseline = begun_with["baseline"] = test_evaluator.percent(test_evaluator(trainer.model))
        print(f"before training: KorSTS test cosine Spearman {baseline['cosine_spearman']:.2f}", flush=True)
    run = open_run(args, trainer, begun_with)

    # 2. Training, from the start or from the checkpoint
    objectives = list(trainer.batch_samplers)
    rounds = trainer.get_train_dataloader().batch_sampler.rounds  # an epoch
    if main:
        rows = {name: len(trainer.train_dataset[name]) for name in objectives}
        seen = {name: min(rounds * sampler.batch_size, rows[name]) for name, sampler in trainer.batch_samplers.items()}
        parts = [f"{seen[name]:,} of {rows[name]:,} {name} examples" for name in objectives]
        print(f"an epoch: {rounds:,} rounds, {' and '.join(parts)}", flush=True)
    trainer.args.logging_steps = args.logging_steps * len(objectives)
    if args.max_rounds:
        trainer.args.max_steps = min(args.max_rounds, rounds * args.num_epochs) * len(objectives)
    write_csv = partial(trainer.evaluator.write_csv, run.directory / "eval")
    control = RecipeCallback(len(objectives), rounds, args.eval_steps, args.save_steps, write_csv)
    trainer.add_callback(control)
    if trainer.pop_callback(ProgressCallback):  # not there with --disable_tqdm
        trainer.add_callback(ProgressLines(len(objectives)))
    trainer.args.eval_on_start = run.checkpoint is None
    if run.checkpoint and main:
        print(f"resuming from {run.checkpoint}", flush=True)
    smaller = "lower it by --gradient_checkpointing"
    if "nli_mini_batch_size" in args:
        smaller += " or --nli_mini_batch_size, which change no result,"
    with watched_output(), memory_advice("in training", smaller, trainer):
        trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
    if control.signal is not None:
        if main:
            print(f"\nstopped; go on with:\n  {_resume_command(run)}", flush=True)
        sys.exit(128 + control.signal)
    if not main:
        return

    # 3. The best model, reloaded and scored, and what the run leaves
    with memory_advice("in scoring the best model", LOWER_EVALUATION, trainer):
        finish(trainer, args, run, test_evaluator, steps_per_epoch=rounds * len(objectives))
    if trainer.args.push_to_hub:
        push(trainer.hub_model_id, run.directory, trainer.args.hub_token)
    print_summary(run, args)


@contextlib.contextmanager
def watched_output() -> Iterator[None]:
    """Have a run whose output nobody reads any more end like one that is told to stop: with a checkpoint."""
    out, err = WatchedOutput(sys.stdout), WatchedOutput(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


@contextlib.contextmanager
def memory_advice(where: str, remedy: str, trainer: MultiTaskTrainer | None = None) -> Iterator[None]:
    """Turn every library's "out of memory" into one line.

    Raises:
        InputError: memory is used up `where` it says; the remedy, and with a `trainer` how its run goes on.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if trainer:
            if trainer.evaluating:
                where, remedy = "in evaluation", LOWER_EVALUATION
            checkpoint = Path(trainer.last_checkpoint).name if trainer.last_checkpoint else "none yet"
            where += f", step {trainer.state.global_step}"
            remedy += f" with --resume {trainer.args.output_dir} (checkpoint: {checkpoint})"
            remedy += ", or begin anew with a lower --max_seq_length"
        raise InputError(f"out of memory {where} ({one_line(error, 100)}); {remedy}") from error


def finish(
    trainer: MultiTaskTrainer,
    args: argparse.Namespace,
    run: Run,
    test_evaluator: PairEvaluator,
    *,
    steps_per_epoch: int,
) -> None:
    """Save the best model, reload it from disk, score it on test, and write card, curves and facts."""
    go_on = f"free space, then go on with --resume {run.directory}"
    # 1. The best model, from disk
    say(f"writing the best model to {run.directory}")
    with writing(run.directory, go_on):
        save_model(trainer.model, run.directory)
    if problem := format_problem(trainer.model):
        print(f"NOTE: the model loads in sentence-transformers 6 and newer only ({problem})")
    model = load_model(
        str(run.directory),
        device=str(trainer.model.device),
        dtype=getattr(torch, args.dtype),
        fast_attention=not args.no_fast_attention,
        trust_remote_code=args.trust_remote_code,
    )
    step = trainer.state.best_global_step
    say(f"scoring the best model on KorSTS test, {len(test_evaluator.gold):,} pairs")
    scores = test_evaluator(model)
    row = {"epoch": step / steps_per_epoch, "step": step}
    test_evaluator.write_csv(run.directory, [row | {f"eval_{key}": value for key, value in scores.items()}])

    # 2. What the run leaves
    run.facts["test"] = test_evaluator.percent(scores)
    run.facts["best_round"] = step // len(trainer.batch_samplers)
    run.facts["best_dev_cosine_spearman"] = 100 * trainer.state.best_metric
    evaluations = [row for row in trainer.state.log_history if trainer.args.metric_for_best_model in row]
    run.facts["baseline_dev_cosine_spearman"] = 100 * evaluations[0][trainer.args.metric_for_best_model]
    run.facts["test_pairs"] = len(test_evaluator.gold)
    best = next(row for row in evaluations if row["step"] == step)
    dev = {key.removeprefix("eval_"): value for key, value in best.items() if key.startswith("eval_sts-dev_")}
    objectives = list(trainer.batch_samplers)
    trainer.state.best_model_checkpoint = None  # it goes, and would name a directory of this machine
    with writing(run.directory, go_on):
        write_model_card(trainer, args, run.facts, dev, run.directory)
        draw_training_curves(trainer.state.log_history, objectives, run.facts, run.directory / "training_curves.png")
        trainer.state.save_to_json(str(run.directory / "trainer_state.json"))
        run.finish()


def push(name: str, directory: Path, token: str | None) -> None:
    """Upload a finished run to the hub's repository `name`; InputError with the command that does it later."""
    try:
        upload_folder(repo_id=name, folder_path=directory, token=token, ignore_patterns=NOT_PUSHED)
    except (HfHubHTTPError, httpx.TransportError, RuntimeError) as error:  # RuntimeError: hf_xet's
        later = upload_command(name, directory)
        raise InputError(f"{directory}: finished, but not uploaded ({one_line(error)}); later: {later}") from error


def print_summary(run: Run, args: argparse.Namespace) -> None:
    """Print baseline and final test figures, where the model lies, and the commands that use it."""
    baseline, test = run.facts["baseline"], run.facts["test"]
    print("\nKorSTS test x100 (baseline -> final)")
    for name in test:
        print(f"  {name:<{max(map(len, test))}}  {baseline[name]:6.2f} -> {test[name]:6.2f}")
    sts = args.dataset_path / "KorSTS"
    if run.facts["best_dev_cosine_spearman"] <= run.facts["baseline_dev_cosine_spearman"]:
        print(f"NOTE: no evaluation beat the untrained model on dev ({run.facts['baseline_dev_cosine_spearman']:.2f})")
    print(f"best on dev in round {run.facts['best_round']}: {run.facts['best_dev_cosine_spearman']:.2f}")
    print(f"model:     {run.directory}")
    model = ["--model_name_or_path", short(run.directory)]
    if run.facts["arguments"].get("trust_remote_code"):
        model.append("--trust_remote_code")
    benchmark = ["python", short(REPOSITORY / "bin" / "benchmark.py"), *model, "--sts_dataset_path", str(sts)]
    print(f"benchmark: {shlex.join(benchmark)}")
    export = ["python", short(REPOSITORY / "bin" / "export_onnx.py"), *model, "--sts_dataset_path", str(sts)]
    export += ["--output_dir", f"models/{run.directory.name}"]  # two models never share a tokenizer.json
    print(f"export:    {shlex.join(export)}", flush=True)


def _resume_command(run: Run) -> str:
    launcher = ["python"]
    if processes := int(os.environ.get("LOCAL_WORLD_SIZE", "0")):
        launcher = ["torchrun", "--nproc_per_node", str(processes)]
    code = ["--trust_remote_code"] if run.facts["arguments"]["trust_remote_code"] else []  # never taken from a file
    return shlex.join([*launcher, sys.argv[0], "--resume", str(run.directory), *code])
