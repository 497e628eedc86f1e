"""Kill a training run at every file-system event in its output directory,
resume it, and compare what it leaves with the unbroken run.

    python dev/kill_walk.py --model_name_or_path BASE --dataset_path DATA \\
        --recipes sts --every 7

Weights, CSV files, figures and file names count. BASE should be tiny
(sample/build_base.py builds one). The exit status is 1 if a run differs.
"""

import collections
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from kf_deberta.errors import run
from kf_deberta.flags import Parser, count, file_path, model_name
from kf_deberta.training.resume import FINISHED

RECIPES = {"multi_task": ["--nli_batch_size", "16"], "nli": ["--batch_size", "16"], "sts": []}
RECIPES["recommended"] = ["--nli_batch_size", "16", "--sts_seeds", "1,2"]
FLAGS = ["--eval_steps", "2", "--save_steps", "1", "--logging_steps", "1", "--output_dir", "out"]


def main() -> int:
    """Walk over the events of each recipe."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model_name_or_path", type=model_name, required=True, help="tiny base encoder")
    add("--dataset_path", type=file_path, required=True, help="directory of KorNLI/ and KorSTS/")
    add("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="recipes")
    add("--every", type=count, default=1, help="kill at every N-th event only")
    args = parser.parse_args()
    import torch

    import kf_deberta.training.loop  # noqa: F401 (once, for all children)

    torch.set_num_threads(1)  # a forked child must not wait for its parent's threads
    base, data = (str(Path(place).resolve()) for place in (args.model_name_or_path, args.dataset_path))
    flags = ["--model_name_or_path", base, "--dataset_path", data, "--max_rounds", "3", *FLAGS]
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        return max(walk(recipe, flags + RECIPES[recipe], args.every) for recipe in args.recipes)


def walk(recipe: str, flags: list[str], every: int) -> int:
    """Kill the recipe at its events, print what became of it, and return 1 if a resumed run differs, else 0."""
    assert child(recipe, flags) == 0, Path("log").read_text(errors="replace")
    expected, events, ends = outcome(), int(Path("events").read_text()), collections.Counter()
    for number in range(1, events + 1, every):
        shutil.rmtree("out")
        assert child(recipe, flags, number) == -signal.SIGKILL
        status, end = child(recipe, ["--resume", "--output_dir", "out"]), "same"
        if status == 2 and "no unfinished run" in Path("log").read_text(errors="replace"):
            finished = list(Path("out").glob(f"*/{FINISHED}"))
            status, end = 0 if finished else child(recipe, flags), "nothing to resume"
        found = outcome() if status == 0 else {"exit status": status}
        if found != expected:
            end, keys = "different", sorted(expected.keys() | found.keys())
            wrong = [key for key in keys if expected.get(key, 0) != found.get(key, 0)]
            print(f"{recipe}: killed at event {number}: {', '.join(wrong)} differ", flush=True)
        ends[end] += 1
    shutil.rmtree("out")
    print(f"{recipe}: {events} events, {dict(ends)}", flush=True)
    return min(ends["different"], 1)


def child(*arguments) -> int:
    """Run `train` in a forked child and return its exit status."""
    process = multiprocessing.get_context("fork").Process(target=train, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def train(recipe: str, flags: list[str], kill_at: int = 0) -> None:
    """Run a recipe with its output in the file `log` and, unless it is killed, its number of events in `events`."""
    os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    module, output, seen = __import__(f"training_{recipe}"), os.path.abspath("out"), 0
    sys.argv = [module.__file__, *flags]

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        changes = writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
        # shutil.rmtree names files relative to a directory's descriptor
        by_descriptor = event in ("os.remove", "os.rmdir") and arguments[-1] not in (-1, None)
        if changes and (by_descriptor or os.path.abspath(str(arguments[0])).startswith(output)):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        run(module.main)
    finally:
        Path("events").write_text(str(seen))


def outcome() -> dict[str, object]:
    """Return what the newest run in out/ left: every file by name, with the content that a broken run must equal."""
    newest = max((path.parent for path in Path("out").glob(f"*/{FINISHED}")), key=lambda path: path.name[-19:])
    facts = json.loads((newest / FINISHED).read_text())
    figures = {name: facts[name] for name in ("baseline", "dev", "test", "stages")}
    compared = {file: file.suffix in (".safetensors", ".csv") for file in newest.rglob("*")}
    return figures | {str(f.relative_to(newest)): f.read_bytes() if whole else None for f, whole in compared.items()}


if __name__ == "__main__":
    run(main)
