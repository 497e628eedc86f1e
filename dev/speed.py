"""Speed of training, encoding and data loading against the ordinary way, measured here and now, ratios first.

    python dev/speed.py train --layers 2 --rounds 3
    python dev/speed.py encode --threads 4
    python dev/speed.py load

Each subcommand has flags of its own: python dev/speed.py train --help.
"""

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from kf_deberta.cli import run

SUBCOMMANDS = {
    "train": "a training step of each objective: library eager against the fast attention",
    "encode": "sentence embeddings: torch eager, torch fast, ONNX float32 and int8",
    "load": "KorNLI triplets: data_util against a plain loader",
}


def main() -> None:
    """Run the subcommand named first; only its module is imported."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="subcommand", required=True, metavar="{train,encode,load}")
    chosen = sys.argv[1] if len(sys.argv) > 1 else None
    for name, text in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, help=text, description=text)
        if name == chosen:
            module = importlib.import_module(f"speed_{name}")
            module.add_arguments(subparser)
    args = parser.parse_args()
    module.run(args)


if __name__ == "__main__":
    run(main)
