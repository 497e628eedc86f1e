"""The fast attention against the library's eager attention: outputs, all gradients, and what it leaves as it was."""

import copy
import pickle

import pytest
import torch
from transformers import BertConfig, BertModel, DebertaV2ForMaskedLM

from deberta_models import assert_same, library_model, output_and_gradients, padded_batch, relative_error, switched
from kf_deberta.model import attention
from kf_deberta.model.attention import use_fast_attention
from kf_deberta.model.packing import layout_of

POSITION_OPTIONS = [{"position_buckets": buckets} for buckets in (256, 32, 7, 2, -1)]
POSITION_OPTIONS += [{"position_buckets": buckets, "max_relative_positions": 20} for buckets in (-1, 8)]
MANY_LENGTHS = [5, 61, 30, 60, 12, 60, 1, 29, 0, 61, 28, 12, 13, 11, 12]

LAYOUTS = {  # arguments of layout_of, and the lengths of its groups
    "groups": ({"pack": True}, [61, 30, 13]),
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
@pytest.mark.parametrize("checkpointing", [False, True])
def test_other_options_of_the_encoder(options, checkpointing):
    library = library_model(**options)
    fast = switched(library)
    if checkpointing:
        fast.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert fast.encoder.layer[0].gradient_checkpointing == checkpointing
    assert_same(fast, library, padded_batch([9, 30, 4], columns=33))


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"share_att_key": False, "position_buckets": 32}, {"conv_kernel_size": 3}])
def test_every_layout_with_padding_on_either_side(options, layout, left, monkeypatch):
    batch, (arguments, expected) = padded_batch(MANY_LENGTHS, columns=70, left=left), LAYOUTS[layout]
    monkeypatch.setattr(attention, "layout_of", lambda mask, pack: layout_of(mask, **arguments))
    assert [group.length for group in layout_of(batch["attention_mask"], **arguments).groups] == expected
    library = library_model(conv_act="gelu", **options)
    assert_same(switched(library), library, batch)


def test_only_a_cpu_packs():
    mask = padded_batch([5, 3])["attention_mask"]
    assert layout_of(mask, pack=True).real is not None and layout_of(mask.to("meta"), pack=True).real is None


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


def test_hidden_states_are_the_library_s_and_attention_weights_are_computed_by_it():
    library, batch = library_model().eval(), padded_batch([14, 3])
    fast, mask = switched(library), batch["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        hidden = [model(**batch, output_hidden_states=True).hidden_states for model in (fast, library)]
        last = [model(**batch, return_dict=False)[:1] for model in (fast, library)]
        for mine, theirs in [*zip(*hidden, strict=True), *zip(*last, strict=True)]:
            assert relative_error(mine * mask, theirs * mask) <= 1e-5
        actual, expected = (model(**batch, output_attentions=True) for model in (fast, library))
    assert len(actual.attentions) == 2 and torch.equal(actual.last_hidden_state, expected.last_hidden_state)
    assert all(map(torch.equal, actual.attentions, expected.attentions))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, autocast):
    library = library_model(initializer_range=0.05)
    batch = padded_batch([25, 4, 11])
    expected, _ = output_and_gradients(library, batch)
    fast = switched(library) if autocast else switched(library).to(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        output, gradients = output_and_gradients(fast, batch)
    assert relative_error(output, expected) <= 2e-2
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_torch_compile():
    library = library_model(num_hidden_layers=1)
    fast = switched(library)
    fast.compile(backend="aot_eager")  # traces forward and backward, without a C++ compiler
    assert_same(fast, library, padded_batch([9, 4]))


def test_an_exported_graph_does_not_contain_the_lengths_of_its_example():
    library = library_model(num_hidden_layers=1, position_buckets=32).eval()
    axes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=1, max=512)}
    shapes = {"input_ids": axes, "attention_mask": axes}
    with torch.no_grad():
        exported = torch.export.export(switched(library), (), padded_batch([9, 4, 2]), dynamic_shapes=shapes).module()
        for lengths in [[9, 9, 1], [1], [50, 3, 17, 1], [7] * 33, [300, 2], [512]]:
            batch = padded_batch(lengths)
            mask = batch["attention_mask"].unsqueeze(-1)
            actual, expected = (model(**batch).last_hidden_state * mask for model in (exported, library))
            assert relative_error(actual, expected) <= 1e-5, lengths


def test_parameters_saved_files_copies_and_pickles(tmp_path):
    library, batch = library_model(), padded_batch([8, 3])
    fast = switched(library)
    library.save_pretrained(tmp_path / "library")
    fast.save_pretrained(tmp_path / "fast")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "fast" / name).read_bytes() == (tmp_path / "library" / name).read_bytes()
    assert use_fast_attention(fast) == 0  # already switched
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert use_fast_attention(other) == 0
        assert torch.equal(other(**batch).last_hidden_state, fast(**batch).last_hidden_state)


def test_what_is_switched():
    bert = BertModel(BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    head = DebertaV2ForMaskedLM(library_model().config)
    assert use_fast_attention(torch.nn.ModuleList([head, library_model(), bert])) == 2
