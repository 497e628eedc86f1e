"""Outputs and all parameter gradients of the fast attention against the library's eager attention."""

import pytest
import torch

from deberta_models import assert_same, library_model, output_and_gradients, padded_batch, relative_error, switched
from kf_deberta.model.packing import layout_of

POSITION_OPTIONS = [
    {"position_buckets": 256},
    {"position_buckets": 32},
    {"position_buckets": 7},
    {"position_buckets": 2},
    {"position_buckets": -1},
    {"position_buckets": -1, "max_relative_positions": 10},
    {"position_buckets": 8, "max_relative_positions": 20},
]


@pytest.mark.parametrize("position_options", POSITION_OPTIONS, ids=str)
@pytest.mark.parametrize("share_att_key", [True, False])
@pytest.mark.parametrize("pos_att_type", [[], ["c2p"], ["p2c"], ["p2c", "c2p"]], ids=str)
def test_every_option(pos_att_type, share_att_key, position_options):
    library = library_model(pos_att_type=pos_att_type, share_att_key=share_att_key, **position_options)
    assert_same(switched(library), library, padded_batch([40, 1, 13]))


@pytest.mark.parametrize("length", [1, 2, 3, 15, 16, 17, 127, 128, 129, 130, 255, 256, 257, 511, 512])
@pytest.mark.parametrize("position_buckets", [256, 32, -1])
def test_every_length(position_buckets, length):
    library = library_model(position_buckets=position_buckets, hidden_size=16, intermediate_size=16)
    assert_same(switched(library), library, padded_batch([length]))


@pytest.mark.parametrize(
    "options",
    [
        {"norm_rel_ebd": "none"},
        {"relative_attention": False},
        {"conv_kernel_size": 3, "conv_act": "gelu"},
        {"position_biased_input": True, "type_vocab_size": 2},
        {"embedding_size": 24},
    ],
    ids=str,
)
def test_other_options_of_the_encoder(options):
    library = library_model(**options)
    assert_same(switched(library), library, padded_batch([9, 30, 4], columns=33))


@pytest.mark.parametrize("left", [True, False])
def test_padding_on_either_side_and_beyond_the_longest(left):
    library = library_model()
    assert_same(switched(library), library, padded_batch([12, 5, 1], columns=64, left=left))


@pytest.mark.parametrize(
    "options", [{}, {"share_att_key": False, "position_buckets": 32}, {"conv_kernel_size": 3}], ids=str
)
@pytest.mark.parametrize("left", [True, False])
def test_groups_of_similar_lengths(left, options):
    lengths = [5, 61, 30, 60, 12, 60, 1, 29, 0, 61, 28, 12, 13, 11, 12]
    batch = padded_batch(lengths, columns=70, left=left)
    groups = layout_of(batch["attention_mask"], pack=True).groups
    assert [group.length for group in groups] == [61, 30, 13]
    assert sum(group.batch for group in groups) == 14  # the sentence without a token is in none
    library = library_model(**({"conv_act": "gelu"} | options))
    assert_same(switched(library), library, batch)


def test_holes_in_the_mask():
    library = library_model()
    batch = padded_batch([20, 20])
    batch["attention_mask"][0, 4:9] = 0
    assert_same(switched(library), library, batch)


def test_a_sentence_does_not_see_its_batch():
    fast = switched(library_model()).eval()
    batch = padded_batch([31, 6])
    alone = {name: tensor[1:, :6] for name, tensor in batch.items()}
    with torch.no_grad():
        together, single = fast(**batch).last_hidden_state, fast(**alone).last_hidden_state
    assert relative_error(together[1:, :6], single) <= 1e-5
    assert (together[1, 6:] == 0).all()


def test_sentence_without_a_token_gives_zeros():
    fast = switched(library_model())
    batch = padded_batch([0, 3])
    output, gradients = output_and_gradients(fast, batch)
    assert (output[0] == 0).all() and output[1].abs().sum() > 0
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert (fast(**padded_batch([0, 0], columns=4)).last_hidden_state == 0).all()


def test_hidden_states_are_the_library_s():
    library = library_model().eval()
    batch = padded_batch([14, 3])
    mask = batch["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        expected = library(**batch, output_hidden_states=True)
        actual = switched(library)(**batch, output_hidden_states=True)
    assert isinstance(actual.hidden_states, tuple) and len(actual.hidden_states) == 3
    for mine, theirs in zip(actual.hidden_states, expected.hidden_states, strict=True):
        assert relative_error(mine * mask, theirs * mask) <= 1e-5
    with torch.no_grad():
        as_tuple = switched(library)(**batch, return_dict=False)
    assert relative_error(as_tuple[0] * mask, expected.last_hidden_state * mask) <= 1e-5


def test_attention_dropout_keeps_the_expectation():
    library = library_model(attention_probs_dropout_prob=0.2, num_hidden_layers=1)
    fast = switched(library)
    batch = padded_batch([6, 3])
    mask = batch["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        torch.manual_seed(0)
        mean_fast = sum(fast(**batch).last_hidden_state for _ in range(1000)) / 1000 * mask
        mean_library = sum(library(**batch).last_hidden_state for _ in range(1000)) / 1000 * mask
        without = fast.eval()(**batch).last_hidden_state
    assert relative_error(mean_fast, mean_library) <= 0.05
    assert relative_error(mean_fast, without) > 0  # dropout acted
