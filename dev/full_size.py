"""One run of the multi-task script at its real size, measured: a random base of kakaobank/kf-deberta-base's shape.

The base has 130,000 pieces, 12 layers and a fill-mask pytorch_model.bin of 744 MB, as the hub serves it; KorSTS is the
real one, KorNLI synthetic with the real 942,854 rows. Three rounds: SIGTERM in the second, then --resume.

    python dev/full_size.py --dataset_path kor-nlu-datasets --folder /tmp/full-size
    python dev/full_size.py --folder /tmp/full-size -- --nli_mini_batch_size 32    # flags after -- go to the script
"""

import argparse
import functools
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "sample"))
from kf_deberta.cli import InputError, run

REPOSITORY = Path(__file__).resolve().parent.parent
PIECES, REAL_PIECES = 130_000, 32_000  # of the vocabulary; those that real text uses
# 10 epochs of 719 rounds: dev before training and after each epoch, with a checkpoint; test before and after
PUBLISHED = {
    "step nli": 7190,
    "step sts": 7190,
    "evaluation sts-dev": 11,
    "evaluation sts-test": 1,  # the second is in "start and finish"
    "checkpoint written": 10,
}
ROUNDS, STEPS_BEFORE_THE_SIGNAL = 3, 4


def build_base(folder: Path, texts: list[str]) -> None:
    """Write a random fill-mask checkpoint in the layout of kakaobank/kf-deberta-base."""
    import torch
    from transformers import BertTokenizer, DebertaV2ForMaskedLM

    from build_base import SPECIAL_TOKENS, train_vocabulary
    from speed_model import base_model

    pieces = sorted(set(train_vocabulary(texts, REAL_PIECES)) - set(SPECIAL_TOKENS))
    pieces = [*SPECIAL_TOKENS, *pieces]
    pieces += [f"[unused{number}]" for number in range(len(pieces), PIECES)]
    config = base_model(1, 8, 0).config
    config.vocab_size, config.num_hidden_layers = PIECES, 12
    torch.manual_seed(0)
    model = DebertaV2ForMaskedLM(config)
    folder.mkdir(parents=True)
    config.architectures = ["DebertaV2ForMaskedLM"]
    config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    BertTokenizer(vocab=vocabulary, do_lower_case=False, model_max_length=512).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")


def build_data(folder: Path, korsts: Path, texts: list[str]) -> None:
    """Copy KorSTS, and write KorNLI files of the real numbers of rows out of the words of `texts`."""
    from speed_load import ROWS, write_synthetic_kor_nli

    for name in ("KorSTS", "KorNLI"):
        (folder / name).mkdir(parents=True)
    for path in korsts.glob("*.tsv"):
        shutil.copyfile(path, folder / "KorSTS" / path.name)
    words = [word for text in texts for word in text.split()]
    for seed, (name, rows) in enumerate(ROWS.items()):
        write_synthetic_kor_nli(folder / "KorNLI" / name, rows, seed, words)


