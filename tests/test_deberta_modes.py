"""The fast attention under other precisions, checkpointing, compilation and export; what it must leave as it was."""

import copy
import io
import json
import logging
import pickle

import numpy as np
import onnxruntime
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel, DebertaV2ForMaskedLM

from deberta_models import BASE, assert_same, library_model, padded_batch, relative_error, switched
from kf_deberta.model.attention import use_fast_attention


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, autocast):
    library = library_model(initializer_range=0.05)
    fast, exact = switched(library), copy.deepcopy(library)
    batch = padded_batch([25, 4, 11])
    mask = batch["attention_mask"].unsqueeze(-1)
    if not autocast:
        library, fast = library.to(dtype), fast.to(dtype)
    expected = exact(**batch).last_hidden_state * mask
    with torch.autocast("cpu", dtype, enabled=autocast):
        theirs, mine = library(**batch).last_hidden_state, fast(**batch).last_hidden_state
    assert mine.dtype == theirs.dtype
    assert relative_error(mine.float() * mask, theirs.float() * mask) <= 2e-2
    assert relative_error(mine.float() * mask, expected) <= 2e-2
    mine.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in fast.parameters() if p.grad is not None)


def test_gradient_checkpointing():
    library = library_model()
    fast = switched(library)
    fast.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert fast.is_gradient_checkpointing
    assert_same(fast, library, padded_batch([17, 2, 8]))


def test_torch_compile():
    library = library_model(num_hidden_layers=1)
    fast = switched(library)
    fast.compile(backend="aot_eager")  # traces forward and backward, without a C++ compiler
    assert_same(fast, library, padded_batch([9, 4]))


class _LastHiddenState(torch.nn.Module):
    """Positional inputs and one output, as the exporters want them."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


BATCHES = [[1], [20], [50, 3, 17, 1], [7] * 33, [300, 2], [512]]


def _assert_same_everywhere(run, library) -> None:
    for lengths in BATCHES:
        batch = padded_batch(lengths)
        mask = batch["attention_mask"].unsqueeze(-1)
        with torch.no_grad():
            expected = library(**batch).last_hidden_state * mask
        assert relative_error(run(batch["input_ids"], batch["attention_mask"]), expected) <= 1e-5, lengths


def test_torch_export_with_dynamic_shapes():
    library = library_model(num_hidden_layers=1, position_buckets=32).eval()
    example = padded_batch([9, 4, 2])
    axes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=1, max=512)}
    with torch.no_grad():
        program = torch.export.export(
            _LastHiddenState(switched(library)), tuple(example.values()), dynamic_shapes=(axes, axes)
        )
    _assert_same_everywhere(program.module(), library)


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_onnx(dynamo, tmp_path):
    library = library_model(num_hidden_layers=1).eval()
    example = padded_batch([9, 4, 2])
    path = tmp_path / "model.onnx"
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["last_hidden_state"]}
    if dynamo:
        axes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=1, max=512)}
        options = {"dynamo": True, "dynamic_shapes": (axes, axes), "verbose": False}
    else:
        axes = {0: "batch", 1: "length"}
        dynamic = dict.fromkeys([*names["input_names"], *names["output_names"]], axes)
        options = {"dynamo": False, "dynamic_axes": dynamic}
    with torch.no_grad():
        torch.onnx.export(_LastHiddenState(switched(library)), tuple(example.values()), path, **names, **options)
    session = onnxruntime.InferenceSession(path)

    def run(ids, mask):
        return torch.from_numpy(
            session.run(None, {"input_ids": np.asarray(ids), "attention_mask": np.asarray(mask)})[0]
        )

    _assert_same_everywhere(run, library)


def test_state_dict_and_saved_files_are_unchanged(tmp_path):
    library = library_model()
    fast = switched(library)
    assert [(n, p.shape) for n, p in fast.named_parameters()] == [(n, p.shape) for n, p in library.named_parameters()]
    assert fast.state_dict().keys() == library.state_dict().keys()
    library.save_pretrained(tmp_path / "library")
    fast.save_pretrained(tmp_path / "fast")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "fast" / name).read_bytes() == (tmp_path / "library" / name).read_bytes()
    assert json.loads((tmp_path / "fast" / "config.json").read_text())["architectures"] == ["DebertaV2Model"]


def test_copies_and_pickles_stay_fast_and_independent():
    fast = switched(library_model()).eval()
    batch = padded_batch([8, 3])
    stream = io.BytesIO()
    torch.save(fast, stream)
    stream.seek(0)
    with torch.no_grad():
        expected = fast(**batch).last_hidden_state
        for other in (
            copy.deepcopy(fast),
            pickle.loads(pickle.dumps(fast)),
            torch.load(stream, weights_only=False),
        ):
            assert use_fast_attention(other) == 0  # already switched
            assert torch.equal(other(**batch).last_hidden_state, expected)


def test_switches_inside_other_modules_once(toy_base):
    sentence_transformer = SentenceTransformer(str(toy_base), device="cpu")
    sentences = ["한 문장", "조금 더 긴 다른 문장 하나가 여기에 있다", "셋"]
    expected = sentence_transformer.encode(sentences)
    assert use_fast_attention(sentence_transformer) == 1
    assert use_fast_attention(sentence_transformer) == 0
    np.testing.assert_allclose(sentence_transformer.encode(sentences), expected, rtol=0, atol=1e-5)
    head = DebertaV2ForMaskedLM(library_model().config)
    assert use_fast_attention(torch.nn.ModuleList([head, library_model()])) == 2


def test_leaves_alone_what_it_does_not_cover(caplog):
    caplog.set_level(logging.INFO)
    bert = BertModel(BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    assert use_fast_attention(bert) == 0
    assert "no DebertaV2 encoder" in caplog.text
    strange = library_model(position_buckets=32, max_relative_positions=17)  # every far bucket divides by log(1)
    assert use_fast_attention(strange) == 0
    assert "keeps the library's attention" in caplog.text


def test_calls_for_attention_weights_run_the_library(caplog):
    caplog.set_level(logging.INFO)
    library = library_model().eval()
    fast, batch = switched(library), padded_batch([6, 2])
    with torch.no_grad():
        expected = library(**batch, output_attentions=True)
        actual = fast(**batch, output_attentions=True)
    assert len(actual.attentions) == BASE["num_hidden_layers"]
    assert torch.equal(actual.attentions[1], expected.attentions[1])
    assert torch.equal(actual.last_hidden_state, expected.last_hidden_state)
    assert "library's attention" in caplog.text
