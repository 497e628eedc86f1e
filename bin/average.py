"""Average the weights of trained models, and keep the average where it is better than each of them on KorSTS dev.

    python bin/average.py --model_name_or_path output/my-sts-1 output/my-sts-2 output/my-sts-3 --output_dir output/mean

The models are runs of one base and one script that differ in their seed. Where one of them is the best, that one is
taken as it is. Either way the new folder loads like any other; average.json in it holds the figures.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kf_deberta.cli import (
    InputError,
    Parser,
    check_input_file,
    check_trained,
    check_writable,
    count,
    file_path,
    read_json,
    run,
    say,
    writing,
)
from kf_deberta.data.download import DEFAULT_PATH


def main() -> None:
    """Score every model and the average, and write the best."""
    # 1. Flags
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model_name_or_path", type=file_path, nargs="+", required=True, help="folders of two or more trained models")
    add("--dataset_path", type=file_path, default=DEFAULT_PATH, help="folder of KorSTS/")
    add("--eval_batch_size", type=count, default=64, help="sentences per batch; no effect on the result")
    add("--trust_remote_code", action="store_true", help="run Python code from these folders")
    add("--output_dir", type=file_path, required=True, help="folder of the result; must not exist yet")
    args = parser.parse_args()
    folders, output = args.model_name_or_path, args.output_dir
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise InputError("--model_name_or_path: give two or more different folders")
    for folder in folders:
        check_trained(folder)
        run_file = folder / "training_arguments.json"
        if run_file.is_file() and read_json(run_file, {"status": str})["status"] != "finished":
            raise InputError(f"{folder}: this run is not finished; go on with it by --resume")
    dev_file = args.dataset_path / "KorSTS" / "sts-dev.tsv"
    check_input_file(dev_file)
    if os.path.lexists(output):
        raise InputError(f"{output}: exists; give another --output_dir or delete it")
    check_writable(output.parent)
    output.parent.mkdir(parents=True, exist_ok=True)

    # 2. Dev pairs, models
    say("loading libraries")
    import numpy as np

    from data_util import load_kor_sts
    from kf_deberta.data.official import BLOB_IDS, git_blob_id
    from kf_deberta.evaluation.evaluator import PairEvaluator
    from kf_deberta.evaluation.scoring import check_gold
    from kf_deberta.model.average import average_card, average_weights, check_kind
    from kf_deberta.model.load import load_model
    from kf_deberta.model.save import save_model

    dev = load_kor_sts(dev_file)
    check_gold(np.array(dev["score"]), dev_file)
    evaluator = PairEvaluator(dev, "sts-dev", args.eval_batch_size)
    models = [load_model(str(folder), trust_remote_code=args.trust_remote_code) for folder in folders]
    check_kind(models, [str(folder) for folder in folders])

    # 3. Scores of each and of their average
    shared = os.path.commonpath([folder.resolve() for folder in folders])
    names = [os.path.relpath(folder.resolve(), shared) for folder in folders] + ["the average of their weights"]
    scores = []
    for name, model in zip(names, models, strict=False):
        scores.append(100 * evaluator(model)[evaluator.primary_metric])
        print(f"{scores[-1]:.2f}  {name}", flush=True)
    model = average_weights(models)
    scores.append(100 * evaluator(model)[evaluator.primary_metric])
    print(f"{scores[-1]:.2f}  {names[-1]}", flush=True)
    best = int(np.argmax(scores))
    if best < len(folders):
        model = load_model(str(folders[best]), trust_remote_code=args.trust_remote_code)

    # 4. The best, in a folder that appears whole
    rows = list(zip(names, scores, strict=True))
    official = git_blob_id(dev_file) == BLOB_IDS["KorSTS/sts-dev.tsv"]
    folder = os.path.relpath(output) if output.resolve().is_relative_to(Path.cwd()) else output.name
    trust = args.trust_remote_code
    card = average_card(folder, names[best], rows, dev_file.name, official=official, trust=trust)
    with writing(output), tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as work:
        unfinished = Path(work) / output.name
        save_model(model, unfinished)
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        facts = json.dumps({"kept": names[best], "dev_cosine_spearman": rows}, indent=2, ensure_ascii=False)
        (unfinished / "average.json").write_text(facts + "\n", encoding="utf-8")
        unfinished.rename(output)
    print(f"kept: {names[best]}\nmodel: {output}", flush=True)


if __name__ == "__main__":
    run(main)
