"""Rewrite the small files of a model folder so that older sentence-transformers (2.7 on) and other clients load it.

    python bin/make_compatible.py --model_name_or_path output/my-model

A training run leaves its folder like this already. Weights are not touched, embeddings stay the same. A model that
those files cannot describe is an error (exit status 2), and nothing is changed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kf_deberta.cli import Parser, check_trained, file_path, run, say


def main() -> None:
    """Rewrite one folder and print the files that were written."""
    # 1. Flags
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model_name_or_path", type=file_path, required=True, help="folder of a trained model")
    add("--trust_remote_code", action="store_true", help="run Python code from that folder")
    args = parser.parse_args()
    directory = args.model_name_or_path
    check_trained(directory)

    # 2. Load it as it is, write its files anew, put them in place
    say("loading libraries")  # 5 seconds and more
    from kf_deberta.model.load import load_model
    from kf_deberta.model.save import make_compatible

    model = load_model(str(directory), device="cpu", fast_attention=False, trust_remote_code=args.trust_remote_code)
    for file in make_compatible(model, directory):
        print(file)


if __name__ == "__main__":
    run(main)
