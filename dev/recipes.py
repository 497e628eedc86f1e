"""Compare recipes on one base and data: every recipe and seed through the training scripts, then one table.

A recipe is a list of stages, each a training script with its flags; a stage starts from the model of the one before.
A stage of several runs, joined by +, ends with bin/average.py. Finished runs are kept (with other flags: refused), an
unfinished one is resumed. Choose by dev; test is shown for all.

    python dev/recipes.py                                      # all candidates, three seeds, the real base
    python dev/recipes.py --recipes published cosent --seeds 1 2 3 --flags "--bf16 --max_rounds 719"
    python dev/recipes.py --add "short: training_sts.py --num_epochs 1" --recipes short
    python dev/recipes.py stage training_multi_task.py --one_adamw                # one stage by itself

An ingredient that has not won is no flag of the scripts but a word that a stage understands here: --one_adamw (the
objectives share their moments).
"""

import contextlib
import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
from kf_deberta.cli import InputError, Parser, file_path, model_name, read_json, run, seed, write_atomically

PUBLISHED = "published"
COSENT = "training_sts.py --sts_loss cosent --batch_size 32 --learning_rate 4e-5"
RECIPES = {
    PUBLISHED: ["training_multi_task.py"],
    "one_adamw": ["training_multi_task.py --one_adamw"],
    "half": ["training_multi_task.py --num_epochs 5"],
    "cosent": [f"{COSENT} --num_epochs 2"],
    "nli_sts": ["training_nli.py", "training_sts.py --num_epochs 1"],
    "best": ["training_nli.py", " + ".join(f"{COSENT} --num_epochs 2 --normalize --seed {n}" for n in (1, 2, 3))],
}  # best: ./bin/train.sh best
RUN_FILE, COMMAND_FILE = "training_arguments.json", "command.json"
COST_FILE, SCORES_FILE = "cpu_seconds.json", "similarities.npz"
RESAMPLES = 1000


def run_stage(words: list[str]) -> None:
    """Run a training script in this process, with the ingredient among its flags that only this file knows."""
    script, *flags = words
    if "--one_adamw" in flags:
        from kf_deberta.training.trainer import PerObjectiveAdamW

        flags.remove("--one_adamw")
        turn_to = PerObjectiveAdamW.turn_to
        PerObjectiveAdamW.turn_to = lambda self, objective: turn_to(self, "shared")
    sys.argv = [str(REPOSITORY / script), *flags]
    runpy.run_path(sys.argv[0], run_name="__main__")


def train_recipe(stages: list[str], base: str, common: list[str], folder: Path) -> tuple[Path, dict, float]:
    """Train what is not trained yet; the last stage's model, its facts, and CPU seconds of all stages."""
    model, outputs = Path(base), []
    for number, stage in enumerate(stages):
        runs, parts = [], stage.split(" + ")
        for part, text in enumerate(parts):
            output = folder / (f"stage{number}" if len(parts) == 1 else f"stage{number}.{part}")
            script, *flags = shlex.split(text)
            words = [script, *common, *flags, "--model_name_or_path", str(model), "--output_dir", str(output)]
            found, file = _run_of(output), output / COMMAND_FILE
            if found and file.exists() and (begun := json.loads(file.read_text(encoding="utf-8"))) != words:
                raise InputError(f"{output}: begun with {shlex.join(begun)}; delete it, or give another --output_dir")
            if found is None or found[1]["status"] != "finished":
                with write_atomically(file) as temporary:
                    temporary.write_text(json.dumps(words), encoding="utf-8")
                _call(output, __file__, "stage", *words, *(["--resume"] if found else []))
            runs.append(_run_of(output))
            outputs.append(output)
        model, facts = runs[0]
        if len(parts) > 1:
            model = folder / f"stage{number}"
            if not model.exists():
                data = ["--dataset_path", common[common.index("--dataset_path") + 1]]
                words = [*data, "--model_name_or_path", *(str(run) for run, _ in runs), "--output_dir", str(model)]
                _call(model, str(REPOSITORY / "bin" / "average.py"), *words)
            scores = read_json(model / "average.json", {"dev_cosine_spearman": list})["dev_cosine_spearman"]
            facts = {"best_dev_cosine_spearman": max(score for _, score in scores)}
            outputs.append(model)
    return model, facts, sum(_spent(output) for output in outputs)


def _call(output: Path, *words: str) -> None:
    """Run a script that writes `output`, and add its CPU seconds to those in there."""
    start = _child_seconds()
    print(f"== {shlex.join(words)}", file=sys.stderr)
    process = subprocess.Popen([sys.executable, *words], stdout=sys.stderr)
    while process.returncode is None:
        with contextlib.suppress(KeyboardInterrupt):  # the script got it too, and writes a checkpoint
            process.wait()
    if output.exists():
        (output / COST_FILE).write_text(json.dumps(_spent(output) + _child_seconds() - start))
    if status := process.returncode:
        raise InputError(f"{output.parent}: {output.name} ended with status {status}; start again to go on")


def _spent(output: Path) -> float:
    """CPU seconds that `output` took so far."""
    return json.loads((output / COST_FILE).read_text()) if (output / COST_FILE).exists() else 0.0


def _child_seconds() -> float:
    import resource  # Windows has none

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _run_of(output: Path) -> tuple[Path, dict] | None:
    """The newest run below a stage's folder, and its facts."""
    files = sorted(output.glob(f"*/{RUN_FILE}"), key=lambda file: file.parent.name[-19:])
    return (files[-1].parent, read_json(files[-1], {"status": str})) if files else None


