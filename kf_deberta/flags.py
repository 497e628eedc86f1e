"""Flag types and the flags that several commands share; imported by commands only, and nothing slow to import."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path

from kf_deberta.errors import InputError

DATASET_PATH = Path("kor-nlu-datasets")


class Several(argparse.Action):
    """A list of values, separated by commas or blanks, without repetitions: `--dims 768,256` or `--dims 768 256`."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Join the lists of values, one for each word."""
        setattr(namespace, self.dest, list(dict.fromkeys(value for part in values for value in part)))


class Parser(argparse.ArgumentParser):
    """The flags of a command. Its docstring is the help, and a wrong flag is an InputError of one line."""

    def __init__(self, doc: str) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=doc, formatter_class=formatter, allow_abbrev=False, usage="%(prog)s [flags]")

    def add_argument(self, *names, **options) -> argparse.Action:
        """Add a flag as argparse does, its default shown in the help."""
        default, text = options.get("default"), options.get("help", "")
        if options.get("action") == "store_true":
            options["help"] = f"{text} (default: off)"
        elif "(default" not in text and default not in (None, argparse.SUPPRESS):
            shown = ",".join(map(str, default)) if isinstance(default, list) else "%(default)s"
            options["help"] = f"{text} (default: {shown})"
        if hasattr(options.get("type"), "metavar"):
            options.setdefault("metavar", options["type"].metavar)
        if options.get("action") is Several:
            kind = options["type"]
            options |= {"nargs": "+", "type": lambda text: [kind(word) for word in text.split(",") if word]}
        return super().add_argument(*names, **options)

    def error(self, message: str) -> None:
        """Raise the message; argparse would print all flags above it."""
        raise InputError(f"{message.removeprefix('argument ')}; {self.prog} --help lists the flags")


def number(kind: type, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf) -> Callable:
    """Return an argparse type for finite numbers of ASCII digits from `least`, or above `above`, up to `most`."""
    name = "a whole number" if kind is int else "a number"
    name += f" from {least}" if least > -math.inf else f" above {above}" if above > -math.inf else ""
    name += f" to {most}" if most < math.inf else ""

    def convert(text: str) -> float:
        try:
            value = kind(text) if text.isascii() and "_" not in text else math.nan
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < least or value <= above or value > most:
            raise argparse.ArgumentTypeError(f"must be {name}, not {text}")
        return value

    convert.metavar = "N" if kind is int else "X"
    return convert


def model_name(text: str) -> str:
    """Return a hub name, or a path with ~ expanded."""
    return os.path.expanduser(text)


def file_path(text: str) -> Path:
    """Return a path with ~ expanded."""
    return Path(text).expanduser()


def warmup(text: str) -> float:
    """Return a share of all rounds, below 1, or a whole number of rounds."""
    value = number(float, least=0)(text)
    if value >= 1 and value % 1:
        raise argparse.ArgumentTypeError(f"must be a share below 1, or a whole number of rounds, not {text}")
    return value


count = number(int, least=1)
seed = number(int, least=0, most=2**32 - 1)
positive = number(float, above=0)
not_negative = number(float, least=0)
model_name.metavar, file_path.metavar, warmup.metavar = "MODEL", "PATH", "X"


def add_run_flags(parser: Parser, output_prefix: str) -> None:
    """Add the flags that all training scripts share: base model, data, output, speed."""
    add = parser.add_argument
    add("--model_name_or_path", type=model_name, default="kakaobank/kf-deberta-base", help="base encoder")
    add("--revision", metavar="R", help="commit, branch or tag of a hub model (default: main)")
    add("--dataset_path", type=file_path, default=DATASET_PATH, help="directory of KorNLI/ and KorSTS/")
    add("--download", action="store_true", help="clone the data to --dataset_path, as is done for its default")
    add("--output_dir", type=file_path, default=Path("output"), help="parent of the run's directory")
    add("--output_prefix", default=output_prefix, metavar="TEXT", help="start of the name of the run's directory")
    resume = "go on with the run in this directory, or with the newest one that is unfinished"
    add("--resume", nargs="?", const="newest", type=model_name, metavar="RUN", help=resume)
    add("--save_steps", type=count, help="rounds between checkpoints (default: one at each evaluation)")
    add("--logging_steps", type=count, default=50, help="rounds between logged losses")
    add("--eval_batch_size", type=count, default=64, help="sentences per batch in evaluation")
    add("--bf16", action="store_true", help="train with bfloat16 autocast; weights and evaluation stay float32")
    add("--tf32", action="store_true", help="multiply matrices in TF32 on NVIDIA GPUs from Ampere on")
    add("--gradient_checkpointing", action="store_true", help="less memory for activations, slower")
    add("--torch_compile", action="store_true", help="compile the encoder with torch.compile")
    add("--dataloader_num_workers", type=number(int, least=0), default=0, help="processes that tokenize per objective")
    add("--report_to", nargs="+", choices=["tensorboard", "wandb"], help="trackers to log to (default: none)")
    add("--run_name", metavar="TEXT", help="name of the run in the trackers (default: its directory)")


def add_model_flags(parser: Parser, **model_options) -> None:
    """Add the flags that name a trained model; `model_options` are those of --model_name_or_path."""
    add = parser.add_argument
    add("--model_name_or_path", **{"type": model_name, "help": "hub name or directory"} | model_options)
    add("--revision", metavar="R", help="commit, branch or tag of a hub model (default: main)")
    add("--pooling", choices=["mean", "cls"], help="pooling without modules.json (default: as published, else mean)")
