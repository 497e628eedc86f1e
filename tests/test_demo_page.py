"""bin/demo_page.py: what a browser shows against onnxruntime and tokenizers in Python."""

import importlib.util
import json
import shutil
import sys
import unicodedata

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from browser import browser, chromium, served
from kf_deberta import cli

LENGTH = 12
CORPUS = ["한 남자가 음식을 먹는다.", "아이가 춤을 춘다.", "<b>\"A&B\"</b> 'C' 2024년", "음식을 먹는 남자 " * 9]
TYPED = ["남자가 빵을 먹는다", unicodedata.normalize("NFD", "아이가 춤을 춘다."), "</script> 서울 날씨", "춤 " * 40]


@pytest.fixture
def make_page(repo, monkeypatch):
    spec = importlib.util.spec_from_file_location("demo_page", repo / "bin" / "demo_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["demo_page.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.run(module.main)
        return exit_info.value.code or 0

    return call


@pytest.fixture(scope="module")
def graph(toy_base, tmp_path_factory):
    """The mean of random rows of the words, behind the toy model's own tokenizer."""
    path = tmp_path_factory.mktemp("graph") / "m.onnx"
    sizes = ["batch", "tokens"]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, sizes) for n in ("input_ids", "attention_mask")]
    outputs = [
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*sizes, 16]),
        helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", 16]),
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
    tokenizer = Tokenizer.from_file(str(toy_base / "tokenizer.json"))
    table = np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), 16)).astype(np.float32)
    constants = {"table": table, "last_axis": np.array([2]), "token_axis": np.array([1])}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "known", inputs, outputs, tensors)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    tokenizer.enable_truncation(LENGTH)
    tokenizer.save(str(path.parent / "tokenizer.json"))
    shutil.copyfile(toy_base / "tokenizer_config.json", path.parent / "tokenizer_config.json")
    prompts = {"prompts": {"all": "질문: "}, "default_prompt_name": "all"}
    (path.parent / "config_sentence_transformers.json").write_text(json.dumps(prompts), encoding="utf-8")
    return path


def embeddings(graph, sentences):
    """Unit vectors by onnxruntime alone, one sentence at a time."""
    tokenizer = Tokenizer.from_file(str(graph.parent / "tokenizer.json"))
    session = onnxruntime.InferenceSession(str(graph))
    rows = []
    for sentence in sentences:
        ids = np.array([tokenizer.encode("질문: " + unicodedata.normalize("NFC", sentence.strip())).ids])
        assert ids.shape[1] <= LENGTH
        rows.append(session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0])
    rows = np.array(rows)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def shown(window):
    """What the page shows: cosines of the matrix, and for each sentence its (score, text) rows."""
    matrix = window.script(
        "return [...document.querySelectorAll('#matrix tr')].map(r => [...r.querySelectorAll('td')]"
        ".map(c => [Number(c.dataset.cosine), c.textContent, c.style.background]))"
    )
    nearest = window.script(
        "return [...document.querySelectorAll('#nearest tbody')].map(b => [...b.rows]"
        ".map(r => [...r.querySelectorAll('td')].map(c => c.textContent)))"
    )
    return matrix, nearest


def check(window, graph, sentences):
    matrix, nearest = shown(window)
    unit, corpus = embeddings(graph, sentences), embeddings(graph, CORPUS)
    cells = np.array([[cell[0] for cell in row] for row in matrix])
    assert np.abs(cells - unit @ unit.T).max() < 1e-5
    assert [[cell[1] for cell in row] for row in matrix] == [[f"{value:.2f}" for value in row] for row in cells]
    assert len({cell[2] for row in matrix for cell in row}) > 3  # colors
    for row, scores in zip(nearest, unit @ corpus.T, strict=True):
        order = np.argsort(-scores)[:3]
        assert [text for _, text in row] == [CORPUS[i].strip() for i in order]
        assert np.allclose([float(score) for score, _ in row], scores[order], atol=1e-4)


def test_a_browser_shows_what_python_computes(graph, make_page, tmp_path, capsys):
    if not chromium() or not shutil.which("npm"):
        pytest.skip("no chromium with chromedriver, or no npm")
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS), encoding="utf-8")
    page = tmp_path / "page"
    status = make_page("--onnx", graph, "--corpus", tmp_path / "corpus.txt", "--output_dir", page)
    error = capsys.readouterr().err
    if "npm: cannot install" in error:
        pytest.skip(error)
    assert status == 0, error
    with served(page) as address, browser(tmp_path / "profile") as window:
        window.call("url", url=f"{address}/index.html")
        window.wait("document.body.dataset.shown")
        sentences = window.script("return document.getElementById('sentences').value").split("\n")
        check(window, graph, sentences)
        window.script("document.getElementById('sentences').value = ''")
        (element,) = window.call("element", using="css selector", value="#sentences").values()
        window.call(f"element/{element}/value", text="\n".join(TYPED))
        window.wait(
            f"document.querySelectorAll('#matrix tr').length == {len(TYPED)} && document.body.dataset.shown > 1"
        )
        window.wait("document.getElementById('matrix').innerText.includes('춤 춤')")
        last = f"document.querySelectorAll('#matrix th')[{len(TYPED) - 1}].textContent.length"
        window.wait(f"{last} == {len(f'4. {TYPED[-1].strip()}')}")
        check(window, graph, TYPED)
        fetched = window.script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert fetched and all(name.startswith(address) for name in fetched)


def test_what_the_page_cannot_use_is_one_line(graph, make_page, tmp_path, monkeypatch, capsys):
    def refused(*arguments, match):
        assert make_page(*arguments, "--output_dir", tmp_path / "page") == 2
        assert match in capsys.readouterr().err
        assert not (tmp_path / "page").exists()

    refused("--onnx", tmp_path / "none.onnx", match="none.onnx: no such file")
    refused("--onnx", graph, "--corpus", tmp_path / "none.txt", match="none.txt: No such file")
    monkeypatch.setenv("PATH", str(tmp_path))
    refused("--onnx", graph, match="npm: not found")
