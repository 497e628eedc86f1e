"""Endless, seeded streams of batches: the same rows for the same seed, whatever the number of processes.

As in the published run, a stream is shuffled again at the end of a pass over the data, not at the end of an epoch.
"""

from collections import deque
from collections.abc import Iterator
from itertools import count

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from kf_deberta.errors import InputError


class ShuffledBatches:
    """Row numbers, each once per pass, in an order by (seed, number of the pass); the last batch may be smaller."""

    def __init__(self, rows: Dataset, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = len(rows), batch_size, seed

    def __len__(self) -> int:
        """Batches per pass: 719 for KorSTS in batches of 8."""
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for number in count():
            order = np.random.default_rng((self.seed, number)).permutation(self.size)
            for start in range(0, self.size, self.batch_size):
                yield order[start : start + self.batch_size].tolist()


class TripletBatches:
    """Full batches of triplets in random order in which no text occurs twice, over all three columns.

    Texts are compared after strip and lower-casing, as in the published run. A triplet that clashes waits for a later
    batch; what cannot fill a batch at the end of a pass comes first in the next one, so that no triplet is left out.
    InputError if there are fewer triplets, or fewer different ones, than a batch holds.
    """

    def __init__(self, rows: Dataset, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = len(rows), batch_size, seed
        columns = rows.with_format("arrow")[:].columns
        texts = pa.chunked_array([chunk for column in columns for chunk in column.chunks])
        texts = pc.utf8_lower(pc.utf8_trim_whitespace(texts)).dictionary_encode().unify_dictionaries()
        numbers = np.concatenate([chunk.indices.to_numpy() for chunk in texts.chunks])
        self.texts = numbers.reshape(len(columns), -1).T  # [triplets, 3], equal texts have equal numbers
        if next(self._one_pass(np.arange(self.size)), None) is None:
            problem = f"KorNLI gives {self.size:,} triplets, too few different ones for a batch of {batch_size}"
            raise InputError(f"{problem} without duplicates; lower the NLI batch size")

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        leftover = np.empty(0, dtype=np.int64)
        for number in count():
            order = np.random.default_rng((self.seed, number)).permutation(self.size)
            leftover = yield from self._one_pass(np.concatenate([leftover, order]))
            leftover = np.unique(leftover)  # rows of very frequent texts would otherwise accumulate

    def _one_pass(self, order: np.ndarray) -> Iterator[list[int]]:
        """Yield full batches along `order`; returns the rows that filled no batch."""
        pending = deque(order.tolist())
        while True:
            batch, seen, clashing = [], set(), []
            while pending and len(batch) < self.batch_size:
                row = pending.popleft()
                texts = self.texts[row].tolist()
                if seen.isdisjoint(texts):
                    batch.append(row)
                    seen.update(texts)
                else:
                    clashing.append(row)
            pending.extendleft(reversed(clashing))
            if len(batch) < self.batch_size:
                return np.array(batch + list(pending), dtype=np.int64)
            yield batch
