"""Kill a training run at every file-system event in its output directory,
resume it, and compare what it leaves with the unbroken run.

Each run is a forked child; an audit hook in it counts the events (mkdir, open
for writing, rename, remove) and ends it by SIGKILL before event N. Compared
are weights, CSV files, figures and the names of all files.

    python dev/kill_walk.py --model_name_or_path BASE --dataset_path DATA
    python dev/kill_walk.py --model_name_or_path BASE --dataset_path DATA \\
        --recipes sts --every 7

BASE should be tiny (sample/build_base.py builds one). Prints one line per
recipe; exit status 1 if a run differs.
"""

import collections
import json
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
EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def main() -> int:
    """Walk over the events of each recipe."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model_name_or_path", type=model_name, required=True, help="tiny base encoder")
    add("--dataset_path", type=file_path, required=True, help="directory of KorNLI/ and KorSTS/")
    add("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES), help="recipes")
    add("--every", type=count, default=1, help="kill at every N-th event only")
    add("--max_rounds", type=count, default=3, help="rounds of each run, or of each stage")
    args = parser.parse_args()
    import torch
    from matplotlib.figure import Figure  # noqa: F401 (once, for all children)

    import kf_deberta.training.loop  # noqa: F401

    torch.set_num_threads(1)  # a forked child must not wait for its parent's threads
    base, data = (str(Path(place).resolve()) for place in (args.model_name_or_path, args.dataset_path))
    flags = ["--model_name_or_path", base, "--dataset_path", data, "--max_rounds", str(args.max_rounds), *FLAGS]
    differing = 0
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        for recipe in args.recipes:
            differing += walk(recipe, flags + RECIPES[recipe], args.every)
    return 1 if differing else 0


def walk(recipe: str, flags: list[str], every: int) -> int:
    """Kill the recipe at its events, print what became of it, and return how many resumed runs differ."""
    status, events = child(recipe, flags)
    assert status == 0, Path("log").read_text(errors="replace")[-3000:]
    expected = outcome()
    ends = collections.Counter()
    for number in range(1, events + 1, every):
        shutil.rmtree("out")
        assert child(recipe, flags, kill_at=number)[0] == -signal.SIGKILL
        end = "same"
        status, _ = child(recipe, ["--resume", "--output_dir", "out"])
        if status == 2 and "no unfinished run" in Path("log").read_text(errors="replace"):
            if not list(Path("out").glob(f"*/{FINISHED}")):
                status, _ = child(recipe, flags)
            status, end = 0, "nothing to resume"
        found = outcome() if status == 0 else {"exit status": status}
        if found != expected:
            wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key, 0) != found.get(key, 0))
            print(f"{recipe}: killed at event {number}: {', '.join(wrong)} differ", flush=True)
            end = "different"
        ends[end] += 1
        if number % 50 == 0:
            print(f"{recipe}: {number} of {events} events, {dict(ends)}", file=sys.stderr, flush=True)
    shutil.rmtree("out")
    print(f"{recipe}: {events} events, {dict(ends)}", flush=True)
    return ends["different"]


def child(recipe: str, flags: list[str], kill_at: int | None = None) -> tuple[int, int]:
    """Run a recipe in a forked child with its output in the file `log`; return its status and its number of events."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        module = __import__(f"training_{recipe}")
        sys.argv = [module.__file__, *flags]
        output, seen = os.path.abspath("out"), [0]

        def hook(event: str, arguments: tuple) -> None:
            if event == "open":
                writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                inside = writes and isinstance(arguments[0], str) and os.path.abspath(arguments[0]).startswith(output)
            else:  # shutil.rmtree names files relative to a directory's descriptor
                by_descriptor = event in ("os.remove", "os.rmdir") and arguments[-1] not in (-1, None)
                inside = event in EVENTS and (
                    by_descriptor or os.path.abspath(os.fspath(arguments[0])).startswith(output)
                )
            if inside:
                seen[0] += 1
                if seen[0] == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        status = 1
        try:
            run(module.main)
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            os.write(writer, str(seen[0]).encode())
            os._exit(status)
    os.close(writer)
    events = os.read(reader, 100)
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), int(events or 0)


def outcome() -> dict[str, object]:
    """Return what the newest run in out/ left: every file by name, with the content that a broken run must equal."""
    newest = max((path.parent for path in Path("out").glob(f"*/{FINISHED}")), key=lambda path: path.name[-19:])
    found: dict[str, object] = {}
    for file in newest.rglob("*"):
        name = str(file.relative_to(newest))
        found[name] = file.read_bytes() if file.suffix in (".safetensors", ".csv") else None
    facts = json.loads((newest / FINISHED).read_text())
    return found | {"figures": {name: facts[name] for name in ("baseline", "dev", "test", "stages")}}


if __name__ == "__main__":
    run(main)
