"""The batch streams against plain bookkeeping: coverage, duplicates, shares of several processes, refusals."""

from collections import Counter
from itertools import chain, islice

import pytest
from datasets import Dataset
from torch.utils.data import ConcatDataset

from kf_deberta.cli import InputError
from kf_deberta.training.batches import AlternatingBatchSampler, ShuffledBatchSampler, TripletBatchSampler


def triplets(rows):
    return Dataset.from_dict(dict(zip(("anchor", "positive", "negative"), zip(*rows, strict=True), strict=True)))


def numbered(count):
    return triplets([(f"a{i}", f"p{i}", f"n{i}") for i in range(count)])


def test_every_triplet_comes_once_before_any_comes_twice():
    stream = TripletBatchSampler(numbered(100), 32, seed=3).stream()
    counts = Counter()
    for batch in islice(stream, 25):
        assert len(batch) == len(set(batch)) == 32
        counts.update(batch)
        assert max(counts.values()) - min(counts[row] for row in range(100)) <= 1
    assert set(counts.values()) == {8}  # 25 batches of 32 are eight passes of 100


def test_texts_are_compared_after_strip_and_lower_casing_over_all_columns():
    rows = [("x", "p0", "n0"), ("p1", " X ", "n1"), ("p2", "n2", "x")] + [
        (f"a{i}", f"b{i}", f"c{i}") for i in range(9)
    ]
    stream = TripletBatchSampler(triplets(rows), 4, seed=0).stream()
    for batch in islice(stream, 60):
        assert len(set(batch) & {0, 1, 2}) <= 1


def test_a_triplet_that_clashes_comes_back():
    rows = [("same", f"b{i}", f"c{i}") for i in range(4)] + [(f"a{i}", f"d{i}", f"e{i}") for i in range(12)]
    stream = TripletBatchSampler(triplets(rows), 4, seed=0).stream()
    counts = Counter(chain.from_iterable(islice(stream, 40)))
    assert min(counts[row] for row in range(4)) >= 9  # 40 batches are ten passes of 16; the last one may lack it


def test_what_a_pass_leaves_out_comes_first_in_the_next_and_does_not_pile_up():
    rows = [("same", f"b{i}", f"c{i}") for i in range(12)] + [(f"a{i}", f"d{i}", f"e{i}") for i in range(12)]
    sampler = TripletBatchSampler(triplets(rows), 4, seed=0)
    batches = list(islice(sampler.stream(), 60))
    assert all(len(batch) == 4 for batch in batches)
    assert len(sampler.leftover) <= len(rows)
    sampler = TripletBatchSampler(numbered(10), 4, seed=0)
    first, second, third = islice(sampler.stream(), 3)
    assert set(range(10)) - {*first, *second} <= set(third)


def test_each_pass_and_each_seed_has_its_own_order():
    for sampler in (TripletBatchSampler, ShuffledBatchSampler):
        passes = {seed: list(islice(sampler(numbered(40), 8, seed).stream(), 10)) for seed in (1, 2)}
        assert passes[1] == list(islice(sampler(numbered(40), 8, 1).stream(), 10))
        assert passes[1][:5] != passes[1][5:] and passes[1][:5] != passes[2][:5]
        assert sorted(chain.from_iterable(passes[1][:5])) == list(range(40)) != list(chain(*passes[1][:5]))


def test_an_epoch_is_the_shortest_pass():
    assert (alternating(nli=320, sts=20).rounds, alternating(nli=100, sts=80).rounds) == (3, 3)
    assert len(alternating(nli=320, sts=20)) == 6


def test_too_few_triplets_or_too_few_different_ones_are_refused():
    with pytest.raises(InputError, match="10 triplets, fewer than a batch of 16"):
        TripletBatchSampler(numbered(10), 16, seed=0)
    with pytest.raises(InputError, match="too few different texts"):
        TripletBatchSampler(triplets([("same", f"p{i}", f"n{i}") for i in range(64)]), 16, seed=0)


def alternating(rank=0, world_size=1, nli=100, sts=20, sizes=(32, 8)):
    first, second = numbered(nli), Dataset.from_dict({"sentence1": [str(i) for i in range(sts)]})
    samplers = [TripletBatchSampler(first, sizes[0], 1), ShuffledBatchSampler(second, sizes[1], 1)]
    return AlternatingBatchSampler(ConcatDataset([first, second]), samplers, rank=rank, world_size=world_size)


def batches_of(sampler, epochs):
    result = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        result.append(list(sampler))
    return result


def test_an_epoch_taken_alone_equals_the_same_epoch_of_a_whole_run():
    whole = batches_of(alternating(), range(4))
    assert batches_of(alternating(), [2])[0] == whole[2]
    again = alternating()
    iterator = iter(again)
    next(iterator)  # abandoned in the middle of an epoch
    assert batches_of(again, [1])[0] == whole[1]
    assert batches_of(again, [0])[0] == whole[0]  # back to an earlier one


def test_processes_share_each_batch_of_one_objective():
    whole = batches_of(alternating(), range(3))
    shares = [batches_of(alternating(rank, 2), range(3)) for rank in (0, 1)]
    for epoch in range(3):
        assert len(whole[epoch]) == len(shares[0][epoch]) == len(shares[1][epoch]) == 6
        for batch, left, right in zip(whole[epoch], shares[0][epoch], shares[1][epoch], strict=True):
            assert left + right == batch


def test_an_odd_last_batch_is_taken_whole_by_each_process():
    whole = batches_of(alternating(sts=21), [0])[0]
    left = batches_of(alternating(0, 2, sts=21), [0])[0]
    assert len(whole[5]) == 5 and left[5] == whole[5]


def test_batch_sizes_must_divide_by_the_processes():
    with pytest.raises(InputError, match="batch size 8 is not divisible by 3 processes; .* choose a multiple of 3"):
        alternating(0, 3, sizes=(33, 8))
