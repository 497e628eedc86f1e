"""bin/export_onnx.py as a user runs it, its graphs against plain transformers, its README's example without torch."""

import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

from kf_deberta.export import check as onnx_check
from kf_deberta.export.graph import ExportError

MAX_SEQ_LENGTH = 48
COMPANIONS = {
    "1_Pooling",
    "EXPORT.sha256",
    "README.md",
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
}
BLOCKED = ("torch", "transformers", "sentence_transformers", "onnx")


@pytest.fixture(scope="module")
def base(toy_base, tmp_path_factory):
    """A copy that the export may write into."""
    return shutil.copytree(toy_base, tmp_path_factory.mktemp("base") / "my-model")


@pytest.fixture(scope="module")
def export(base, run_script, repo, tmp_path_factory):
    """One export of everything: (process, output directory)."""
    directory = tmp_path_factory.mktemp("export") / "new" / "models"
    flags = ["--quantize", "--fp16", "--into_model_dir", "--max_seq_length", MAX_SEQ_LENGTH, "--opset", 20]
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


def test_files_and_nothing_else(export, base):
    result, directory = export
    names = {path.name for path in directory.iterdir()}
    graphs = {"my-model.onnx", "my-model-int8.onnx", "my-model-fp16.onnx"}
    assert graphs | COMPANIONS == names
    copies = {"model.onnx": "", "model_quantized.onnx": "-int8", "model_fp16.onnx": "-fp16"}
    assert {path.name for path in (base / "onnx").iterdir()} == {*copies, "EXPORT.sha256"}
    for name, suffix in copies.items():
        assert (base / "onnx" / name).read_bytes() == (directory / f"my-model{suffix}.onnx").read_bytes()
    for folder in (directory, base / "onnx"):
        subprocess.run(["sha256sum", "--strict", "-c", "EXPORT.sha256"], cwd=folder, check=True, capture_output=True)
    for name in ("torch", *sorted(graphs - {"my-model-fp16.onnx"})):
        assert re.search(rf"^\| {name} \| [\d.]+ \|( -?[\d.]+ / -?[\d.]+ \|){{4}}$", result.stdout, re.MULTILINE)
    assert "Traceback" not in result.stderr and "Warning" not in result.stderr


def test_interface_and_opset(export, session):
    described = [(node.name, node.type, node.shape) for node in (*session.get_inputs(), *session.get_outputs())]
    assert described == [
        ("input_ids", "tensor(int64)", ["batch", "sequence"]),
        ("attention_mask", "tensor(int64)", ["batch", "sequence"]),
        ("last_hidden_state", "tensor(float)", ["batch", "sequence", 32]),
        ("sentence_embedding", "tensor(float)", ["batch", 32]),
    ]
    graph = onnx.load(export[1] / "my-model.onnx")
    assert {entry.domain: entry.version for entry in graph.opset_import if entry.domain == ""} == {"": 20}
    for kind in ("", "-int8", "-fp16"):
        assert onnx.load(export[1] / f"my-model{kind}.onnx").ir_version == 9
    assert b"site-packages" not in graph.SerializeToString()  # no stack trace of the exporting machine


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 1), (1, 2), (33, 7), (2, 300), (1, 512)])
def test_graph_equals_plain_transformers(base, session, batch, length):
    generator = np.random.default_rng(batch * length)
    ids = generator.integers(5, 1000, (batch, length))
    mask = (np.arange(length) < generator.integers(1, length + 1, (batch, 1))).astype(np.int64)
    hidden, mean = plain_transformers(base, ids, mask)
    got_hidden, got_mean = session.run(None, {"input_ids": ids, "attention_mask": mask})
    assert np.abs(got_mean - mean).max() < 1e-5
    assert np.abs((got_hidden - hidden) * mask[..., None]).max() < 1e-5


def test_tokenizer_file_truncates_and_pads_like_the_model(export, base):
    sentences = ["네", "한 남자가 음식을 먹는다.", "아이들이 춤을 춘다 . " * 40, ""]
    expected = AutoTokenizer.from_pretrained(base)(
        sentences, padding=True, truncation=True, max_length=MAX_SEQ_LENGTH, return_tensors="np"
    )
    encodings = Tokenizer.from_file(str(export[1] / "tokenizer.json")).encode_batch(sentences)
    assert np.array_equal([encoding.ids for encoding in encodings], expected["input_ids"])
    assert np.array_equal([encoding.attention_mask for encoding in encodings], expected["attention_mask"])
    assert len(encodings[2].ids) == MAX_SEQ_LENGTH


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.45), ("fp16", 0.6)])
def test_reduced_graphs_are_smaller_and_near(base, export, kind, share):
    path = export[1] / f"my-model-{kind}.onnx"
    assert path.stat().st_size < share * (export[1] / "my-model.onnx").stat().st_size
    reduced = onnxruntime.InferenceSession(str(path))
    assert {node.type for node in reduced.get_outputs()} == {"tensor(float)"}
    ids = np.random.default_rng(3).integers(5, 1000, (8, 20))
    mask = (np.arange(20) < np.array([[20], [3], [1], [9], [20], [12], [5], [17]])).astype(np.int64)
    _, mean = plain_transformers(base, ids, mask)
    got = reduced.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]
    cosines = (got * mean).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(mean, axis=1)
    assert cosines.min() > 0.999
    nodes = {node.op_type for node in onnx.load(path).graph.node}
    assert ("MatMulInteger" in nodes) == (kind == "int8")


def test_readme_example_runs_without_torch(export, base):
    text = (export[1] / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    code_lines = [line for line in example.splitlines() if line]
    assert 10 <= len(code_lines) <= 16
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


def test_a_failed_check_leaves_nothing(run_export, base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_check, "FP32_TOLERANCE", -1.0)
    assert run_export("--model_name_or_path", base, "--output_dir", tmp_path / "out") == 1
    assert "differ from torch's" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["README.md", "tokenizer.json", "other.onnx", "my-model-int8.onnx"])
def test_files_of_others_are_never_overwritten(run_export, base, tmp_path, capsys, name):
    (tmp_path / name).write_text("mine")
    assert run_export("--model_name_or_path", base, "--output_dir", tmp_path) == 2
    assert name in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_loss_limits():
    figures = {"torch": {"cosine_spearman": 86.0}, "a": {"cosine_spearman": 85.6}, "b": {"cosine_spearman": 85.0}}
    figures["c"] = {"cosine_spearman": 83.9}
    assert onnx_check.check_loss(figures, "a", force=False) is None
    assert "1.00 points" in onnx_check.check_loss(figures, "b", force=False)
    assert "2.10 points" in onnx_check.check_loss(figures, "c", force=True)
    with pytest.raises(ExportError, match=r"2\.10 points"):
        onnx_check.check_loss(figures, "c", force=False)
