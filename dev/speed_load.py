"""Loading KorNLI: data_util.load_kor_nli against a plain csv.DictReader + dict-of-sets loader, on the same files.

The files are synthetic and as large as the real ones (942,854 rows, about 147 MB). Every repeat of each loader is a
fresh process, the two in turn; both import the same modules first.

    python dev/speed.py load
    python dev/speed.py load --repeats 5
"""

import argparse
import csv
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data_util import LABELS, load_kor_nli
from kf_deberta.cli import InputError

ROWS = {"snli_1.0_train.ko.tsv": 550_152, "multinli.train.ko.tsv": 392_702}
PREMISE_WORDS, HYPOTHESIS_WORDS = (6, 21), (3, 11)  # means 13.5 and 7: KorNLI has 13.6 and 7.1 (arXiv:2004.03289)
# Premises whose three labels are distinct, and hypotheses that are not new: with these shares the files are as large
# as the real ones and give about as many triplets (568,576 to 568,703).
DISTINCT_LABELS, OLD_HYPOTHESES = 0.8, 0.1
LOADERS = ("plain", "data_util")
REPEATS = 3
MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark to a parser."""
    parser.add_argument("--repeats", type=int, default=REPEATS, help="runs of each loader, in turn (default: 3)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the real number of rows (default: 1.0)")


def run(args: argparse.Namespace) -> None:
    """Make the files in a temporary folder, measure both loaders and print a Markdown table."""
    if args.repeats < 1 or not 1e-4 <= args.scale <= 10:
        raise InputError(f"--repeats {args.repeats} --scale {args.scale}: give 1 or more, and 0.0001 to 10")
    with tempfile.TemporaryDirectory(prefix="kor-nli-") as folder:
        # 1. The corpus
        for seed, (name, rows) in enumerate(ROWS.items()):
            write_synthetic_kor_nli(Path(folder) / name, int(rows * args.scale), seed)
        rows = sum(int(rows * args.scale) for rows in ROWS.values())
        size = sum(path.stat().st_size for path in Path(folder).iterdir())

        # 2. The measurements, interleaved so that a slower spell of the machine meets both
        results: dict[str, list[dict]] = {loader: [] for loader in LOADERS}
        for loader in tqdm(LOADERS * args.repeats, desc="load", file=sys.stderr):
            command = [sys.executable, __file__, loader, folder]
            results[loader].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    counts = {result["triplets"] for runs in results.values() for result in runs}
    if len(counts) != 1:
        raise RuntimeError(f"the two loaders disagree on the number of triplets: {sorted(counts)}")

    # 3. The report
    print(f"KorNLI of {rows:,} synthetic rows ({size / MIB:,.0f} MiB) to {counts.pop():,} triplets, median of")
    print(f"{args.repeats} fresh processes each; {os.cpu_count()} cores, Python {platform.python_version()}.\n")
    print("| loader | time (range) | peak memory | peak above imports |")
    print("|---|---|---|---|")
    for loader in LOADERS:
        seconds = [result["seconds"] for result in results[loader]]
        print(
            f"| {loader} | {median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}) "
            f"| {_median(results, loader, 'peak'):,.0f} MiB | {_median(results, loader, 'added'):,.0f} MiB |"
        )
    ratios = [
        _median(results, "data_util", key) / _median(results, "plain", key) for key in ("seconds", "peak", "added")
    ]
    print(f"| data_util / plain | {ratios[0]:.2f} | {ratios[1]:.2f} | {ratios[2]:.2f} |")


def _median(results: dict[str, list[dict]], loader: str, key: str) -> float:
    return median(result[key] for result in results[loader])


def write_synthetic_kor_nli(path: Path, rows: int, seed: int, words: list[str] | None = None) -> None:
    """Write sentences of `words` (None: of random syllables), three rows per premise; same arguments, same file."""
    rng = random.Random(seed)
    words = words or [
        "".join(chr(rng.randrange(0xAC00, 0xD7A4)) for _ in range(rng.choice((1, 2, 2, 3)))) for _ in range(20_000)
    ]

    def sentence(shortest: int, longest: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(shortest, longest))) + "."

    old = [sentence(*HYPOTHESIS_WORDS) for _ in range(rows // 50 + 1)]
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write("sentence1\tsentence2\tgold_label\n")
        for row in tqdm(range(rows), desc=f"write {path.name}", file=sys.stderr, mininterval=1):
            if row % 3 == 0:
                premise = sentence(*PREMISE_WORDS)
                labels = rng.sample(LABELS, 3) if rng.random() < DISTINCT_LABELS else rng.choices(LABELS, k=3)
            hypothesis = rng.choice(old) if rng.random() < OLD_HYPOTHESES else sentence(*HYPOTHESIS_WORDS)
            file.write(f"{premise}\t{hypothesis}\t{labels[row % 3]}\n")


def load_plainly(paths: list[Path], seed: int) -> list[tuple[str, str, str]]:
    """Build the same kind of triplets the usual way: csv.DictReader and a dict of sets."""
    rng = random.Random(seed)
    triplets = []
    for path in sorted(paths):
        partners = defaultdict(lambda: {label: set() for label in LABELS})
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                sentence1, sentence2 = row["sentence1"].strip(), row["sentence2"].strip()
                partners[sentence1][row["gold_label"]].add(sentence2)
                partners[sentence2][row["gold_label"]].add(sentence1)
        for sentence, of_label in partners.items():
            if of_label["entailment"] and of_label["contradiction"]:
                entailed, contradicting = list(of_label["entailment"]), list(of_label["contradiction"])
                triplets.append((sentence, rng.choice(entailed), rng.choice(contradicting)))
                triplets.append((rng.choice(entailed), sentence, rng.choice(contradicting)))
    return triplets


def memory_mib(field: str) -> float:
    """Resident memory of this process: "VmRSS" now, "VmHWM" its peak; without /proc (macOS) the peak for both."""
    try:
        # Not ru_maxrss, which on Linux starts from the parent's memory.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status[field].split()[0]) / 1024
    except FileNotFoundError:
        import resource  # Windows has none

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def _measure(loader: str, folder: str) -> dict[str, float]:
    """Load the files of a folder once: seconds, peak resident memory and what of it loading added (MiB)."""
    paths = list(Path(folder).iterdir())
    before = memory_mib("VmRSS")
    start = time.perf_counter()
    triplets = load_plainly(paths, 0) if loader == "plain" else load_kor_nli(paths, 0)
    seconds = time.perf_counter() - start
    peak = memory_mib("VmHWM")
    return {"seconds": seconds, "peak": peak, "added": peak - before, "triplets": len(triplets)}


if __name__ == "__main__":  # one measurement, in the fresh process that run() starts
    print(json.dumps(_measure(*sys.argv[1:])))
