"""The fast attention in other precisions, checkpointing, compilation and export; what it must leave as it was."""

import copy
import pickle

import pytest
import torch
from transformers import BertConfig, BertModel, DebertaV2ForMaskedLM

from deberta_models import assert_same, library_model, output_and_gradients, padded_batch, relative_error, switched
from kf_deberta.model.attention import use_fast_attention


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


def test_gradient_checkpointing():
    library = library_model()
    fast = switched(library)
    fast.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert fast.encoder.layer[0].gradient_checkpointing
    assert_same(fast, library, padded_batch([17, 2, 8]))


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


def test_calls_for_attention_weights_run_the_library():
    library = library_model().eval()
    fast, batch = switched(library), padded_batch([6, 2])
    with torch.no_grad():
        expected = library(**batch, output_attentions=True)
        actual = fast(**batch, output_attentions=True)
    assert len(actual.attentions) == len(expected.attentions) == 2
    assert torch.equal(actual.attentions[1], expected.attentions[1])
    assert torch.equal(actual.last_hidden_state, expected.last_hidden_state)
