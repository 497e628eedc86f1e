"""OnnxEncoder on a hand-made graph whose embeddings are known, and an exported model beside its torch original."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoTokenizer

from benchmark_script import run_benchmark
from kf_deberta.cli import InputError
from kf_deberta.model.onnx_encoder import OnnxEncoder, tokenizer_fingerprint

HEADER = "genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2\n"
# unit vectors whose cosine with w0 is 1.0, 0.8, 0.6, 0.4, 0.2
COSINES = np.array([1.0, 0.8, 0.6, 0.4, 0.2])
TABLE = np.stack([COSINES, np.sqrt(1 - COSINES**2)], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def known_graph(tmp_path_factory):
    """A graph that averages the table rows of the words, and its word-level tokenizer; padding is row 0, not zeros."""
    path = tmp_path_factory.mktemp("onnx") / "known.onnx"
    sizes = ["batch", "tokens"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, sizes) for name in ("input_ids", "attention_mask")
    ]
    outputs = [
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*sizes, 2]),
        helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", 2]),
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last_axis"], ["mask3"]),
        helper.make_node("Mul", ["last_hidden_state", "mask3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "token_axis"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask3", "token_axis"], ["count"], keepdims=0),
        helper.make_node("Div", ["total", "count"], ["sentence_embedding"]),
    ]
    constants = {"table": TABLE, "last_axis": np.array([2]), "token_axis": np.array([1])}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "known", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(5)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(pad_id=4, pad_token="w4")
    tokenizer.save(str(path.parent / "tokenizer.json"))
    return path


def test_encoder_gives_the_known_embeddings_whatever_the_batches(known_graph):
    sentences = ["w1", "w0 w2", "w3 w3 w1 w0", "w2", "w4 w1 w2"]  # the third is cut to three words
    words = [[1], [0, 2], [3, 3, 1], [2], [4, 1, 2]]
    encoder = OnnxEncoder(known_graph)
    for batch_size in (1, 2, 64):
        embeddings = encoder.encode(sentences, batch_size=batch_size)
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(embeddings, [TABLE[row].mean(0) for row in words], atol=1e-6)
    assert encoder.encode([]).shape == (0, 2)


def test_hand_made_file_has_its_known_correlations(known_graph, tmp_path, capsys):
    """Cosines 0.8 0.6 0.4 0.2 with gold 4 3 1 2: two neighbors swapped, so r = rho = 1 - 6 * 2 / (4 * 15) = 0.8.

    On unit vectors the dot product is the cosine, and both distances fall as it rises, so all four rho are 0.8.
    """
    pairs = tmp_path / "pairs.tsv"
    gold = {"w1": 4, "w2": 3, "w3": 1, "w4": 2}
    pairs.write_text(HEADER + "".join(f"g\tf\ty\t0\t{score}\tw0\t{word}\n" for word, score in gold.items()))
    output = tmp_path / "known.json"
    assert run_benchmark("--model_name_or_path", known_graph, "--tsv", pairs, "--output", output) == 0
    lines = capsys.readouterr().out.splitlines()
    distance = np.linalg.norm(TABLE[0] - TABLE[1:], axis=1)
    euclidean = 100 * np.corrcoef(-distance, [4, 3, 1, 2])[0, 1]
    row = next(line for line in lines if str(known_graph) in line).replace("*", "").split(" | ")
    assert [row[i] for i in (1, 2, 4, 6, 7, 8)] == ["80.00"] * 6
    assert row[3] == f"{euclidean:.2f}"
    (record,) = json.loads(output.read_text())
    assert record["cosine_spearman"] == pytest.approx(0.8, abs=1e-9)
    assert record["sentences"] == 5 and record["rows"] == 4 and record["revision"] == str(known_graph.resolve())


class MeanPooled(torch.nn.Module):
    """A plain transformers encoder with mean pooling by hand."""

    def __init__(self, path):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(path, dtype=torch.float32)

    def forward(self, input_ids, attention_mask):
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).float()
        return hidden, (hidden * mask).sum(1) / mask.sum(1)


@pytest.mark.filterwarnings("ignore")  # the legacy exporter warns of itself and of constants
def test_onnx_row_equals_the_torch_row(toy_base, repo, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(toy_base)
    batch = tokenizer(["가 나 다", "라"], padding=True, return_tensors="pt")
    names = ["input_ids", "attention_mask"]
    path, axes = tmp_path / "toy.onnx", {0: "batch", 1: "tokens"}
    torch.onnx.export(
        MeanPooled(toy_base).eval(),
        tuple(batch[name] for name in names),
        path,
        input_names=names,
        output_names=["last_hidden_state", "sentence_embedding"],
        dynamic_axes=dict.fromkeys([*names, "last_hidden_state"], axes) | {"sentence_embedding": {0: "batch"}},
        dynamo=False,
    )
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    output = tmp_path / "both.json"
    arguments = ("--sts_dataset_path", repo / "sample" / "KorSTS", "--output", output, "--model_name_or_path")
    assert run_benchmark(*arguments, toy_base, path) == 0
    torch_row, onnx_row = json.loads(output.read_text())
    assert onnx_row["settings"] == "onnxruntime"
    for name in [name for name in torch_row if name.endswith(("_pearson", "_spearman"))]:
        assert 100 * onnx_row[name] == pytest.approx(100 * torch_row[name], abs=0.01), name


def test_unusable_graphs_are_input_errors(known_graph, tmp_path):
    with pytest.raises(InputError, match=r"none\.onnx: no such file"):
        OnnxEncoder(tmp_path / "none.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        OnnxEncoder(broken)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"broken\.onnx: not a usable ONNX graph"):
        OnnxEncoder(broken)
    broken.write_bytes(known_graph.read_bytes())
    with pytest.raises(InputError, match=r"tokenizer\.json: not a tokenizer file"):
        OnnxEncoder(broken)
    (tmp_path / "tokenizer.json").write_bytes((known_graph.parent / "tokenizer.json").read_bytes())
    graph = onnx.load(known_graph)
    graph.graph.input[1].name = "mask"
    graph.graph.node[1].input[0] = "mask"
    graph.graph.node[1].output[0] = "float_mask"
    graph.graph.node[2].input[0] = "float_mask"
    onnx.save(graph, broken)
    with pytest.raises(InputError, match=r"inputs \['input_ids', 'mask'\].*bin/export_onnx\.py"):
        OnnxEncoder(broken)


def changed_graph(known_graph, folder, change):
    """A copy of the known graph and its tokenizer in `folder`, after `change(model)`."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes((known_graph.parent / "tokenizer.json").read_bytes())
    model = onnx.load(known_graph)
    change(model)
    onnx.save(model, folder / "changed.onnx")
    return folder / "changed.onnx"


