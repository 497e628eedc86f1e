"""Average the weights of trained models, and keep the average where it is better than each of them on KorSTS dev.

    python bin/average.py --model_name_or_path output/my-sts-1 output/my-sts-2 output/my-sts-3 --output_dir output/mean

The models are runs of one base and one script that differ in their seed. Where one of them is the best, that one is
copied. Either way the new folder loads like any other; average.json in it holds the figures.
"""

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kf_deberta.cli import InputError, Parser, check_writable, count, escape_markdown, file_path, run, say, writing
from kf_deberta.data.download import DEFAULT_PATH

CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
language: ko
---

# {name}

A sentence-embedding model: the mean of the weights of models that were trained from the same start. KorSTS dev, cosine
Spearman x100:

| model | |
|:--|--:|
{table}
The training data, [KorNLI and KorSTS](https://github.com/kakaobrain/kor-nlu-datasets), are licensed under
[CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/).
"""


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
    if missing := [folder for folder in folders if not (folder / "modules.json").is_file()]:
        raise InputError(f"{missing[0]}: no modules.json in it; give the folder of a sentence-embedding model")
    if output.exists():
        raise InputError(f"{output}: exists; give another --output_dir or delete it")
    check_writable(output.parent)

    # 2. Dev pairs, models
    say("loading libraries")
    import numpy as np

    from data_util import load_kor_sts
    from kf_deberta.evaluation.evaluator import PairEvaluator
    from kf_deberta.evaluation.scoring import check_gold
    from kf_deberta.model.average import average_weights
    from kf_deberta.model.load import load_model
    from kf_deberta.model.save import save_model

    dev_file = args.dataset_path / "KorSTS" / "sts-dev.tsv"
    dev = load_kor_sts(dev_file)
    check_gold(np.array(dev["score"]), dev_file)
    evaluator = PairEvaluator(dev, "sts-dev", args.eval_batch_size)
    models = [load_model(str(folder), trust_remote_code=args.trust_remote_code) for folder in folders]

    # 3. Scores of each and of the average
    scores = {}
    for folder, model in zip(folders, models, strict=True):
        scores[str(folder)] = 100 * evaluator(model)[evaluator.primary_metric]
        print(f"{scores[str(folder)]:.2f}  {folder}", flush=True)
    model = average_weights(models, list(scores))
    scores["average"] = 100 * evaluator(model)[evaluator.primary_metric]
    print(f"{scores['average']:.2f}  average", flush=True)
    best = max(scores, key=scores.get)

    # 4. The best, in a folder that appears whole
    unfinished = output.with_name(f".{output.name}-unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with writing(output):
        rows = [[Path(name).name, score] for name, score in scores.items()]
        if best == "average":
            save_model(model, unfinished)
            table = "".join(f"| {escape_markdown(name)} | {score:.2f} |\n" for name, score in rows)
            (unfinished / "README.md").write_text(CARD.format(name=output.name, table=table), encoding="utf-8")
        else:
            shutil.copytree(best, unfinished)
        facts = json.dumps({"kept": Path(best).name, "dev_cosine_spearman": rows}, indent=2, ensure_ascii=False)
        (unfinished / "average.json").write_text(facts + "\n", encoding="utf-8")
        unfinished.rename(output)
    print(f"kept: {best}\nmodel: {output}", flush=True)


if __name__ == "__main__":
    run(main)
