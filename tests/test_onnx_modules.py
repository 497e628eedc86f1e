"""A BERT with every kind of module that can be exported, external data, int8 tables, and what is refused by name."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx.external_data_helper import uses_external_data
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Dropout, Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel

from kf_deberta.cli import InputError
from kf_deberta.export import check as onnx_check
from kf_deberta.export.graph import ExportError, check_modules, export_model, graph_files, save_companions
from kf_deberta.export.quantize import quantize_int8
from kf_deberta.model.onnx_encoder import OnnxEncoder

MODES = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


@pytest.fixture(scope="module")
def transformer(toy_base, tmp_path_factory):
    """A random BERT (type embeddings, 12 heads) with the toy tokenizer."""
    path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 12, "intermediate_size": 96}
    vocab = json.loads((toy_base / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    BertModel(BertConfig(vocab_size=len(vocab), **sizes)).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((toy_base / name).read_bytes())
    return Transformer(str(path), max_seq_length=40)


@pytest.fixture(scope="module")
def model(transformer):
    """All six pooling modes side by side, then Dense and Normalize."""
    torch.manual_seed(1)
    modules = [transformer, Pooling(48, pooling_mode=MODES), Dense(48 * len(MODES), 24), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu").eval()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """The graph with all weights in external data, and its tokenizer."""
    path = tmp_path_factory.mktemp("exported") / "bert.onnx"
    export_model(model, path, max_file_bytes=1000, metadata=save_companions(model, path.parent))
    return path


@pytest.fixture(scope="module")
def sentences(model):
    return onnx_check.check_sentences(model.max_seq_length)


def test_all_modules_are_inside(model, exported, sentences):
    check_modules(model, "bert")
    assert len(sentences) == 33 == len(set(sentences) - {""}) + 3
    expected = model.encode(sentences, batch_size=1)
    assert expected.shape == (33, 24)
    for batch_size in (1, 33):
        got = OnnxEncoder(exported).encode(sentences, batch_size=batch_size)
        assert np.abs(got - expected).max() < 1e-5
    assert onnx_check.check_graph(exported, sentences, expected) < 1e-5
    with pytest.raises(ExportError, match="differ from torch's by 0.5"):
        onnx_check.check_graph(exported, sentences, expected + 0.5)
    with pytest.raises(ExportError, match="cosine -1.0"):
        onnx_check.check_reduced_graph(exported, sentences, -expected, 0.5)


def test_external_data_lies_beside_the_graph(exported):
    graph = onnx.load(exported, load_external_data=False).graph
    locations = {entry.value for tensor in graph.initializer if uses_external_data(tensor)
                 for entry in tensor.external_data if entry.key == "location"}  # fmt: skip
    assert locations == {"bert.onnx_data"}
    assert (exported.parent / "bert.onnx_data").stat().st_size > 4 * 1200 * 48
    assert graph_files(exported) == [exported, exported.parent / "bert.onnx_data"]


@pytest.mark.parametrize("reduce_range", [False, True])
def test_int8_tables(model, exported, sentences, reduce_range):
    path = exported.with_name(f"bert-{reduce_range}.onnx")
    quantize_int8(exported, path, reduce_range=reduce_range, max_file_bytes=1000 if reduce_range else 10**9)
    assert (path.parent / f"{path.name}_data").exists() == reduce_range
    assert not list(path.parent.glob("*folded*"))
    onnx_check.check_reduced_graph(path, sentences, model.encode(sentences, batch_size=1), 0.99)
    # one scale per token: an embedding does not depend on the sentences beside it
    encoder = OnnxEncoder(path)
    alone, together = (encoder.encode(sentences, batch_size=batch_size) for batch_size in (1, 33))
    assert np.abs(alone - together).max() < 1e-4 < 0.1 < np.abs(alone).max()
    graph = onnx.load(path)
    assert {entry.domain for entry in graph.opset_import} == {""}  # ordinary ONNX, no operators of onnxruntime's own
    tables = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    weights = [tables[node.input[1]] for node in graph.graph.node if node.op_type == "MatMulInteger"]
    assert len(weights) == 6 * 2 + 1  # query, key, value, output, two feed-forward a layer; Dense
    assert {table.dtype for table in weights} == {np.dtype(np.int8)}
    largest = max(np.abs(table.astype(int)).max() for table in weights)
    assert (largest <= 64) if reduce_range else (largest >= 127)
    # every row of the word table within half a step of the model's own
    words = model[0].auto_model.get_input_embeddings().weight.detach().numpy()
    name = next(name for name in tables if name.endswith("_int8"))
    scale = tables[name.replace("_int8", "_scale")]
    assert np.abs(tables[name] * scale - words).max() <= 0.5001 * scale.max()
    used = words.any(axis=1)  # the padding token's row is zero
    assert used.sum() >= len(words) - 1
    assert np.allclose(scale[used, 0] * 127, np.abs(words[used]).max(axis=1), atol=1e-7)


def test_what_cannot_be_exported_is_refused_by_name(transformer):
    def refused(*modules, match):
        with pytest.raises(InputError, match=match):
            check_modules(SentenceTransformer(modules=[transformer, *modules], device="cpu"), "bert")

    refused(Pooling(48), Dropout(), match="module 2 is Dropout")
    refused(match="Transformer; only a Transformer followed by a Pooling")
    refused(Pooling(48, include_prompt=False), match="include_prompt")


def test_left_padding_is_refused(transformer, monkeypatch):
    monkeypatch.setattr(transformer.tokenizer, "padding_side", "left")
    with pytest.raises(InputError, match="pads on the left"):
        check_modules(SentenceTransformer(modules=[transformer, Pooling(48)], device="cpu"), "bert")


def test_tokenizer_file_holds_truncation_and_padding(exported, model):
    content = json.loads((exported.parent / "tokenizer.json").read_text(encoding="utf-8"))
    assert content["truncation"]["max_length"] == model.max_seq_length == 40
    assert content["padding"]["strategy"] == "BatchLongest"
    assert content["padding"]["pad_token"] == model.tokenizer.pad_token