def fixed_batch(model):
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def token_rank(model):
    model.graph.node[-1].output[0] = "mean"
    model.graph.node.append(helper.make_node("Mul", ["last_hidden_state", "mask3"], ["sentence_embedding"]))
    model.graph.output[1].CopyFrom(helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, None))


def scalar(model):
    model.graph.node[-1].output[0] = "mean"
    model.graph.node.append(helper.make_node("ReduceMean", ["mean"], ["sentence_embedding"], keepdims=0))
    model.graph.output[1].CopyFrom(helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, None))


def one_row_for_all(model):
    model.graph.node[-1].output[0] = "mean"
    model.graph.node.append(helper.make_node("ReduceMean", ["mean"], ["sentence_embedding"], axes=[0], keepdims=1))
    model.graph.output[1].CopyFrom(helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, None))


def short_table(model):
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
    table.CopyFrom(numpy_helper.from_array(TABLE[:3], "table"))


@pytest.mark.parametrize("change", [fixed_batch, token_rank, scalar, one_row_for_all, short_table])
def test_graphs_of_others_are_tried_when_they_are_opened(known_graph, tmp_path, change):
    path = changed_graph(known_graph, tmp_path, change)
    with pytest.raises(InputError, match=r"changed\.onnx: (cannot embed 2 sentences|sentence_embedding has shape)"):
        OnnxEncoder(path)


