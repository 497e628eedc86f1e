"""Outputs and all parameter gradients of the fast attention against the library's eager attention."""

import pytest
import torch

from deberta_models import assert_same, library_model, output_and_gradients, padded_batch, relative_error, switched
from kf_deberta.model import attention
from kf_deberta.model.load import load_model
from kf_deberta.model.packing import layout_of, take_masks_from_host

POSITION_OPTIONS = [{"position_buckets": buckets} for buckets in (256, 32, 7, 2, -1)]
POSITION_OPTIONS += [{"position_buckets": buckets, "max_relative_positions": 20} for buckets in (-1, 8)]
MANY_LENGTHS = [5, 61, 30, 60, 12, 60, 1, 29, 0, 61, 28, 12, 13, 11, 12]

LAYOUTS = {  # arguments of layout_of, and the lengths of its groups
    "groups": ({"pack": True}, [61, 30, 13]),
    "one group": ({"pack": True, "groups": False}, [61]),
    "padded": ({"pack": False}, [70]),
}


@pytest.mark.parametrize("position_options", POSITION_OPTIONS, ids=str)
@pytest.mark.parametrize("share_att_key", [True, False])
@pytest.mark.parametrize("pos_att_type", [[], ["c2p"], ["p2c"], ["p2c", "c2p"]], ids=str)
def test_every_option(pos_att_type, share_att_key, position_options):
    library = library_model(pos_att_type=pos_att_type, share_att_key=share_att_key, **position_options)
    assert_same(switched(library), library, padded_batch([40, 1, 13]))


@pytest.mark.parametrize("length", [1, 2, 3, 15, 16, 17, 127, 128, 129, 255, 256, 257, 512])
@pytest.mark.parametrize("position_buckets", [256, 32, -1])
def test_every_length(position_buckets, length):
    library = library_model(position_buckets=position_buckets, hidden_size=16, intermediate_size=16)
    assert_same(switched(library), library, padded_batch([length]))


OTHER_OPTIONS = [{"norm_rel_ebd": "none"}, {"relative_attention": False}, {"embedding_size": 24}]
OTHER_OPTIONS += [{"conv_kernel_size": 3, "conv_act": "gelu"}, {"position_biased_input": True, "type_vocab_size": 2}]


@pytest.mark.parametrize("options", OTHER_OPTIONS, ids=str)
def test_other_options_of_the_encoder(options):
    library = library_model(**options)
    assert_same(switched(library), library, padded_batch([9, 30, 4], columns=33))


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"share_att_key": False, "position_buckets": 32}, {"conv_kernel_size": 3}])
def test_every_layout_with_padding_on_either_side(options, layout, left, monkeypatch):
    batch, (arguments, expected) = padded_batch(MANY_LENGTHS, columns=70, left=left), LAYOUTS[layout]
    monkeypatch.setattr(attention, "layout_of", lambda mask, pack: layout_of(mask, **arguments))
    assert [group.length for group in layout_of(batch["attention_mask"], **arguments).groups] == expected
    library = library_model(conv_act="gelu", **options)
    assert_same(switched(library), library, batch)


def test_autocast_of_a_gpu_is_not_packed(monkeypatch):
    mask = padded_batch([5, 3])["attention_mask"]
    mask.token_layout = layout_of(mask, pack=True)  # from outside of autocast
    assert mask.token_layout.real is not None
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    assert layout_of(mask, pack=True).real is None


def test_a_sentence_without_a_token_gives_zeros():
    fast = switched(library_model())
    output, gradients = output_and_gradients(fast, padded_batch([0, 3]))
    assert (output[0] == 0).all() and output[1].abs().sum() > 0
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert (fast(**padded_batch([0, 0], columns=4)).last_hidden_state == 0).all()


class Halve(torch.nn.Module):
    """In place of dropout: not random."""

    def forward(self, values):
        return values / 2


@pytest.mark.parametrize("name", ["dropout", "pos_dropout"])
def test_dropout_acts_where_the_library_has_it(name):
    library, batch = library_model(), padded_batch([6, 3])
    without, _ = output_and_gradients(library, batch)
    for layer in library.encoder.layer:
        setattr(layer.attention.self, name, Halve())
    assert_same(switched(library), library, batch)
    assert relative_error(output_and_gradients(library, batch)[0], without) > 1e-3


def test_hidden_states_are_the_library_s():
    library = library_model().eval()
    batch = padded_batch([14, 3])
    mask = batch["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        expected = library(**batch, output_hidden_states=True)
        actual = switched(library)(**batch, output_hidden_states=True)
        as_tuple = switched(library)(**batch, return_dict=False)
    states = zip((*actual.hidden_states, as_tuple[0]), (*expected.hidden_states, expected[0]), strict=True)
    for mine, theirs in states:
        assert relative_error(mine * mask, theirs * mask) <= 1e-5


def test_a_mask_brings_its_layout(toy_base):
    """Nothing is asked of the device: on "meta", which has shapes and no values, a question is an error."""
    model = load_model(str(toy_base), device="cpu").eval()
    features = model.preprocess(["가강 나금 다", "마"])
    expected = model(dict(features))["token_embeddings"]
    mask = features["attention_mask"].clone()
    mask.token_layout = layout_of(mask, pack=True).to(mask.device)
    assert mask.token_layout.real is not None and layout_of(mask, pack=True) is mask.token_layout
    assert torch.equal(model(features | {"attention_mask": mask})["token_embeddings"], expected)
    take_masks_from_host(model.to("meta"))
    features = {"input_ids": features["input_ids"].to("meta"), "attention_mask": features["attention_mask"]}
    model(features)["sentence_embedding"].sum().backward()
    assert all(parameter.grad is not None for parameter in model[0].model.encoder.layer.parameters())
