"""bin/export_onnx.py as a user runs it, its graphs against plain transformers, its README's example without torch."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Dropout, Normalize, Pooling
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

from in_process import run_here
from kf_deberta.errors import InputError
from kf_deberta.export.check import check_graph, check_loss, expectation
from kf_deberta.export.graph import check_modules, export_model, graph_files, save_companions
from kf_deberta.export.quantize import quantize_int8
from kf_deberta.model.load import load_model
from kf_deberta.model.onnx_encoder import OnnxEncoder
from zoo import write_encoder

MAX_SEQ_LENGTH = 48
COMPANIONS = {"1_Pooling", "README.md", "config.json", "config_sentence_transformers.json", "modules.json"}
COMPANIONS |= {"sentence_bert_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"}
BLOCKED = ("torch", "transformers", "sentence_transformers", "onnx")
LONG = "아이들이 춤을 추고 한 남자가 기타를 친다 . " * 9 + "비가 온다"


@pytest.fixture(scope="module")
def base(toy_base, tmp_path_factory):
    """A copy of the base, which the export may write into."""
    return shutil.copytree(toy_base, tmp_path_factory.mktemp("base") / "my-model")


@pytest.fixture(scope="module")
def export(base, run_script, repo, tmp_path_factory):
    """One export of everything: (process, output directory)."""
    directory = tmp_path_factory.mktemp("export") / "new" / "models"
    flags = ["--quantize", "--fp16", "--max_seq_length", MAX_SEQ_LENGTH, "--opset", 20]
    paths = ["--model_name_or_path", base, "--output_dir", directory, "--sts_dataset_path", repo / "sample" / "KorSTS"]
    return run_script("bin/export_onnx.py", *paths, *flags, check=True), directory


@pytest.fixture(scope="module")
def session(export):
    return onnxruntime.InferenceSession(str(export[1] / "my-model.onnx"))


def plain_transformers(base, ids, mask):
    """Hidden states and their masked mean, by the library alone."""
    encoder = AutoModel.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        hidden = encoder(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state
    hidden = hidden.numpy()
    return hidden, (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)


def test_files_and_nothing_else(export):
    result, directory = export
    graphs = {"my-model.onnx", "my-model-int8.onnx", "my-model-fp16.onnx"}
    assert {path.name for path in directory.iterdir()} - {"vocab.txt"} == graphs | COMPANIONS
    text = (directory / "README.md").read_text(encoding="utf-8")
    for name in ("torch", "my-model.onnx", "my-model-int8.onnx"):
        row = re.search(rf"^\| {name} \|( -?\d+\.\d\d \|){{8}}$", text, re.MULTILINE)
        assert row and row[0] in result.stdout
    assert "Traceback" not in result.stderr and "Warning" not in result.stderr


def test_interface_and_opset(export, session):
    described = [(node.name, node.type, node.shape) for node in (*session.get_inputs(), *session.get_outputs())]
    assert described == [
        ("input_ids", "tensor(int64)", ["batch", "sequence"]),
        ("attention_mask", "tensor(int64)", ["batch", "sequence"]),
        ("last_hidden_state", "tensor(float)", ["batch", "sequence", 32]),
        ("sentence_embedding", "tensor(float)", ["batch", 32]),
    ]
    for kind in ("", "-int8", "-fp16"):
        graph = onnx.load(export[1] / f"my-model{kind}.onnx")
        assert {entry.domain: entry.version for entry in graph.opset_import} == {"": 20} and graph.ir_version == 9
        assert b"site-packages" not in graph.SerializeToString()  # no stack trace of the exporting machine


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 1), (33, 7), (2, 300), (1, 512)])
def test_graph_equals_plain_transformers(base, session, batch, length):
    generator = np.random.default_rng(batch * length)
    ids = generator.integers(5, 1000, (batch, length))
    mask = (np.arange(length) < generator.integers(1, length + 1, (batch, 1))).astype(np.int64)
    hidden, mean = plain_transformers(base, ids, mask)
    got_hidden, got_mean = session.run(None, {"input_ids": ids, "attention_mask": mask})
    assert np.abs(got_mean - mean).max() < 1e-5
    assert np.abs((got_hidden - hidden) * mask[..., None]).max() < 1e-5


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.45), ("fp16", 0.6)])
def test_reduced_graphs_are_smaller_and_near(base, export, kind, share):
    path = export[1] / f"my-model-{kind}.onnx"
    assert path.stat().st_size < share * (export[1] / "my-model.onnx").stat().st_size
    ids = np.random.default_rng(3).integers(5, 1000, (8, 20))
    mask = (np.arange(20) < np.array([[20], [3], [1], [9], [20], [12], [5], [17]])).astype(np.int64)
    _, mean = plain_transformers(base, ids, mask)
    reduced = onnxruntime.InferenceSession(str(path))
    got = reduced.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]
    cosines = (got * mean).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(mean, axis=1)
    assert cosines.min() > 0.999


def check_tokenizer(base, folder, sentences):
    """Compare tokenizer.json with plain transformers; returns its batch as arrays."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    batch = tokenizer(sentences, padding=True, truncation=True, max_length=MAX_SEQ_LENGTH, return_tensors="np")
    encodings = Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(sentences)
    assert np.array_equal([encoding.ids for encoding in encodings], batch["input_ids"])
    assert np.array_equal([encoding.attention_mask for encoding in encodings], batch["attention_mask"])
    assert len(encodings[0].ids) == MAX_SEQ_LENGTH
    return batch["input_ids"], batch["attention_mask"]


