"""Compare recipes on one base and data: each with each seed, then one table.

Finished runs are kept and an unfinished one goes on. Choose by dev; test is
shown for all.

    python dev/recipes.py                # published and recommended, 3 seeds
    python dev/recipes.py --flags=--bf16 --seeds 1 2 3 --against published2 \\
        --add "published2: training_multi_task.py --num_epochs 2"
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from kf_deberta.errors import InputError, run
from kf_deberta.flags import DATASET_PATH, Parser, Several, file_path, model_name, seed
from kf_deberta.training.resume import FINISHED, STARTED

RECIPES = {"published": "training_multi_task.py", "recommended": "training_recommended.py"}


def train(words: list[str], folder: Path) -> tuple[Path, float]:
    """Run a training script, or go on with it; returns the directory of its run and its CPU seconds."""
    cost = folder / "cpu_seconds.json"
    spent = json.loads(cost.read_text()) if cost.exists() else 0.0
    started = sorted(folder.glob(f"*/{STARTED}"))
    if not started or not started[-1].with_name(FINISHED).exists():
        resume = ["--resume", str(started[-1].parent)] if started else []
        command, before = [*words, "--output_dir", str(folder), *resume], sum(os.times()[2:4])
        print(f"== {shlex.join(command)}", file=sys.stderr)
        status = subprocess.run([sys.executable, *command], stdout=sys.stderr).returncode
        spent += sum(os.times()[2:4]) - before  # of child processes
        cost.write_text(json.dumps(spent))
        if status:
            raise InputError(f"{folder}: ended with status {status}; start again to go on")
    return sorted(folder.glob(f"*/{FINISHED}"))[-1].parent, spent


def main() -> None:
    """Train what is missing, print the table after every seed."""
    # 1. Flags
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--recipes", nargs="+", metavar="NAME", help="names of recipes (default: all)")
    add("--add", nargs="+", default=[], metavar="RECIPE", help="others, each 'name: script flags' (default: none)")
    add("--against", default="published", metavar="NAME", help="recipe that the others are compared with")
    add("--seeds", type=seed, action=Several, default=[1, 2, 3], help="seeds of every recipe")
    add("--model_name_or_path", type=model_name, default="kakaobank/kf-deberta-base", help="base encoder")
    add("--dataset_path", type=file_path, default=DATASET_PATH, help="directory of KorNLI/ and KorSTS/")
    add("--flags", default="", metavar="FLAGS", help="for every recipe, in one word: --flags=--bf16 (default: none)")
    add("--output_dir", type=file_path, default=Path("output/recipes"), help="directory of the runs and the table")
    args = parser.parse_args()
    recipes = RECIPES | {name.strip(): words for name, _, words in (text.partition(":") for text in args.add)}
    recipes = {name: recipes[name] for name in args.recipes or recipes}
    import numpy as np

    from data_util import load_kor_sts
    from kf_deberta.evaluation.bootstrap import interval, resampled_figures
    from kf_deberta.evaluation.report import markdown
    from kf_deberta.evaluation.scoring import FIGURES, encode_pairs, pair_similarities, score
    from kf_deberta.model.load import load_model

    pairs = load_kor_sts(args.dataset_path / "KorSTS" / "sts-test.tsv")
    gold, cosine = np.array(pairs["score"][:]), FIGURES.index("cosine_spearman")
    results: dict[str, list[dict]] = {}
    for number in args.seeds:
        for name, line in recipes.items():
            # 2. One run, and the similarities that its model gives the test pairs
            folder = args.output_dir.absolute() / name / f"seed{number}"
            script, *flags = shlex.split(line)
            common = ["--dataset_path", str(args.dataset_path), "--model_name_or_path", args.model_name_or_path]
            words = [str(REPOSITORY / script), *common, "--seed", str(number), *shlex.split(args.flags), *flags]
            model, seconds = train(words, folder)
            saved = folder / "similarities.npy"
            if not saved.exists():
                encoded = encode_pairs(load_model(str(model)).encode, pairs["sentence1"][:], pairs["sentence2"][:])
                np.save(saved, pair_similarities(encoded))
            similarities = np.load(saved)
            facts = json.loads((model / FINISHED).read_text(encoding="utf-8"))
            row = {"dev": 100 * facts["dev"]["cosine_spearman"], "minutes": seconds / 60}
            row["figures"] = 100 * np.array(list(score(similarities, gold).values()))
            row["samples"] = 100 * resampled_figures(similarities, gold, 1000, 0)[cosine]
            results.setdefault(name, []).append(row)

        # 3. Means over the seeds so far; in each resample the seeds are averaged before the difference is taken
        mean = {n: {key: np.mean([r[key] for r in rows], axis=0) for key in rows[0]} for n, rows in results.items()}
        table = []
        for name, row in sorted(mean.items(), key=lambda item: -item[1]["dev"]):
            difference = ""
            if name != args.against and (other := mean.get(args.against)):
                low, high = interval(row["samples"] - other["samples"])
                middle = row["figures"][cosine] - other["figures"][cosine]
                difference = f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"
            figures = [f"{value:.2f}" for value in (row["dev"], *row["figures"])]
            by_seed = ", ".join(f"{one['figures'][cosine]:.2f}" for one in results[name])
            table.append([name, *figures, by_seed, difference, f"{row['minutes']:.1f}"])
        header = ["recipe", "dev", *FIGURES, "cosine S by seed", f"minus {args.against}, 95%", "CPU min"]
        (args.output_dir / "table.md").write_text(markdown(header, table) + "\n", encoding="utf-8")
        print(markdown(header, table), flush=True)


if __name__ == "__main__":
    run(main)
