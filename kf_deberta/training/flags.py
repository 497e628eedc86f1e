"""The flags of the training scripts: those that all recipes have, and the library's own beside them."""

import argparse
import difflib
import logging
import math
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import HfArgumentParser
from transformers.integrations import get_reporting_integration_callbacks

from kf_deberta.cli import InputError, one_line
from kf_deberta.model.hub import hub_unreachable
from kf_deberta.training.batches import check_divides

# set by the recipe; the value says which flag to use instead
RESERVED = {
    "per_device_train_batch_size": "--batch_size (--nli_batch_size and --sts_batch_size for multi-task)",
    "per_device_eval_batch_size": "--eval_batch_size",
    "gradient_accumulation_steps": "--nli_mini_batch_size (objectives must not share a step)",
    "num_train_epochs": "--num_epochs",
    "max_steps": "--max_rounds",
    "resume_from_checkpoint": "--resume",
    **dict.fromkeys(("eval_strategy", "eval_on_start", "eval_delay"), "--eval_steps"),
    **dict.fromkeys(("save_strategy", "save_total_limit", "save_only_model"), "--save_steps"),
    **dict.fromkeys(("batch_sampler", "multi_dataset_batch_sampler", "metric_for_best_model"), "nothing"),
    **dict.fromkeys(("load_best_model_at_end", "hub_strategy"), "nothing"),
    **dict.fromkeys(("auto_find_batch_size", "fsdp", "deepspeed"), "torchrun and --nli_mini_batch_size"),
    "warmup_ratio": "--warmup_steps with a number below 1",
    **dict.fromkeys(("logging_strategy", "logging_nan_inf_filter", "greater_is_better"), "nothing"),
}


def positive(kind: type) -> Callable[[str], float]:
    """Return an argparse type for numbers above 0."""

    def convert(text: str) -> float:
        if not 0 < (value := kind(text)) < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
        return value

    convert.__name__ = f"positive {kind.__name__}"  # argparse names the type in its error line
    return convert


def seed(text: str) -> int:
    """Return an argparse value that every random generator takes as a seed."""
    if not 0 <= (value := int(text)) < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..{2**32 - 1}")
    return value


def dimensions(text: str) -> list[int]:
    """Return an argparse value: descending distinct dimensions from text such as `768,512,256`."""
    return sorted({positive(int)(part) for part in text.split(",")}, reverse=True)


