"""bin/search.py against cosines computed with plain transformers, and its refusals."""

import os
import re
import subprocess
import sys
import unicodedata

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoTokenizer

from in_process import run_here

CORPUS = ["은행에 돈을 맡긴다", "주식을 샀다", "비가 온다", "대출 금리가 올랐다"]
QUERIES = ["예금을 들었다", "이자율이 상승했다"]


def plain_cosines(path, queries, corpus):
    tokenizer, encoder = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    inputs = tokenizer([*queries, *corpus], padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = encoder(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1))
    return (vectors[: len(queries)] @ vectors[len(queries) :].T).numpy()


def shown(text):
    """The printed sentences and scores: [(query, [(sentence, score), ...]), ...]."""
    blocks = [block.splitlines() for block in text.strip().split("\n\n")]
    found = [[re.fullmatch(r"(.*) \(Score: (-?\d\.\d{4})\)", line).groups() for line in block[1:]] for block in blocks]
    queries = [block[0].removeprefix("Query: ") for block in blocks]
    return [
        (query, [(text, float(score)) for text, score in rows]) for query, rows in zip(queries, found, strict=True)
    ]


def test_scores_and_order_equal_plain_transformers(toy_base, tmp_path, capsys):
    file = tmp_path / "corpus.txt"
    file.write_text("\ufeff" + "\r\n".join(CORPUS) + "\n\n", encoding="utf-8")
    flags = ("--model_name_or_path", toy_base, "--corpus", file, "--top_k", 3)
    queries = [QUERIES[0], unicodedata.normalize("NFD", QUERIES[1])]  # as a shell of macOS completes names
    assert run_here("bin/search.py", *queries, *flags) == 0
    expected = plain_cosines(toy_base, QUERIES, CORPUS)
    for (query, rows), wanted, cosines in zip(shown(capsys.readouterr().out), QUERIES, expected, strict=True):
        order = np.argsort(-cosines)[:3]
        assert query == wanted and [text for text, _ in rows] == [CORPUS[index] for index in order]
        assert np.allclose([score for _, score in rows], cosines[order], atol=6e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["물음", "--top_k", "0"], "--top_k: must be a whole number from 1, not 0"),
        (["물음", "--onnx", "x.onnx"], "x.onnx: "),
        (["물음", "--corpus", "{missing}"], "missing: No such file"),
        (["물음", "--corpus", "{binary}"], ":2: not UTF-8"),
        (["물음", "--corpus", "{empty}"], "no sentence in it"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags, message, tmp_path, capsys):
    paths = {name: tmp_path / name for name in ("missing", "binary", "empty")}
    paths["binary"].write_bytes("첫 줄\n".encode() + b"\xff\xfe\n")
    paths["empty"].write_text("\n\n")
    assert run_here("bin/search.py", *(flag.format(**paths) for flag in flags)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.fixture(scope="module")
def word_graph(tmp_path_factory):
    """An ONNX file that looks up the embedding of the first token, and its word-level tokenizer."""
    words = [*CORPUS, "[UNK]"]
    table = np.random.default_rng(0).normal(size=(len(words), 4)).astype(np.float32)
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "t"]) for n in ("input_ids", "attention_mask")]
    output = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["b", 4])
    nodes = [
        helper.make_node("Gather", ["input_ids", "zero"], ["first"], axis=1),
        helper.make_node("Gather", ["table", "first"], ["sentence_embedding"]),
    ]
    tensors = [numpy_helper.from_array(value, n) for n, value in (("table", table), ("zero", np.array(0)))]
    graph = helper.make_graph(nodes, "words", inputs, [output], tensors)
    path = tmp_path_factory.mktemp("onnx") / "words.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    tokenizer.save(str(path.parent / "tokenizer.json"))
    return path, table


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_onnx_needs_no_torch_and_reads_hangul_in_any_locale(word_graph, repo, tmp_path, locale):
    path, table = word_graph
    (tmp_path / "말뭉치.txt").write_text("\n".join(CORPUS), encoding="utf-8")
    code = "import runpy, sys; sys.argv[0] = 'bin/search.py'; sys.modules |= {'torch': None, 'transformers': None}; "
    command = [sys.executable, "-c", code + "runpy.run_path(sys.argv[0], run_name='__main__')", CORPUS[2]]
    command += ["--onnx", path, "--corpus", tmp_path / "말뭉치.txt", "--top_k", "4"]
    result = subprocess.run(command, env=os.environ | locale, cwd=repo, capture_output=True, text=True, check=True)
    vectors = table[:4] / np.linalg.norm(table[:4], axis=1, keepdims=True)
    expected = np.sort(vectors @ vectors[2])[::-1]
    assert expected[0] == pytest.approx(1, abs=1e-6)  # the query is a sentence of the corpus
    scores = re.findall(r"Score: (-?\d\.\d{4})", result.stdout)
    assert [float(score) for score in scores] == pytest.approx(expected, abs=6e-5)
    queries = subprocess.run(
        [*command[:3], *command[4:]], input="비가 온다\n\n", cwd=repo, capture_output=True, text=True
    )
    assert queries.returncode == 0 and queries.stdout.startswith("\nQuery: 비가 온다\n비가 온다 (Score: 1.0000)\n")
    nothing = subprocess.run([*command[:3], *command[4:]], stdin=subprocess.DEVNULL, capture_output=True, cwd=repo)
    assert nothing.returncode == 2 and b"/dev/stdin: no sentence in it" in nothing.stderr