def measure(script: list[str], stop: bool) -> dict:
    """Run the training script in a fresh process: seconds to each line and of each phase, peak memory in MiB.

    Args:
        script: the script and its flags.
        stop: send it SIGTERM in its fourth step.
    """
    timings = Path(script[script.index("--output_dir") + 1]).with_suffix(".timings")
    timings.unlink(missing_ok=True)
    environment = os.environ | {"KF_TIMINGS": str(timings), "KF_STOP": "1" if stop else "", "PYTHONUNBUFFERED": "1"}
    start = time.time()
    process = subprocess.Popen(
        [sys.executable, __file__, "--child", *script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    peak = 0.0

    def watch() -> None:
        nonlocal peak
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            try:
                found = re.search(r"VmHWM:\s+(\d+)", status.read_text())
            except OSError:
                return
            peak = max(peak, int(found.group(1)) / 1024) if found else peak
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    lines = []
    for line in process.stdout:
        if line.strip():
            lines.append((time.time() - start, line.rstrip()))
            print(f"{lines[-1][0]:8.1f} s  {lines[-1][1]}", flush=True)
    watcher.join()
    return {
        "status": process.wait(),
        "start": start,
        "total": time.time() - start,
        "first": lines[0][0],
        "silence": max(after[0] - before[0] for before, after in zip(lines, lines[1:], strict=False)),
        "peak": peak,
        "phases": with_whole_steps([json.loads(text) for text in timings.read_text().splitlines()]),
    }


def child(script: list[str]) -> None:
    """Run a training script in this process; timers are set where it has parsed its flags and imports the rest."""
    from kf_deberta.training import flags

    parse = flags.parse_flags

    def parse_and_set_timers(*args, **kwargs) -> argparse.Namespace:
        parsed = parse(*args, **kwargs)
        set_timers()
        return parsed

    flags.parse_flags = parse_and_set_timers
    sys.argv = script
    runpy.run_path(script[0], run_name="__main__")


def set_timers() -> None:
    """Let each phase write down when it began and ended, by the clock and in seconds of all processors."""
    steps = 0

    def note(what: str, begin: tuple[float, float], end: tuple[float, float]) -> None:
        with open(os.environ["KF_TIMINGS"], "a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, "begin": begin, "end": end}) + "\n")

    def timed(owner: object, name: str, label: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapper(*args, **kwargs):
            nonlocal steps
            what = label
            if label == "evaluation":
                what += f" {args[0].name}"
            elif label == "step":
                steps += 1
                what += f" {args[2]['dataset_name']}"
            begin = now()
            value = original(*args, **kwargs)
            note(what, begin, now())
            if label == "step" and steps == STEPS_BEFORE_THE_SIGNAL and os.environ["KF_STOP"]:
                os.kill(os.getpid(), signal.SIGTERM)
            return value

        setattr(owner, name, wrapper)

    begin = now()
    import data_util
    import kf_deberta.training.loop as loop
    import kf_deberta.training.run as training_run
    from kf_deberta.evaluation.evaluator import PairEvaluator
    from kf_deberta.training.batches import TripletBatchSampler
    from kf_deberta.training.callbacks import RecipeCallback
    from kf_deberta.training.trainer import MultiTaskTrainer

    note("libraries imported", begin, now())
    timed(data_util, "load_kor_nli", "KorNLI read")
    timed(TripletBatchSampler, "__init__", "texts numbered")
    timed(loop, "load_base", "base loaded")
    timed(PairEvaluator, "__call__", "evaluation")
    timed(MultiTaskTrainer, "training_step", "step")  # forward and backward
    timed(RecipeCallback, "on_step_end", "over")
    timed(MultiTaskTrainer, "_save_checkpoint", "checkpoint written")
    timed(training_run, "newest_checkpoint", "checkpoint verified")
    timed(MultiTaskTrainer, "_load_from_checkpoint", "weights read back")
    timed(MultiTaskTrainer, "_load_optimizer_and_scheduler", "moments read back")
    timed(loop, "finish", "finish")


def now() -> tuple[float, float]:
    """Seconds of the clock and of this process's threads."""
    return time.time(), time.process_time()


def with_whole_steps(phases: list[dict]) -> list[dict]:
    """Let each step last until its optimizer is done."""
    phases = sorted(phases, key=lambda phase: phase["begin"][0])
    for phase, following in zip(phases, phases[1:], strict=False):
        if following["what"] == "over":
            phase["end"] = following["begin"]
    return [phase for phase in phases if phase["what"] != "over"]


def main() -> None:
    """Build base and data, run, stop, resume, and print Markdown tables."""
    # 1. Base and data, kept for another run
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset_path", type=Path, default=Path("kor-nlu-datasets"), help="with KorSTS/ (default: %(default)s)")
    add("--folder", type=Path, default=Path("output/full-size"), help="for base, data, runs (default: %(default)s)")
    add("flags", nargs="*", help="after --: flags of training_multi_task.py")
    args = parser.parse_args()
    files = sorted(args.dataset_path.glob("KorSTS/*.tsv"))
    if not files:
        raise InputError(f"{args.dataset_path}: no KorSTS/ in it; give the folder of the real data")
    rows = [line.split("\t") for file in files for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    texts = [text for row in rows for text in row[5:7]]
    base, data, output = args.folder / "kf-deberta-base", args.folder / "data", args.folder / "runs"
    if not base.exists():
        build_base(base, texts)
    if not data.exists():
        build_data(data, args.dataset_path / "KorSTS", texts)
    shutil.rmtree(output, ignore_errors=True)

    # 2. Two rounds and a signal, then the third
    script = [str(REPOSITORY / "training_multi_task.py"), "--model_name_or_path", str(base)]
    script += ["--dataset_path", str(data), "--max_rounds", str(ROUNDS), "--output_dir", str(output), *args.flags]
    first = measure(script, stop=True)
    sizes = {}
    for checkpoint in output.glob("*/checkpoint-*"):
        sizes |= {file.name: file.stat().st_size / 1e6 for file in checkpoint.iterdir() if file.is_file()}
    second = measure([*script, "--resume"], stop=False)
    if (first["status"], second["status"]) != (143, 0):
        raise InputError(f"the runs ended with {first['status']} and {second['status']} instead of 143 and 0")

    # 3. What was measured
    print("\n| what | first process | resumed |\n|:--|--:|--:|")
    for label, key, unit in (
        ("first line", "first", "s"),
        ("longest silence", "silence", "s"),
        ("peak memory", "peak", "MiB"),
        ("whole process", "total", "s"),
    ):
        print(f"| {label} | {first[key]:,.1f} {unit} | {second[key]:,.1f} {unit} |")
    begun = [next(p["begin"][0] for p in r["phases"] if p["what"] == "step nli") - r["start"] for r in (first, second)]
    print(f"| first step begins | {begun[0]:,.1f} s | {begun[1]:,.1f} s |")
    print("\n| phase | seconds by the clock, each time | seconds of CPU, each time |\n|:--|:--|:--|")
    phases, means = first["phases"] + second["phases"], {}
    for what in dict.fromkeys(phase["what"] for phase in phases):
        pairs = [(phase["begin"], phase["end"]) for phase in phases if phase["what"] == what]
        clock, cpu = ([end[i] - begin[i] for begin, end in pairs] for i in (0, 1))
        means[what] = sum(cpu) / len(cpu)
        print(f"| {what} | {', '.join(f'{s:.1f}' for s in clock)} | {', '.join(f'{s:.1f}' for s in cpu)} |")
    large = ", ".join(f"{name} {size:,.0f}" for name, size in sizes.items() if size > 1)
    print(f"\nA checkpoint has {sum(sizes.values()):,.0f} MB: {large}.")

    # 4. The published run in seconds of CPU
    once = [means[what] for what in ("libraries imported", "KorNLI read", "base loaded", "texts numbered", "finish")]
    parts = {what: times * means[what] for what, times in PUBLISHED.items()} | {"start and finish": sum(once)}
    total = sum(parts.values())
    print(f"\n| the published run, {total / 3600:.1f} hours of CPU | times | share |\n|:--|--:|--:|")
    for what, part in parts.items():
        print(f"| {what} | {PUBLISHED.get(what, 1):,} | {100 * part / total:.2f}% |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        run(main)