def recipe_parser(
    description: str, *, num_epochs: int, default_seed: int, output_prefix: str
) -> argparse.ArgumentParser:
    """Return a parser with the flags that all recipes have; each script adds its batch sizes."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s [flags] [any flag of SentenceTransformerTrainingArguments, such as --bf16 or --report_to]",
    )
    add = parser.add_argument
    add(
        "--model_name_or_path",
        metavar="M",
        default="kakaobank/kf-deberta-base",
        help="base encoder (default: %(default)s)",
    )
    add(
        "--dataset_path",
        metavar="DIR",
        default="kor-nlu-datasets",
        help="KorNLI/ and KorSTS/; fetched if absent (%(default)s)",
    )
    add(
        "--max_seq_length",
        metavar="N",
        type=positive(int),
        default=128,
        help="tokens a sentence is cut to (%(default)s)",
    )
    add("--num_epochs", metavar="N", type=positive(int), default=num_epochs, help="passes of the recipe (%(default)s)")
    add("--max_rounds", metavar="N", type=positive(int), help="stop after this many rounds; the schedule spans them")
    add(
        "--learning_rate",
        metavar="LR",
        type=positive(float),
        default=2e-5,
        help="peak of the linear schedule (%(default)s)",
    )
    add(
        "--eval_steps",
        metavar="N",
        type=positive(int),
        default=1000,
        help="rounds between evaluations in an epoch (%(default)s)",
    )
    add(
        "--eval_batch_size",
        metavar="N",
        type=positive(int),
        default=64,
        help="sentences encoded at once (%(default)s)",
    )
    add(
        "--save_steps",
        metavar="N",
        type=positive(int),
        help="rounds between checkpoints beside those at each evaluation",
    )
    add(
        "--logging_steps",
        metavar="N",
        type=positive(int),
        default=50,
        help="rounds between logged losses (%(default)s)",
    )
    add("--output_dir", metavar="DIR", default="output", help="parent of the run's directory (%(default)s)")
    add("--output_prefix", metavar="P", default=output_prefix, help="start of the run directory's name (%(default)s)")
    add(
        "--seed",
        metavar="N",
        type=seed,
        default=default_seed,
        help="triplets, order of batches, dropout (%(default)s)",
    )
    add(
        "--matryoshka_dims",
        metavar="D,D",
        type=dimensions,
        help="train and score prefixes too, e.g. 768,512,256,128,64",
    )
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights (%(default)s)")
    add("--no_fast_attention", action="store_true", help="use the library's slower DeBERTa attention")
    add("--trust_remote_code", action="store_true", help="run Python code from the model repository")
    add("--resume", nargs="?", const="newest", metavar="DIR", help="go on with DIR or the newest unfinished run")
    return parser


def parse_recipe(
    parser: argparse.ArgumentParser, **recipe: object
) -> tuple[argparse.Namespace, SentenceTransformerTrainingArguments]:
    """Parse the command line; `recipe` are training arguments that the user may override by flag.

    Raises:
        InputError: an unknown flag, or one that the recipe sets itself.
    """
    args, rest = parser.parse_known_args()
    for flag in rest:
        name = flag.removeprefix("--").split("=")[0].replace("-", "_")
        if flag.startswith("--") and name in vars(args):
            raise InputError(f"{flag}: write --{name}")
        if flag.startswith("--") and name in RESERVED:
            raise InputError(f"{flag}: the recipe sets this itself; use {RESERVED[name]}")
        if flag.startswith("--") and name in {"fp16", "fp16_full_eval"}:
            raise InputError(f"{flag}: its loss scaler skips steps, which shifts the schedules; use --bf16")
    fixed = {
        "output_dir": args.output_dir,
        "learning_rate": args.learning_rate,
        "num_train_epochs": args.num_epochs,
        "seed": args.seed,
        "per_device_eval_batch_size": args.eval_batch_size,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_strategy": "steps",
        "logging_nan_inf_filter": "False",
        "load_best_model_at_end": "True",
        "metric_for_best_model": "eval_sts-dev_spearman_cosine",
        "greater_is_better": "True",
        "hub_strategy": "end",
    }
    if any(flag.startswith("--push_to_hub") for flag in rest):
        if not any(flag.startswith("--hub_model_id") for flag in rest):
            raise InputError("--push_to_hub: name the repository with --hub_model_id OWNER/MODEL")
        if (reason := hub_unreachable()) is not None:
            raise InputError(f"--push_to_hub: the hub cannot be reached ({reason}); train without it and push later")
    if not torch.accelerator.is_available():  # else accelerate starts no process group without a GPU
        recipe["use_cpu"] = True
    flags = [text for name, value in recipe.items() for text in (f"--{name}", str(value))]
    flags += rest + [text for name, value in fixed.items() for text in (f"--{name}", str(value))]
    library_parser = HfArgumentParser(
        SentenceTransformerTrainingArguments, allow_abbrev=False, prog=parser.prog, usage=parser.usage
    )
    try:
        training_args, unknown = library_parser.parse_args_into_dataclasses(flags, return_remaining_strings=True)
        for callback in get_reporting_integration_callbacks(training_args.report_to):
            callback()  # fails now, not after the data are loaded, where its package is missing
    except (ValueError, ImportError, RuntimeError) as error:
        raise InputError(f"{shlex.join(rest)}: {one_line(error, 1000)}") from error
    if (schedule := training_args.lr_scheduler_type) in ("reduce_lr_on_plateau", "greedy"):
        raise InputError(f"--lr_scheduler_type {schedule}: not a schedule over rounds; use linear")
    for name, value in vars(args).items():
        if name in ("batch_size", "nli_batch_size", "sts_batch_size"):
            check_divides(f"--{name}", value, training_args.world_size)
    if training_args.process_index > 0:  # one process speaks for all
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    if unknown:
        near = difflib.get_close_matches(unknown[0].removeprefix("--"), vars(args), n=1)
        hint = f"did you mean --{near[0]}?" if near else f"{Path(sys.argv[0]).name} --help lists the flags"
        raise InputError(f"unknown flag {unknown[0]}; {hint}")
    training_args._n_gpu = min(training_args.n_gpu, 1)  # several GPUs: torchrun; DataParallel would change the batches
    return args, training_args
