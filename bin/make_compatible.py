"""Rewrite the small files of a model folder so that older sentence-transformers (2.7 on) and other clients load it.

    python bin/make_compatible.py --model_name_or_path output/my-model

A training run leaves its folder like this already. Weights are not touched, embeddings stay the same. A model that
those files cannot describe is an error (exit status 2), and nothing is changed.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kf_deberta.cli import InputError, run


def main() -> None:
    """Load the folder, write its files anew, put them in place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, metavar="DIR", help="folder of a trained model")
    directory = Path(parser.parse_args().model_name_or_path)
    if not (directory / "modules.json").is_file():
        raise InputError(f"{directory}: no modules.json in it; give the folder of a sentence-embedding model")

    from kf_deberta.model.load import load_model
    from kf_deberta.model.save import make_compatible

    for path in make_compatible(load_model(str(directory), device="cpu", fast_attention=False), directory):
        print(path)


if __name__ == "__main__":
    run(main)