def test_tokenizer_file_truncates_and_pads_like_the_model_on_either_side(export, base, toy_base, tmp_path):
    sentences = [LONG, "네", "한 남자가 음식을 먹는다.", ""]
    check_tokenizer(base, export[1], sentences)
    left = shutil.copytree(toy_base, tmp_path / "left")
    config = json.loads((left / "tokenizer_config.json").read_text(encoding="utf-8")) | {"truncation_side": "left"}
    (left / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    flags = ["--max_seq_length", MAX_SEQ_LENGTH, "--normalize", "--output_dir", tmp_path / "out"]
    assert run_here("bin/export_onnx.py", "--model_name_or_path", left, *flags) == 0
    _, mean = plain_transformers(left, *check_tokenizer(left, tmp_path / "out", sentences))
    got = OnnxEncoder(tmp_path / "out" / "left.onnx").encode(sentences)
    assert np.abs(got - mean / np.linalg.norm(mean, axis=1, keepdims=True)).max() < 1e-5


def test_readme_example_runs_without_torch(export, base):
    text = (export[1] / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    block = f"import sys\nfor name in {BLOCKED}: sys.modules[name] = None\n"  # None makes every import of it fail
    result = subprocess.run(
        [sys.executable, "-c", block + example], cwd=export[1], capture_output=True, text=True, check=True
    )
    got = np.array([float(number) for number in re.findall(r"-?\d[\d.]*", result.stdout)]).reshape(3, 3)
    sentences = ["한 남자가 음식을 먹는다.", "한 남자가 빵 한 조각을 먹는다.", "한 여자가 바이올린을 연주한다."]
    batch = AutoTokenizer.from_pretrained(base)(sentences, padding=True, return_tensors="np")
    _, mean = plain_transformers(base, batch["input_ids"], batch["attention_mask"])
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    assert np.abs(got - mean @ mean.T).max() < 1e-3


def test_into_the_directory_of_the_model_where_an_older_export_is(export, base, capsys):
    flags = ["--model_name_or_path", base, "--into_model_dir", "--fp16"]
    before = {path.name: path.read_bytes() for path in base.glob("*.json")}
    (base / "onnx").mkdir()
    for old, new in (("", "model"), ("-int8", "model_quantized")):
        shutil.copy(export[1] / f"my-model{old}.onnx", base / "onnx" / f"{new}.onnx")
    assert run_here("bin/export_onnx.py", *flags) == 0
    assert {path.name for path in (base / "onnx").iterdir()} == {"model.onnx", "model_fp16.onnx"}  # no older graph
    assert {path.name: path.read_bytes() for path in base.glob("*.json")} == before
    expected = SentenceTransformer(str(base), device="cpu").encode([LONG, "네"])
    assert np.abs(OnnxEncoder(base / "onnx" / "model.onnx").encode([LONG, "네"]) - expected).max() < 1e-5
    (base / "onnx" / "model.onnx").write_bytes(b"of somebody else")
    assert run_here("bin/export_onnx.py", *flags) == 2
    assert "has files that are not of an export of my-model; move it away" in capsys.readouterr().err
    assert (base / "onnx" / "model.onnx").read_bytes() == b"of somebody else"
    shutil.rmtree(base / "onnx")


def test_folders_of_others_are_refused_and_a_failed_export_leaves_nothing(export, base, toy_base, tmp_path, capsys):
    other = shutil.copytree(toy_base, tmp_path / "other")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in export[1].iterdir())
    assert run_here("bin/export_onnx.py", "--model_name_or_path", other, "--output_dir", export[1]) == 2
    assert f"choose another --output_dir, such as {export[1] / 'other'}" in capsys.readouterr().err
    assert sorted((path.name, path.stat().st_mtime_ns) for path in export[1].iterdir()) == before
    failing = ["--model_name_or_path", other, "--quantize", "--output_dir", tmp_path / "out"]
    prompts = {"prompts": {"query": "질문: "}, "default_prompt_name": "query"}
    SentenceTransformer(str(toy_base), device="cpu", **prompts).save_pretrained(str(other))
    assert run_here("bin/export_onnx.py", *failing, "--sts_dataset_path", "none") == 2
    assert "it puts '질문: ' before every sentence" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_loss_limits(capsys):
    figures = {name: {"cosine_spearman": value} for name, value in zip("tabc", (86.0, 85.6, 85.0, 83.9), strict=True)}
    figures["torch"] = figures.pop("t")
    check_loss(figures, "a", force=False)
    assert not capsys.readouterr().err
    check_loss(figures, "b", force=False)
    check_loss(figures, "c", force=True)
    assert re.findall(r"loses (\S+) points", capsys.readouterr().err) == ["1.00", "2.10"]
    with pytest.raises(InputError, match=r"2\.10 points"):
        check_loss(figures, "c", force=False)


# A BERT with all six pooling modes side by side, then Dense and Normalize


@pytest.fixture(scope="module")
def model(toy_base, tmp_path_factory):
    path = write_encoder("bert", toy_base, tmp_path_factory.mktemp("bert"))
    modes = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    transformer = load_model(str(path), device="cpu")[0]
    torch.manual_seed(1)
    modules = [transformer, Pooling(16, pooling_mode=modes), Dense(16 * len(modes), 24), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu").eval()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """The graph with its weights in external data, and its tokenizer."""
    path = tmp_path_factory.mktemp("exported") / "bert.onnx"
    export_model(model, path, max_file_bytes=1000, metadata=save_companions(model, path.parent))
    return path


def test_all_modules_are_inside(model, exported, tmp_path):
    check_modules(model, "bert")
    sentences, *_ = expectation(model)
    expected = model.encode(sentences, batch_size=1)
    assert len(sentences) == 33 and expected.shape == (33, 24)
    for batch_size in (1, 33):
        assert np.abs(OnnxEncoder(exported).encode(sentences, batch_size=batch_size) - expected).max() < 1e-5
    assert graph_files(exported) == [exported, exported.parent / "bert.onnx_data"]
    assert "differ from torch's by at most" in check_graph(exported, "float32", *expectation(model))
    other = shutil.copytree(exported.parent, tmp_path / "other") / "bert.onnx"
    graph = onnx.load(other)
    bias = next(tensor for tensor in graph.graph.initializer if tensor.name.endswith("others.1.linear.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.5, bias.name))
    onnx.save(graph, other)
    with pytest.raises(InputError, match="embeddings differ from torch's by 0"):
        check_graph(other, "float32", *expectation(model))


@pytest.mark.parametrize("reduce_range", [False, True])
def test_int8_tables(model, exported, reduce_range):
    path = exported.with_name(f"bert-{reduce_range}.onnx")
    quantize_int8(exported, path, reduce_range=reduce_range, max_file_bytes=1000 if reduce_range else 10**9)
    assert (path.parent / f"{path.name}_data").exists() == reduce_range
    sentences, *_ = expectation(model)
    # one scale per token: an embedding does not depend on the sentences beside it
    alone, together = (OnnxEncoder(path).encode(sentences, batch_size=batch_size) for batch_size in (1, 33))
    assert np.abs(alone - together).max() < 1e-4 < 0.1 < np.abs(alone).max()
    assert (alone * model.encode(sentences, batch_size=1)).sum(1).min() > 0.98  # of length 1
    graph = onnx.load(path)
    tables = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    weights = [tables[node.input[1]] for node in graph.graph.node if node.op_type == "MatMulInteger"]
    assert len(weights) == 6 + 1  # query, key, value, output, two feed-forward of one layer; Dense
    assert {table.dtype for table in weights} == {np.dtype(np.int8)}
    largest = max(np.abs(table.astype(int)).max() for table in weights)
    assert (largest <= 64) if reduce_range else (largest >= 127)
    # every row of the word table within half a step of the model's own
    words = model[0].auto_model.get_input_embeddings().weight.detach().numpy()
    name = next(name for name in tables if name.endswith("_int8") and len(tables[name]) == len(words))
    assert np.abs(tables[name] * tables[name.replace("_int8", "_scale")] - words).max() <= 0.5001 * (
        np.abs(words).max() / 127
    )


def test_what_cannot_be_exported_is_refused_by_name(model, monkeypatch):
    def refused(*modules, match):
        with pytest.raises(InputError, match=match):
            check_modules(SentenceTransformer(modules=[model[0], *modules], device="cpu"), "bert")

    refused(Pooling(16), Dropout(), match="its modules are Transformer, Pooling, Dropout; a Transformer, a Pooling")
    refused(match="its modules are Transformer; a Transformer, a Pooling")
    monkeypatch.setattr(model[0].tokenizer, "padding_side", "left")
    refused(Pooling(16), match="pads on the left")
