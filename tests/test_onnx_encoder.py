"""OnnxEncoder on a hand-made graph whose embeddings are known, alone and as a row of the benchmark."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from in_process import run_here
from kf_deberta.errors import InputError
from kf_deberta.model.onnx_encoder import OnnxEncoder, tokenizer_fingerprint

HEADER = "genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2\n"
# unit vectors whose cosine with w0 is 1.0, 0.8, 0.6, 0.4, 0.2
COSINES = np.array([1.0, 0.8, 0.6, 0.4, 0.2])
TABLE = np.stack([COSINES, np.sqrt(1 - COSINES**2)], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def known_graph(tmp_path_factory):
    """A graph that averages the table rows of the words, and its word-level tokenizer; padding is row 4, not zeros."""
    path = tmp_path_factory.mktemp("onnx") / "known.onnx"
    sizes = ["batch", "tokens"]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, sizes) for n in ("input_ids", "attention_mask")]
    output = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", 2])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last_axis"], ["mask3"]),
        helper.make_node("Mul", ["words", "mask3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "token_axis"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask3", "token_axis"], ["count"], keepdims=0),
        helper.make_node("Div", ["total", "count"], ["sentence_embedding"]),
    ]
    constants = {"table": TABLE, "last_axis": np.array([2]), "token_axis": np.array([1])}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "known", inputs, [output], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(5)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(pad_id=4, pad_token="w4")
    tokenizer.save(str(path.parent / "tokenizer.json"))
    return path


def changed_graph(known_graph, folder, change=lambda model: None):
    """A copy of the known graph and its tokenizer in `folder`, after `change(model)`."""
    (folder / "tokenizer.json").write_bytes((known_graph.parent / "tokenizer.json").read_bytes())
    model = onnx.load(known_graph)
    change(model)
    onnx.save(model, folder / "changed.onnx")
    return folder / "changed.onnx"


def test_encoder_gives_the_known_embeddings_whatever_the_batches(known_graph, tmp_path):
    sentences = ["w1", "w0 w2", "w3 w3 w1 w0", "w2", "w4 w1 w2"]  # the third is truncated to three words
    words = [[1], [0, 2], [3, 3, 1], [2], [4, 1, 2]]
    encoder = OnnxEncoder(known_graph)
    for batch_size in (1, 2, 64):
        embeddings = encoder.encode(sentences, batch_size=batch_size)
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(embeddings, [TABLE[row].mean(0) for row in words], atol=1e-6)
    assert encoder.encode([]).shape == (0, 2)
    np.testing.assert_allclose(OnnxEncoder(known_graph, prompt="w4 ").encode(["w1"]), [TABLE[[4, 1]].mean(0)])
    path = changed_graph(known_graph, tmp_path)
    (tmp_path / "onnx").mkdir()
    hub = path.rename(tmp_path / "onnx" / "model.onnx")  # its tokenizer lies above
    np.testing.assert_allclose(OnnxEncoder(hub).encode(["w1"]), TABLE[[1]], atol=1e-6)


def test_hand_made_file_has_its_known_correlations(known_graph, tmp_path, capsys):
    """Cosines 0.8 0.6 0.4 0.2 with gold 4 3 1 2: two neighbors swapped, so r = rho = 1 - 6 * 2 / (4 * 15) = 0.8.

    On unit vectors the dot product is the cosine, and both distances fall as it rises, so all four rho are 0.8.
    """
    pairs = tmp_path / "pairs.tsv"
    gold = {"w1": 4, "w2": 3, "w3": 1, "w4": 2}
    pairs.write_text(HEADER + "".join(f"g\tf\ty\t0\t{score}\tw0\t{word}\n" for word, score in gold.items()))
    output = tmp_path / "known.json"
    flags = ["--model_name_or_path", known_graph, "--data", pairs, "--output", output]
    assert run_here("bin/benchmark.py", *flags) == 0
    (record,) = json.loads(output.read_text())
    distance = np.linalg.norm(TABLE[0] - TABLE[1:], axis=1)
    rho = [record[f"{name}_spearman"] for name in ("cosine", "euclidean", "manhattan", "dot")]
    assert rho == pytest.approx([0.8] * 4, abs=1e-9)
    assert record["cosine_pearson"] == pytest.approx(0.8, abs=1e-6)
    assert record["euclidean_pearson"] == pytest.approx(np.corrcoef(-distance, [4, 3, 1, 2])[0, 1], abs=1e-6)
    assert record["sentences"] == 5 and record["rows"] == 4 and record["revision"] == str(known_graph.resolve())
    assert "| 80.00 |" in capsys.readouterr().out.replace("*", "")


def other_input(model):
    model.graph.input[1].name = model.graph.node[1].input[0] = "mask_of_tokens"


def fixed_batch(model):
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def short_table(model):
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
    table.CopyFrom(numpy_helper.from_array(TABLE[:3], "table"))


@pytest.mark.parametrize("change", [other_input, fixed_batch, short_table])
def test_other_graphs_are_refused_when_they_are_opened(known_graph, tmp_path, change):
    path = changed_graph(known_graph, tmp_path, change)
    with pytest.raises(InputError, match=r"changed\.onnx: cannot embed 2 sentences"):
        OnnxEncoder(path)


def test_files_that_are_missing_or_no_graph(known_graph, tmp_path):
    with pytest.raises(InputError, match=r"none\.onnx: not a usable .*; export the model with bin/export_onnx\.py"):
        OnnxEncoder(tmp_path / "none.onnx")
    path = changed_graph(known_graph, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: not a usable tokenizer"):
        OnnxEncoder(path)
    path.write_bytes(b"not a graph")
    with pytest.raises(InputError, match=r"changed\.onnx: not a usable ONNX graph"):
        OnnxEncoder(path)
    with pytest.raises(InputError, match="--device tpu: not offered by this onnxruntime; it has .*cpu"):
        OnnxEncoder(known_graph, device="tpu")


def test_a_graph_with_the_tokenizer_of_another_model_is_refused(known_graph, tmp_path):
    tokenizer_path = tmp_path / "tokenizer.json"

    def tied(model):
        tokenizer = Tokenizer.from_file(str(known_graph.parent / "tokenizer.json"))
        metadata = {"tokenizer_sha256": tokenizer_fingerprint(tokenizer), "max_seq_length": "2"}
        helper.set_model_props(model, metadata)

    path = changed_graph(known_graph, tmp_path, tied)
    content = json.loads(tokenizer_path.read_text())
    np.testing.assert_allclose(OnnxEncoder(path).encode(["w1 w2 w3 w4"]), [TABLE[[1, 2, 3]].mean(0)], atol=1e-6)
    # another truncation is the user's choice; none, as in a model's own directory, is the graph's
    tokenizer_path.write_text(json.dumps(content | {"truncation": None, "padding": None}))
    np.testing.assert_allclose(OnnxEncoder(path).encode(["w1 w2 w3 w4"]), [TABLE[[1, 2]].mean(0)], atol=1e-6)
    others = [
        content | {"model": content["model"] | {"vocab": {"w1": 0, "w0": 1, "w2": 2, "w3": 3, "w4": 4}}},
        content | {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": ""}},
    ]
    for other in others:
        tokenizer_path.write_text(json.dumps(other))
        with pytest.raises(InputError, match=r"tokenizer\.json: changed\.onnx was exported with another tokenizer"):
            OnnxEncoder(path)