def similarities_of(model: Path, file: Path, pairs: dict[str, list]) -> np.ndarray:
    """Four similarities of every test pair, (4, pairs), kept in `file`."""
    from kf_deberta.evaluation.scoring import encode_pairs, encode_sorted, pair_similarities
    from kf_deberta.model.load import load_model

    if not file.exists():
        encoder = load_model(str(model))
        columns = pairs["sentence1"], pairs["sentence2"]
        encoded = encode_pairs(lambda texts: encode_sorted(encoder, texts, 64), *columns)
        np.savez(file, similarities=pair_similarities(encoded))
    return np.load(file)["similarities"]


def table(results: dict[str, list[dict]], gold: np.ndarray) -> str:
    """Markdown: means over the seeds, and the difference from the published recipe with its paired interval.

    results: for each recipe one entry a seed with "dev", "seconds" and "similarities" (4, pairs). The interval holds
    95% of the resamples of the test pairs; in each the figures of all seeds are averaged before the difference.
    """
    from kf_deberta.evaluation.bootstrap import interval, resampled_figures
    from kf_deberta.evaluation.scoring import FIGURES, score

    cosine = FIGURES.index("cosine_spearman")
    figures, samples = {}, {}
    for name, entries in results.items():
        values = [entry["similarities"] for entry in entries]
        figures[name] = 100 * np.array([list(score(value, gold).values()) for value in values])
        drawn = [resampled_figures(value, gold, RESAMPLES, 0)[cosine] for value in values]
        samples[name] = 100 * np.mean(drawn, axis=0)
    short = [figure.replace("_pearson", " P").replace("_spearman", " S") for figure in FIGURES]
    lines = [f"| recipe | dev | {' | '.join(short)} | cosine S by seed | minus {PUBLISHED}, 95% | CPU min |"]
    lines.append("|:--|" + "--:|" * 9 + ":--|:--|--:|")
    mean = {
        name: {key: np.mean([entry[key] for entry in entries]) for key in ("dev", "seconds")}
        for name, entries in results.items()
    }
    for name in sorted(results, key=lambda name: -mean[name]["dev"]):
        difference = "-"
        if name != PUBLISHED and PUBLISHED in results:
            middle = figures[name][:, cosine].mean() - figures[PUBLISHED][:, cosine].mean()
            low, high = interval(samples[name] - samples[PUBLISHED])
            difference = f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"
        cells = [f"{value:.2f}" for value in (mean[name]["dev"], *figures[name].mean(axis=0))]
        seeds = ", ".join(f"{value:.2f}" for value in figures[name][:, cosine])
        lines.append(f"| {name} | {' | '.join(cells)} | {seeds} | {difference} | {mean[name]['seconds'] / 60:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, print the table after every seed."""
    if sys.argv[1:2] == ["stage"]:
        return run_stage(sys.argv[2:])
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model_name_or_path", type=model_name, default="kakaobank/kf-deberta-base", help="base encoder")
    add("--dataset_path", type=file_path, default=Path("kor-nlu-datasets"), help="folder of KorNLI/ and KorSTS/")
    add("--recipes", nargs="+", help="names of recipes (default: all)")
    add("--add", nargs="+", default=[], metavar="RECIPE", help="more recipes, each 'name: stage && stage'")
    add("--seeds", nargs="+", type=seed, default=[1, 2, 3], help="seeds of every recipe")
    add("--flags", default="", help="for every stage, in one word: --flags=--bf16; its own come after them")
    add("--output_dir", type=file_path, default=Path("output/recipes"), help="where the runs and the table go")
    args = parser.parse_args()
    recipes = dict(RECIPES)
    for text in args.add:
        name, _, stages = text.partition(":")
        recipes[name.strip()] = stages.split("&&")
    if unknown := set(args.recipes or ()) - set(recipes):
        raise InputError(f"--recipes {' '.join(sorted(unknown))}: not among {', '.join(recipes)}")

    seeds, names = list(dict.fromkeys(args.seeds)), list(dict.fromkeys(args.recipes or recipes))
    try:
        flags = shlex.split(args.flags)
        stages = [shlex.split(part) for name in names for stage in recipes[name] for part in stage.split(" + ")]
    except ValueError as error:
        raise InputError(f"--add, --flags: {error}") from error
    if wrong := [words for words in stages if not words or not (REPOSITORY / words[0]).is_file()]:
        raise InputError(f"--add: a stage is a training script and its flags, not '{shlex.join(wrong[0])}'")

    from data_util import load_kor_sts

    dataset = load_kor_sts(args.dataset_path / "KorSTS" / "sts-test.tsv")
    pairs, gold = {name: dataset[name][:] for name in ("sentence1", "sentence2")}, np.array(dataset["score"][:])
    results: dict[str, list[dict]] = {}
    for number in seeds:
        common = [*flags, "--dataset_path", str(args.dataset_path), "--seed", str(number)]
        for name in names:
            folder = (args.output_dir / name / f"seed{number}").resolve()
            model, facts, seconds = train_recipe(recipes[name], args.model_name_or_path, common, folder)
            entry = {"seed": number, "dev": facts["best_dev_cosine_spearman"], "seconds": seconds}
            results.setdefault(name, []).append(
                entry | {"similarities": similarities_of(model, model / SCORES_FILE, pairs)}
            )
        text = table(results, gold)
        (args.output_dir / "table.md").write_text(text + "\n", encoding="utf-8")
        print(text, flush=True)


if __name__ == "__main__":
    run(main)