def test_a_sentence_longer_than_the_graph_takes(known_graph, tmp_path):
    def at_most_six(model):
        model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 6, 2), np.float32), "positions"))
        constants = {"zero": [0], "one": [1], "axis": [1]}
        model.graph.initializer.extend(numpy_helper.from_array(np.array(v), k) for k, v in constants.items())
        nodes = [
            helper.make_node("Shape", ["input_ids"], ["tokens"], start=1),
            helper.make_node("Range", ["zero0", "tokens0", "one0"], ["range"]),
            helper.make_node("Squeeze", ["tokens"], ["tokens0"]),
            helper.make_node("Squeeze", ["zero"], ["zero0"]),
            helper.make_node("Squeeze", ["one"], ["one0"]),
            helper.make_node("Gather", ["positions", "range"], ["rows"], axis=1),
            helper.make_node("Add", ["words", "rows"], ["last_hidden_state"]),
        ]
        model.graph.node[0].output[0] = "words"
        ordered = [nodes[i] for i in (0, 2, 3, 4, 1, 5, 6)]
        for node in reversed(ordered):
            model.graph.node.insert(1, node)

    path = changed_graph(known_graph, tmp_path, at_most_six)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = OnnxEncoder(path)
    np.testing.assert_allclose(encoder.encode(["w1 w1"]), TABLE[[1]], atol=1e-6)
    with pytest.raises(InputError, match=r"changed\.onnx: cannot embed 1 sentences of 7 tokens"):
        encoder.encode(["w1 " * 7])


def test_a_graph_and_the_tokenizer_of_another_are_refused(known_graph, tmp_path):
    tokenizer_path = tmp_path / "tokenizer.json"

    def tied(model):
        tokenizer = Tokenizer.from_file(str(known_graph.parent / "tokenizer.json"))
        metadata = {"tokenizer_sha256": tokenizer_fingerprint(tokenizer), "max_seq_length": "2"}
        onnx.helper.set_model_props(model, metadata)

    path = changed_graph(known_graph, tmp_path, tied)
    content = json.loads(tokenizer_path.read_text())
    sentences = ["w1 w2 w3 w4"]
    np.testing.assert_allclose(OnnxEncoder(path).encode(sentences), [TABLE[[1, 2, 3]].mean(0)], atol=1e-6)
    # another truncation is the user's choice; none, as in a model's own folder, is the graph's
    tokenizer_path.write_text(json.dumps(content | {"truncation": None, "padding": None}))
    np.testing.assert_allclose(OnnxEncoder(path).encode(sentences), [TABLE[[1, 2]].mean(0)], atol=1e-6)
    others = [
        content | {"model": content["model"] | {"vocab": {"w1": 0, "w0": 1, "w2": 2, "w3": 3, "w4": 4}}},
        content | {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": ""}},
    ]
    for other in others:
        tokenizer_path.write_text(json.dumps(other))
        with pytest.raises(InputError, match=r"tokenizer\.json: changed\.onnx was exported with another tokenizer"):
            OnnxEncoder(path)


def test_the_default_prompt_lies_in_the_folder(known_graph, tmp_path):
    path = changed_graph(known_graph, tmp_path, lambda model: None)
    config = tmp_path / "config_sentence_transformers.json"
    config.write_text(json.dumps({"prompts": {"query": "w4 "}, "default_prompt_name": "query"}))
    np.testing.assert_allclose(OnnxEncoder(path).encode(["w1"]), [TABLE[[4, 1]].mean(0)], atol=1e-6)
    np.testing.assert_allclose(OnnxEncoder(path, prompt="").encode(["w1"]), TABLE[[1]], atol=1e-6)
    config.write_text(json.dumps({"prompts": {}, "default_prompt_name": "query"}))
    with pytest.raises(InputError, match="default prompt"):
        OnnxEncoder(path)
    path = path.rename(tmp_path / "other.onnx")
    config.unlink()
    (tmp_path / "onnx").mkdir()
    hub = path.rename(tmp_path / "onnx" / "model.onnx")  # its tokenizer lies above
    np.testing.assert_allclose(OnnxEncoder(hub).encode(["w1"]), TABLE[[1]], atol=1e-6)
