"""Endless, seeded batch streams for the two objectives, and their strict alternation.

sentence-transformers' own multi-dataset samplers restart every data set at each epoch and share one batch size. The
published run did neither: a stream goes on where the last epoch stopped and is shuffled again at its end.
"""

from collections import deque
from collections.abc import Iterator
from itertools import accumulate, count

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from sentence_transformers.base.sampler import (
    DefaultBatchSampler,
    MultiDatasetDefaultBatchSampler,
    NoDuplicatesBatchSampler,
)
from torch.utils.data import ConcatDataset

from kf_deberta.cli import InputError


def check_divides(name: str, batch_size: int, world_size: int) -> None:
    """Raise InputError where the batch called `name` cannot be shared equally by `world_size` processes."""
    if batch_size % world_size:
        raise InputError(
            f"{name} {batch_size} is not divisible by {world_size} processes; batch sizes are global, "
            f"choose a multiple of {world_size}"
        )


class ShuffledBatchSampler(DefaultBatchSampler):
    """Batches of row numbers in random order; every row once per pass, the last batch of a pass may be smaller."""

    def __init__(self, dataset: Dataset, batch_size: int, seed: int) -> None:
        """Take the data set whose rows are drawn, rows per batch, and the seed of all passes."""
        super().__init__(dataset, batch_size=batch_size, drop_last=False, seed=seed)
        self.rows = len(dataset)

    def stream(self) -> Iterator[list[int]]:
        """Yield batches without end; pass k is shuffled by (seed, k)."""
        for number in count():
            order = np.random.default_rng((self.seed, number)).permutation(self.rows)
            for start in range(0, self.rows, self.batch_size):
                yield order[start : start + self.batch_size].tolist()

    def __len__(self) -> int:
        """Batches per pass, the smaller last one included (719 for KorSTS in batches of 8)."""
        return -(-self.rows // self.batch_size)


class TripletBatchSampler(NoDuplicatesBatchSampler):
    """Full batches of triplets in random order in which no text occurs twice, over all three columns.

    Texts are compared after strip and lower-casing, as the published run did; the library compares them as they are.
    A triplet that clashes waits for a later batch of the pass, and what cannot fill a batch at the end of a pass comes
    first in the next one, so that no triplet is left out.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int) -> None:
        """Take the triplets, triplets per batch, and the seed of all passes.

        Raises:
            InputError: fewer triplets, or fewer different ones, than a batch holds; the original loader hangs.
        """
        if len(dataset) < batch_size:
            raise InputError(
                f"KorNLI gives {len(dataset)} triplets, fewer than a batch of {batch_size}; lower the NLI batch size"
            )
        super().__init__(dataset, batch_size=batch_size, drop_last=True, seed=seed, precompute_hashes=True)
        self._build_hashes()
        if next(self._one_pass(np.arange(len(dataset))), None) is None:
            raise InputError(
                f"KorNLI has too few different texts for a batch of {batch_size} without duplicates; "
                "lower the NLI batch size"
            )

    def _build_hashes(self) -> None:
        """Number the distinct texts: an exact stand-in for hashes, three numbers per triplet."""
        if self._row_hashes is not None:
            return
        columns = self.dataset.with_format("arrow")[:].columns
        texts = pa.chunked_array([chunk for column in columns for chunk in column.chunks])
        texts = pc.utf8_lower(pc.utf8_trim_whitespace(texts)).dictionary_encode().unify_dictionaries()
        numbers = np.concatenate([chunk.indices.to_numpy() for chunk in texts.chunks])
        self._row_hashes = numbers.reshape(len(columns), -1).T

    def _one_pass(self, order: np.ndarray) -> Iterator[list[int]]:
        """Yield full batches along `order`; after the last `self.leftover` holds the rows that filled no batch."""
        pending = deque(order.tolist())
        while True:
            batch, texts, clashing = [], set(), []
            while pending and len(batch) < self.batch_size:
                row = pending.popleft()
                row_texts = self._row_hashes[row].tolist()
                if texts.isdisjoint(row_texts):
                    batch.append(row)
                    texts.update(row_texts)
                else:
                    clashing.append(row)
            pending.extendleft(reversed(clashing))
            if len(batch) < self.batch_size:
                self.leftover = np.array(batch + list(pending), dtype=np.int64)
                return
            yield batch

    def stream(self) -> Iterator[list[int]]:
        """Yield batches without end; pass k is shuffled by (seed, k)."""
        leftover = np.empty(0, dtype=np.int64)
        for number in count():
            order = np.random.default_rng((self.seed, number)).permutation(len(self.dataset))
            yield from self._one_pass(np.concatenate([leftover, order]))
            leftover = np.unique(self.leftover)  # unique: a text too frequent for the batches must not pile up


class AlternatingBatchSampler(MultiDatasetDefaultBatchSampler):
    """One batch of each objective in turn (NLI, STS, NLI, STS, ...); a round is one batch of each.

    An epoch has as many rounds as the shortest pass has batches. Under several processes every process takes its
    equal share of the same batch; a smaller last batch that cannot be shared equally is taken whole by each, which
    averages to the same gradient.
    """

    def __init__(
        self, dataset: ConcatDataset, batch_samplers: list[DefaultBatchSampler], rank: int = 0, world_size: int = 1
    ) -> None:
        """Take the concatenated data sets, their samplers in the same order, and this process's place among all.

        Raises:
            InputError: a batch size that cannot be shared equally.
        """
        for sampler in batch_samplers:
            check_divides("batch size", sampler.batch_size, world_size)
        super().__init__(dataset, batch_samplers)
        self.batch_size = None  # the objectives have different ones
        self.rank, self.world_size = rank, world_size
        self.rounds = min(len(sampler) for sampler in batch_samplers)
        self.offsets = [0, *accumulate(len(part) for part in dataset.datasets)]
        self._position = None  # rounds that self._streams have yielded
        self._streams: list[Iterator[list[int]]] = []

    def round_batches(self, number: int) -> list[list[int]]:
        """Return the batches of round `number` (from 0): for each objective, row numbers of its own data set."""
        if self._position is None or self._position > number:
            self._streams = [sampler.stream() for sampler in self.batch_samplers]
            self._position = 0
        while self._position <= number:
            batches = [next(stream) for stream in self._streams]
            self._position += 1
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this process's share of the batches of the current epoch, as rows of the concatenated data sets."""
        for number in range(self.epoch * self.rounds, (self.epoch + 1) * self.rounds):
            for offset, batch in zip(self.offsets, self.round_batches(number), strict=False):
                share = batch
                if len(batch) % self.world_size == 0:
                    size = len(batch) // self.world_size
                    share = batch[self.rank * size : (self.rank + 1) * size]
                yield [row + offset for row in share]

    def __len__(self) -> int:
        """Batches per epoch: rounds times objectives."""
        return self.rounds * len(self.batch_samplers)
