"""KorNLI and KorSTS as training data: every malformed row is located, and only seed and content decide the triplets.

Files are tab separated with one header line, UTF-8, and no quoting: a `"` is a character of the text, and only "\\n"
or "\\r\\n" ends a line. Extra columns and any column order are fine.

Usage, to compare a copy of the data set with the official one, file by file:

    python data_util.py --verify kor-nlu-datasets
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kf_deberta.cli import InputError, Parser, file_path, run, say
from kf_deberta.data.official import verify
from kf_deberta.data.pairs import load_file
from kf_deberta.data.tsv import raise_if_malformed, read_tsv, shorten

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)
_told: set[Path] = set()  # files whose number of rows was warned of: once a process is enough

LABELS = ("entailment", "contradiction", "neutral")
CHUNK_ROWS = 100_000  # rows of one piece of the result; changes no result


def load_kor_sts(path: str | Path) -> Dataset:
    """Load KorSTS pairs in the order of the file.

    Args:
        path: a TSV file with columns sentence1, sentence2 and score (0 to 5).

    Returns:
        A data set with columns sentence1, sentence2 (texts as they are) and score (float, 0 to 1: a fifth of the
        file's). A file with an official name but another number of rows is loaded with a warning.

    Raises:
        InputError: the file cannot be read, has no rows, or has malformed rows (the first five are named).
    """
    path = Path(path)
    pairs = load_file(path)
    if pairs.note and path not in _told:
        _told.add(path)
        logger.warning(f"{path}: {pairs.note}")
    say(f"{path}: {len(pairs.gold):,} pairs")
    texts = {"sentence1": pa.array(pairs.sentences1), "sentence2": pa.array(pairs.sentences2)}
    return _as_dataset(pa.table({**texts, "score": pa.array(pairs.gold)}))


def load_kor_nli(paths: Iterable[str | Path], seed: int) -> Dataset:
    """Load KorNLI files as triplets for MultipleNegativesRankingLoss.

    Every row counts in both directions. A sentence with at least one entailed and one contradicting partner in its
    file gives two triplets, (sentence, entailed, contradicting) and (entailed, sentence, contradicting). So their
    number is fixed; only the partners are drawn, uniformly from the distinct ones and anew for each triplet.

    Args:
        paths: TSV files with columns sentence1, sentence2 and gold_label (entailment, contradiction or neutral),
            taken one by one in the order of their names, whatever order is given.
        seed: seed of the draws, 0 or larger.

    Returns:
        A data set of stripped texts with columns anchor, positive, negative. For each file, sentences in the order in
        which sentence1 and then sentence2 first shows them, the two triplets of a sentence side by side.

    Raises:
        InputError: a file cannot be read or has malformed rows (the first five are named), or there is no triplet.
    """
    paths = sorted(map(Path, paths), key=lambda path: (path.name, str(path)))
    generator = np.random.default_rng(seed)
    chunks = []
    for path in paths:
        say(f"loading {path}")
        chunks += _triplets_of_file(path, generator)
    if not chunks:
        raise InputError(
            f"{', '.join(map(str, paths))}: no triplet, as no sentence has both an entailment and a contradiction "
            "row; give a KorNLI train file in which sentences have both"
        )
    triplets = pa.concat_tables(chunks)
    say(f"KorNLI: {len(triplets):,} triplets from {len(paths)} file{'s' * (len(paths) > 1)}")
    return _as_dataset(triplets)


def find_kor_nli_train_files(dataset_path: str | Path) -> list[Path]:
    """Return <dataset_path>/KorNLI/*train.ko.tsv in sorted order; InputError when there is none."""
    folder = Path(dataset_path) / "KorNLI"
    paths = sorted(folder.glob("*train.ko.tsv"))
    if not paths:
        raise InputError(
            f"{folder}: no KorNLI train file (*train.ko.tsv); give the folder that holds KorNLI/ and KorSTS/"
        )
    return paths


def _triplets_of_file(path: Path, generator: np.random.Generator) -> list[pa.Table]:
    """Draw the triplets of one KorNLI file, in tables of bounded size."""
    texts, premises, hypotheses, labels = _read_kor_nli(path)
    pa.default_memory_pool().release_unused()  # what encoding has freed, before the triplets take as much
    # A directed pair as one number, sentence * len(texts) + partner: sorting groups the partners of each sentence.
    pairs = np.concatenate((premises * len(texts) + hypotheses, hypotheses * len(texts) + premises))
    labels = np.concatenate((labels, labels))
    entailed = _Partners(pairs[labels == LABELS.index("entailment")], len(texts))
    contradicting = _Partners(pairs[labels == LABELS.index("contradiction")], len(texts))
    anchors = np.flatnonzero((entailed.counts > 0) & (contradicting.counts > 0))
    forward = (anchors, entailed.draw(anchors, generator), contradicting.draw(anchors, generator))
    backward = (entailed.draw(anchors, generator), anchors, contradicting.draw(anchors, generator))
    triplets = np.array((forward, backward)).transpose(2, 0, 1).reshape(-1, 3)  # both of a sentence side by side
    return [
        pa.table(
            [texts.take(pa.array(codes)).cast(pa.string()) for codes in chunk.T],
            names=["anchor", "positive", "negative"],
        )
        for chunk in (triplets[i : i + CHUNK_ROWS] for i in range(0, len(triplets), CHUNK_ROWS))
    ]


class _Partners:
    """The distinct partners of every sentence under one label, as slices of one sorted array."""

    def __init__(self, pairs: np.ndarray, size: int) -> None:
        sentences, self.partners = np.divmod(np.unique(pairs), max(size, 1))
        self.counts = np.bincount(sentences, minlength=size)
        self.starts = np.cumsum(self.counts) - self.counts

    def draw(self, sentences: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return self.partners[self.starts[sentences] + generator.integers(self.counts[sentences])]


def _read_kor_nli(path: Path) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray]:
    """Return the distinct stripped texts and, for every row that is not neutral, the codes of its texts and label."""
    table, problems = read_tsv(path, ("sentence1", "sentence2", "gold_label"), strip=True)
    labels = pc.index_in(table["gold_label"], value_set=pa.array(LABELS, pa.large_string())).fill_null(-1).to_numpy()
    for row in np.flatnonzero(labels < 0):
        label = shorten(table["gold_label"][row].as_py())
        problems[table["line"][row].as_py()] = f"unknown label {label}, must be {', '.join(LABELS)}"
    raise_if_malformed(path, problems)
    say(f"{path}: {len(table):,} rows")
    is_empty = pc.or_(pc.equal(table["sentence1"], ""), pc.equal(table["sentence2"], ""))
    if empty := table["line"].filter(is_empty).to_pylist():  # kept: the published triplets are made of all rows
        logger.warning(f"{path}:{empty[0]}: an empty sentence, in {len(empty):,} rows of this file; used as it is")
    is_used = labels != LABELS.index("neutral")  # a neutral row gives no partner
    table, labels = table.filter(pa.array(is_used)), labels[is_used]
    pa.default_memory_pool().release_unused()  # what reading has freed, before encoding takes as much
    texts = pa.chunked_array(table["sentence1"].chunks + table["sentence2"].chunks, pa.large_string())
    encoded = texts.dictionary_encode().combine_chunks()
    codes = encoded.indices.to_numpy().astype(np.int64)
    return encoded.dictionary, codes[: len(table)], codes[len(table) :], labels


def _as_dataset(table: pa.Table) -> Dataset:
    """Wrap a table under a fingerprint of its content (the one Dataset makes itself pickles the whole table)."""
    from datasets import Dataset  # a second to import, which --help does not need

    digest = hashlib.sha1(str(table.schema).encode())
    for column in table.columns:
        for buffer in (buffer for chunk in column.chunks for buffer in chunk.buffers() if buffer is not None):
            digest.update(buffer)
    return Dataset(table, fingerprint=digest.hexdigest()[:16])


def main() -> int:
    """Print one line for each file of the data set; 0 when all are the official ones, else 2."""
    parser = Parser(__doc__)
    parser.add_argument("--verify", type=file_path, required=True, help="folder that holds KorNLI/ and KorSTS/")
    results = verify(parser.parse_args().verify)
    for name, result in results.items():
        print(f"{name}: {result}")
    return 0 if set(results.values()) == {"ok"} else 2


if __name__ == "__main__":
    run(main)
