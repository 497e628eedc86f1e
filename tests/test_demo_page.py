"""bin/demo_page.py: what a browser shows against onnxruntime and tokenizers in Python, and its refusals."""

import re
import shutil
import unicodedata

import numpy as np
import onnx
import onnxruntime
import pytest
from tokenizers import Tokenizer

from browser import browser, chromium, served, until
from in_process import run_here

NAME, LENGTH = "회사/모델 <b>", 12
CORPUS = ["한 남자가 음식을 먹는다.", "아이가 춤을 춘다.", "<b>\"A&B\"</b> 'C' 2024년", "음식을 먹는 남자 " * 9]
TYPED = ["남자가 빵을 먹는다", unicodedata.normalize("NFD", "아이가 춤을 춘다."), "</textarea> 서울", "춤 춤" * 40]
GRAPH = """<ir_version: 8, opset_import: ["": 17]>
words (int64[b, t] input_ids, int64[b, t] attention_mask) => (float[b, 2] sentence_embedding) {
    rows = Gather (table, input_ids) sentence_embedding = ReduceMean <axes=[1], keepdims=0> (rows) }"""
CELLS = "[...document.querySelectorAll('{}')].map(row => [...row.querySelectorAll('td')].map(cell => cell.{}))"
COLORS = "[...document.querySelectorAll('p, td, th')].map(getComputedStyle).map(s => [s.color, s.backgroundColor])"


@pytest.fixture(scope="module")
def graph(toy_base, tmp_path_factory):
    """The mean of the words' random points in a plane, as a hub model has it: in onnx/, the tokenizer above."""
    folder = shutil.copytree(toy_base, tmp_path_factory.mktemp("graph") / "m")
    table = np.random.default_rng(0).standard_normal((2000, 2), np.float32)
    model = onnx.parser.parse_model(GRAPH)
    model.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    onnx.helper.set_model_props(model, {"model": NAME, "max_seq_length": str(LENGTH)})
    (folder / "onnx").mkdir()
    onnx.save(model, folder / "onnx" / "model_quantized.onnx")
    return folder / "onnx" / "model_quantized.onnx"


def embed(graph, sentences):
    """Unit vectors by onnxruntime alone, one sentence at a time, of composed Hangul."""
    tokenizer = Tokenizer.from_file(str(graph.parents[1] / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    session = onnxruntime.InferenceSession(str(graph))
    ids = [np.array([tokenizer.encode(unicodedata.normalize("NFC", text.strip())).ids]) for text in sentences]
    rows = [session.run(None, {"input_ids": row, "attention_mask": np.ones_like(row)})[0][0] for row in ids]
    return np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)


def wcag_contrast(colors):
    rgb = [re.findall(r"\d+", color.replace("rgba(0, 0, 0, 0)", "255 255 255")) for color in colors]
    linear = [[n / 3294.6 if n <= 10 else ((n / 255 + 0.055) / 1.055) ** 2.4 for n in map(int, row)] for row in rgb]
    dark, light = sorted(np.array(linear) @ [0.2126, 0.7152, 0.0722])
    return (light + 0.05) / (dark + 0.05)


def check(js, graph, sentences):
    until(lambda: js("[...document.querySelectorAll('tbody [scope]')].map(cell => cell.title)") == sentences)
    cells, unit = np.array(js(CELLS.format("#matrix tbody tr", "dataset.cosine")), float), embed(graph, sentences)
    assert np.abs(cells - unit @ unit.T).max() < 1e-5 and cells.min() < -0.9  # the colors of both ends
    assert js(CELLS.format("#matrix tbody tr", "textContent")) == [[f"{x:.2f}" for x in row] for row in cells]
    nearest = js(CELLS.format("#nearest tbody", "textContent"))
    for row, scores in zip(nearest, unit @ embed(graph, CORPUS).T, strict=True):
        best = np.argsort(-scores)[:3]
        assert row[1::2] == [CORPUS[i].strip() for i in best]
        assert np.allclose([float(score) for score in row[::2]], scores[best], atol=1e-4)
    assert min(map(wcag_contrast, js(COLORS))) >= 4.5


@pytest.mark.skipif(not chromium() or not shutil.which("npm"), reason="no chromium with chromedriver, or no npm")
def test_a_browser_shows_what_python_computes(graph, tmp_path, capsys):
    (corpus := tmp_path / "corpus.txt").write_text("\n".join(CORPUS), encoding="utf-8")
    (page := tmp_path / "page").mkdir()
    (page / "index.html").write_text("a former page")
    status = run_here("bin/demo_page.py", "--onnx", graph, "--corpus", corpus, "--output_dir", page)
    if "npm: failed" in (error := capsys.readouterr().err):
        pytest.skip(error)
    assert status == 0, error
    with served(page) as address, browser(tmp_path / "profile") as (command, js):
        phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        command("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=phone)
        command("url", url=f"{address}/index.html")
        check(js, graph, js("document.getElementById('sentences').value").split("\n"))
        shown = js("document.title + document.querySelector('[role=status]').innerText")
        assert re.match(rf"{NAME}: 문장 유사도.*, 새 문장 10개에 \d+\.\d초\)", shown)
        assert js("document.documentElement.scrollHeight") < 1800 and js("document.documentElement.scrollWidth") <= 390
        (box,) = js("(box => (box.value = '', box))(document.getElementById('sentences'))").values()
        command(f"element/{box}/value", text="\n".join(TYPED))
        check(js, graph, TYPED)
        assert js("performance.getEntriesByType('resource').every(e => e.name.startsWith(location.origin))")


def test_what_the_page_cannot_use_is_one_line(graph, tmp_path, monkeypatch, capsys):
    def refused(*flags, match, page="page"):
        assert run_here("bin/demo_page.py", *flags, "--output_dir", tmp_path / page) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert match in line and not (tmp_path / "page").exists()

    monkeypatch.setenv("PATH", str(tmp_path))
    refused("--onnx", tmp_path / "none.onnx", match="none.onnx: not a usable ONNX graph")
    refused("--onnx", graph, "--corpus", tmp_path / "none.txt", match="none.txt: No such file")
    refused("--onnx", graph, match="npm: not found")
    (tmp_path / "mine").mkdir()
    for name in ("model.onnx", "notes.txt", "index.html"):  # no page: the first alone, the first two, all three
        (tmp_path / "mine" / name).write_text("mine")
        refused("--onnx", graph, match="mine: has files that are not of a page", page="mine")
        assert (tmp_path / "mine" / "model.onnx").read_text() == "mine"
