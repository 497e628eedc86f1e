"""Exports in other programs, with the code of the exported README; what is not installed is skipped."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from in_process import run_here

CLIENTS = Path(os.environ.get("KF_CLIENTS", Path.home() / ".cache" / "kf-deberta-clients"))
LENGTH = 24
SENTENCES = [
    "한 남자가 음식을 먹는다.",
    "네",
    "아이들이 공원에서 춤을 춘다 .",
    "한 여자가 바이올린을 연주한다 . " * 12,
]
# `folder` and `sentences` are what the README's code takes for granted
PYTHON = "import json, sys\nfolder, sentences, target = json.load(sys.stdin)\n"
FASTEMBED = f"{PYTHON}%s\nimport fastembed\nassert fastembed.__file__.startswith(target)\n"
FASTEMBED += "print(json.dumps([embedding.tolist() for embedding in embeddings]))\n"
ONNXRUNTIME = f"""{PYTHON}
import numpy as np, onnxruntime
from tokenizers import Tokenizer
assert onnxruntime.__file__.startswith(target)
encodings = Tokenizer.from_file(f"{{folder}}/tokenizer.json").encode_batch(sentences)
fields = {{"input_ids": "ids", "attention_mask": "attention_mask"}}
inputs = {{name: np.array([getattr(e, field) for e in encodings], dtype=np.int64) for name, field in fields.items()}}
session = onnxruntime.InferenceSession(f"{{folder}}/my-model.onnx")
print(json.dumps(session.run(["sentence_embedding"], inputs)[0].tolist()))
"""
JAVASCRIPT = """
import { readFileSync } from "node:fs";
import { env, pipeline } from "%s/node_modules/@huggingface/transformers/dist/transformers.node.mjs";
const [path, sentences] = JSON.parse(readFileSync(0, "utf8"));
env.allowRemoteModels = false;
env.localModelPath = path.slice(0, path.lastIndexOf("/"));
const folder = path.slice(path.lastIndexOf("/") + 1);
%s
console.log(JSON.stringify(embeddings.tolist()));
"""


@pytest.fixture(scope="module", params=["mean", "cls, length 1"])
def exported(request, toy_base, tmp_path_factory):
    """(directory, embeddings by sentence-transformers) of a model with this pooling."""
    path = tmp_path_factory.mktemp("clients")
    transformer = Transformer(str(toy_base), max_seq_length=LENGTH)
    modules = [transformer, Pooling(32, pooling_mode=request.param.partition(",")[0])]
    model = SentenceTransformer(modules=modules + [Normalize()] * ("1" in request.param), device="cpu")
    assert len(model.tokenizer(SENTENCES[-1])["input_ids"]) > LENGTH
    model.save_pretrained(str(path / "my-model"))
    flags = ["--model_name_or_path", path / "my-model", "--output_dir", path / "onnx"]
    assert run_here("bin/export_onnx.py", *flags) == 0
    return path / "onnx", model.encode(SENTENCES)


def installed(name):
    if not (CLIENTS / name).is_dir():
        pytest.skip(f"{CLIENTS / name} does not exist; bin/test.sh installs it")
    return str(CLIENTS / name)


def readme_code(folder, language):
    return re.findall(rf"```{language}\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[-1]


def embed(command, *message, **environment):
    result = subprocess.run(
        command, input=json.dumps(message), env=os.environ | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return np.array(json.loads(result.stdout.splitlines()[-1]))


def test_transformers_js(exported, tmp_path):
    if shutil.which("node") is None:
        pytest.skip("there is no node")
    folder, expected = exported
    code = JAVASCRIPT % (installed("transformers.js"), readme_code(folder, "js"))
    (tmp_path / "client.mjs").write_text(code, encoding="utf-8")
    got = embed(["node", str(tmp_path / "client.mjs")], str(folder), SENTENCES[:3])  # a long text has no closing token
    assert np.abs(got - expected[:3]).max() < 1e-4


def test_fastembed(exported):
    folder, expected = exported
    target = installed("fastembed")
    command = [sys.executable, "-c", FASTEMBED % readme_code(folder, "python")]
    got = embed(command, str(folder), SENTENCES, target, PYTHONPATH=target)
    assert np.abs(got - expected).max() < 1e-4


def test_the_oldest_onnxruntime(exported):
    folder, expected = exported
    target = installed("onnxruntime")
    got = embed([sys.executable, "-c", ONNXRUNTIME], str(folder), SENTENCES, target, PYTHONPATH=target)
    assert np.abs(got - expected).max() < 1e-4
