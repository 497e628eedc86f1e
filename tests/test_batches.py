"""The batch streams against plain bookkeeping: coverage, duplicates, order, refusals."""

from collections import Counter
from itertools import chain, islice

import pytest
from datasets import Dataset

from kf_deberta.errors import InputError
from kf_deberta.training.batches import ShuffledBatches, TripletBatches


def triplets(rows):
    return Dataset.from_dict(dict(zip(("anchor", "positive", "negative"), zip(*rows, strict=True), strict=True)))


def numbered(count):
    return triplets([(f"a{i}", f"p{i}", f"n{i}") for i in range(count)])


def test_every_triplet_comes_once_before_any_comes_twice():
    counts = Counter()
    for batch in islice(TripletBatches(numbered(100), 32, seed=3), 25):
        assert len(batch) == len(set(batch)) == 32
        counts.update(batch)
        assert max(counts.values()) - min(counts[row] for row in range(100)) <= 1
    assert set(counts.values()) == {8}  # 25 batches of 32 are eight passes of 100


def test_texts_are_compared_after_strip_and_lower_casing_over_all_columns():
    rows = [("x", "p0", "n0"), ("p1", " X ", "n1"), ("p2", "n2", "x")]
    rows += [(f"a{i}", f"b{i}", f"c{i}") for i in range(9)]
    for batch in islice(TripletBatches(triplets(rows), 4, seed=0), 60):
        assert len(set(batch) & {0, 1, 2}) <= 1


def test_a_triplet_that_clashes_comes_back_and_none_piles_up():
    rows = [("same", f"b{i}", f"c{i}") for i in range(4)] + [(f"a{i}", f"d{i}", f"e{i}") for i in range(12)]
    counts = Counter(chain.from_iterable(islice(TripletBatches(triplets(rows), 4, seed=0), 40)))
    assert min(counts[row] for row in range(4)) >= 9  # 40 batches are ten passes of 16; the last one may lack it
    first, second, third = islice(TripletBatches(numbered(10), 4, seed=0), 3)
    assert set(range(10)) - {*first, *second} <= set(third)


def test_each_pass_and_each_seed_has_its_own_order():
    for kind in (TripletBatches, ShuffledBatches):
        passes = {seed: list(islice(kind(numbered(40), 8, seed), 10)) for seed in (1, 2)}
        assert passes[1] == list(islice(kind(numbered(40), 8, 1), 10))
        assert passes[1][:5] != passes[1][5:] and passes[1][:5] != passes[2][:5]
        assert sorted(chain.from_iterable(passes[1][:5])) == list(range(40)) != list(chain(*passes[1][:5]))


def test_passes_have_their_published_lengths():
    assert len(ShuffledBatches(numbered(5749), 8, 42)) == 719
    assert len(TripletBatches(numbered(600), 128, 42)) == 4
    *_, last = islice(ShuffledBatches(numbered(20), 8, 1), 3)
    assert len(last) == 4


@pytest.mark.parametrize("rows", [numbered(10), triplets([("same", f"p{i}", f"n{i}") for i in range(64)])])
def test_too_few_different_triplets_are_refused(rows):
    with pytest.raises(InputError, match=f"gives {len(rows)} triplets, too few different ones for a batch of 16"):
        TripletBatches(rows, 16, seed=0)
