"""Exports in the programs that people run them in; dev/onnx_clients.sh installs these, what is absent is skipped."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

CLIENTS = Path(os.environ.get("KF_CLIENTS", Path.home() / ".cache" / "kf-deberta-clients"))
LENGTH = 24
# the last is longer than LENGTH tokens
SENTENCES = [
    "한 남자가 음식을 먹는다.",
    "네",
    "아이들이 공원에서 춤을 춘다 .",
    "한 여자가 바이올린을 연주한다 . " * 12,
]
ONNXRUNTIME = """
import json, sys
import numpy as np, onnxruntime
from tokenizers import Tokenizer
folder, sentences, target = json.load(sys.stdin)
assert onnxruntime.__file__.startswith(target), onnxruntime.__file__
encodings = Tokenizer.from_file(f"{folder}/tokenizer.json").encode_batch(sentences)
fields = {"input_ids": "ids", "attention_mask": "attention_mask"}
inputs = {name: np.array([getattr(e, field) for e in encodings], dtype=np.int64) for name, field in fields.items()}
files = {"fp32": "model", "q8": "model_quantized"}
if tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 17):  # older ones have no float16 on a CPU
    files["fp16"] = "model_fp16"
sessions = {dtype: onnxruntime.InferenceSession(f"{folder}/onnx/{file}.onnx") for dtype, file in files.items()}
print(json.dumps({d: s.run(["sentence_embedding"], inputs)[0].tolist() for d, s in sessions.items()}))
"""
FASTEMBED = """
import json, sys
import fastembed
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
folder, sentences, target = json.load(sys.stdin)
assert fastembed.__file__.startswith(target), fastembed.__file__
result = {}
for dtype, file in {"fp32": "model", "q8": "model_quantized"}.items():
    TextEmbedding.add_custom_model(
        model=file, pooling=PoolingType.MEAN, normalization=False, sources=ModelSource(url="http://localhost"),
        dim=32, model_file=f"onnx/{file}.onnx",
    )
    result[dtype] = [e.tolist() for e in TextEmbedding(file, specific_model_path=folder).embed(sentences)]
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def folder(toy_base, run_script, tmp_path_factory):
    """One folder for all clients: --hub_layout with every kind of graph."""
    path = tmp_path_factory.mktemp("clients") / "my-model"
    flags = ["--quantize", "--fp16", "--hub_layout", "--max_seq_length", LENGTH, "--sts_dataset_path", "none"]
    run_script("bin/export_onnx.py", "--model_name_or_path", toy_base, "--output_dir", path, *flags, check=True)
    return path


@pytest.fixture(scope="module")
def expected(toy_base):
    model = SentenceTransformer(str(toy_base), device="cpu")
    model.max_seq_length = LENGTH
    assert len(model.tokenizer(SENTENCES[-1])["input_ids"]) > LENGTH
    return model.encode(SENTENCES)


def check(embeddings, expected):
    """fp32 to 1e-4, every other kind by its cosines."""
    assert np.abs(np.array(embeddings.pop("fp32")) - expected).max() < 1e-4
    for dtype, values in embeddings.items():
        values = np.array(values)
        cosines = (values * expected).sum(1) / np.linalg.norm(values, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosines.min() >= 0.99, dtype


def client(command, message, **environment):
    result = subprocess.run(
        command, input=json.dumps(message), env=os.environ | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def installed(name):
    path = CLIENTS / name
    if not path.is_dir():
        pytest.skip(f"{path} is not there; dev/onnx_clients.sh installs it")
    return path


def test_transformers_js(folder, expected, repo):
    if shutil.which("node") is None:
        pytest.skip("there is no node")
    message = {"folder": str(folder), "sentences": SENTENCES, "dtypes": ["fp32", "q8", "fp16"]}
    message["modules"] = str(installed("node") / "node_modules")
    message["sentences"] = SENTENCES[:3]  # it truncates without a closing token
    check(client(["node", str(repo / "tests" / "helpers" / "transformers_js.mjs")], message), expected[:3])


@pytest.mark.parametrize("version", ["oldest", "newest"])
def test_onnxruntime(folder, expected, version):
    target = str(installed(f"onnxruntime-{version}"))
    message = [str(folder), SENTENCES, target]
    check(client([sys.executable, "-c", ONNXRUNTIME], message, PYTHONPATH=target), expected)


@pytest.mark.parametrize("version", ["0.7", "0.9"])
def test_fastembed(folder, expected, version):
    target = str(installed(f"fastembed-{version}"))
    message = [str(folder), SENTENCES, target]
    check(client([sys.executable, "-c", FASTEMBED], message, PYTHONPATH=target), expected)
