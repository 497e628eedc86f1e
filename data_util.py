"""KorNLI and KorSTS as training data.

    python data_util.py --verify kor-nlu-datasets

compares every file of a data set with the official one.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from kf_deberta.data.official import not_official, verify
from kf_deberta.data.tsv import PAIR_COLUMNS, check_pairs, raise_if_malformed, read_rows, shorten
from kf_deberta.errors import InputError, run, say
from kf_deberta.flags import Parser, file_path

if TYPE_CHECKING:
    from datasets import Dataset

LABELS = ("entailment", "contradiction", "neutral")
NLI_SCHEMA = pa.schema({"sentence1": pa.string(), "sentence2": pa.string(), "gold_label": pa.int64()})
CHUNK_ROWS = 100_000  # bounds the memory for Python's strings; changes no result


def load_kor_sts(path: str | Path) -> Dataset:
    """Load KorSTS pairs from a TSV file with columns sentence1, sentence2 and score (0 to 5), in its order.

    Its texts stay as they are, its scores become 0 to 1. InputError if there are no rows, malformed rows (the first
    five are named), or only scores up to 1.
    """
    from datasets import Dataset  # a second to import, which --help does not need

    path, problems = Path(path), {}
    data = check_pairs(path, read_rows(path, PAIR_COLUMNS, problems), problems)
    if (highest := 5 * max(data["score"])) <= 1:
        raise InputError(f"{path}: the highest score is {highest:g}; give scores from 0 to 5, as KorSTS has them")
    note = not_official(path, len(data["score"]))
    say(f"{path}: {len(data['score']):,} pairs{f'; {note}' if note else ''}")
    return Dataset.from_dict(data)


def say_overlap(train: Dataset, other: Dataset, name: str) -> None:
    """Say how many pairs of `other`, called `name`, are training pairs with the two sentences in any order."""
    columns = ((data["sentence1"], data["sentence2"]) for data in (train, other))
    known, pairs = (list(map(frozenset, zip(*both, strict=True))) for both in columns)
    if count := sum(map(set(known).__contains__, pairs)):
        say(f"{name}: {count} of its {len(pairs):,} pairs are training pairs, too")


def load_kor_nli(paths: Iterable[str | Path], seed: int) -> Dataset:
    """Load KorNLI files, TSV with columns sentence1, sentence2 and gold_label, as triplets.

    Every row counts in both directions. A sentence with at least one entailed and one contradicting partner in its
    file gives two triplets, (sentence, entailed, contradicting) and (entailed, sentence, contradicting), whose
    partners are drawn uniformly from the distinct ones. They are in the order of the files' names, then of sentences.

    Returns columns anchor, positive, negative of stripped texts. InputError if a file has malformed rows (the first
    five are named), or there is no triplet.
    """
    from datasets import Dataset

    paths = sorted(map(Path, paths), key=lambda path: (path.name, str(path)))
    generator, tables = np.random.default_rng(seed), []
    for path in paths:
        say(f"loading {path}")
        tables += _triplets_of_file(path, generator)
    if not tables:
        reason = "no triplet; give a KorNLI train file, whose sentences have an entailment and a contradiction row"
        raise InputError(f"{', '.join(map(str, paths))}: {reason}")
    triplets = pa.concat_tables(tables)
    say(f"KorNLI: {len(triplets):,} triplets from {len(paths)} file{'s' * (len(paths) > 1)}")
    return Dataset(triplets, fingerprint=uuid.uuid4().hex)  # that which it makes itself pickles the whole table


def load_sentences(paths: Iterable[str | Path]) -> list[str]:
    """Return the distinct sentences of KorNLI and KorSTS files, stripped, in sorted order."""
    rows = (row for path in paths for _, row in read_rows(path, PAIR_COLUMNS[:2], {}))
    return sorted({text.strip() for row in rows for text in row} - {""})


def find_kor_nli_train_files(dataset_path: str | Path) -> list[Path]:
    """Return <dataset_path>/KorNLI/*train.ko.tsv in sorted order; InputError if there is none."""
    folder = Path(dataset_path) / "KorNLI"
    if not (paths := sorted(folder.glob("[!.]*train.ko.tsv"))):  # not ._*, which macOS writes
        raise InputError(f"{folder}: no KorNLI train file (*train.ko.tsv); give the directory of KorNLI/ and KorSTS/")
    return paths


def _triplets_of_file(path: Path, generator: np.random.Generator) -> list[pa.Table]:
    """Draw the triplets of one KorNLI file, in tables of bounded size."""
    texts, premises, hypotheses, labels = _read_kor_nli(path)
    pa.default_memory_pool().release_unused()  # what encoding has freed, before the triplets take as much
    # A directed pair as one number, sentence * len(texts) + partner: sorting groups the partners of each sentence.
    pairs = np.concatenate((premises * len(texts) + hypotheses, hypotheses * len(texts) + premises))
    entailed, contradicting = (_Partners(pairs[np.tile(labels == label, 2)], len(texts)) for label in (0, 1))
    anchors = np.flatnonzero((entailed.counts > 0) & (contradicting.counts > 0))
    forward = (anchors, entailed.draw(anchors, generator), contradicting.draw(anchors, generator))
    backward = (entailed.draw(anchors, generator), anchors, contradicting.draw(anchors, generator))
    triplets = np.array((forward, backward)).transpose(2, 0, 1).reshape(-1, 3)  # both of a sentence side by side
    chunks = (triplets[start : start + CHUNK_ROWS].T for start in range(0, len(triplets), CHUNK_ROWS))
    names = ["anchor", "positive", "negative"]
    return [pa.table([texts.take(pa.array(codes)) for codes in chunk], names) for chunk in chunks]


class _Partners:
    """The distinct partners of every sentence under one label, as slices of one sorted array."""

    def __init__(self, pairs: np.ndarray, size: int) -> None:
        sentences, self.partners = np.divmod(np.unique(pairs), max(size, 1))
        self.counts = np.bincount(sentences, minlength=size)
        self.starts = np.cumsum(self.counts) - self.counts

    def draw(self, sentences: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return self.partners[self.starts[sentences] + generator.integers(self.counts[sentences])]


def _read_kor_nli(path: Path) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct texts of a file and, for every row that is not neutral, the codes of its texts and label."""
    problems, tables = {}, [NLI_SCHEMA.empty_table()]
    rows = _used_rows(path, problems)
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        tables.append(pa.table(list(zip(*chunk, strict=True)), NLI_SCHEMA))
    raise_if_malformed(path, problems)
    pa.default_memory_pool().release_unused()  # what reading has freed, before encoding takes as much
    table = pa.concat_tables(tables)
    texts = pa.chunked_array(table["sentence1"].chunks + table["sentence2"].chunks)
    encoded = texts.dictionary_encode().combine_chunks()
    codes = encoded.indices.to_numpy().astype(np.int64)
    return encoded.dictionary, codes[: len(table)], codes[len(table) :], table["gold_label"].to_numpy()


def _used_rows(path: Path, problems: dict[int, str]) -> Iterator[tuple[str, str, int]]:
    """Yield the stripped sentences and the label's index of all rows but neutral ones, which give no partner."""
    for line, (sentence1, sentence2, label) in read_rows(path, NLI_SCHEMA.names, problems):
        if (label := label.strip()) not in LABELS:
            problems[line] = f"unknown label {shorten(label)}, must be {', '.join(LABELS)}"
        elif label != "neutral":
            yield sentence1.strip(), sentence2.strip(), LABELS.index(label)


def main() -> int:
    """Print one line for each file of the data set; 0 if all are the official ones, else 2."""
    parser = Parser(__doc__)
    parser.add_argument("--verify", type=file_path, required=True, help="directory with KorNLI/ and KorSTS/")
    results = verify(parser.parse_args().verify)
    print(*(f"{name}: {result}" for name, result in results.items()), sep="\n")
    is_official = set(results.values()) == {"ok"}
    print("the official data set" if is_official else "not the official data set")
    return 0 if is_official else 2


if __name__ == "__main__":
    run(main)
