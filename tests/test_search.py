"""bin/search.py against cosines computed with plain transformers, and its refusals."""

import re

import numpy as np
import pytest
import torch


def plain_cosines(path, queries, corpus):
    from transformers import AutoModel, AutoTokenizer

    tokenizer, encoder = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    inputs = tokenizer([*queries, *corpus], padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = encoder(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1))
    return (vectors[: len(queries)] @ vectors[len(queries) :].T).numpy()


def test_scores_and_order_equal_plain_transformers(run_script, toy_base, tmp_path):
    corpus = ["은행에 돈을 맡긴다", "주식을 샀다", "비가 온다", "대출 금리가 올랐다"]
    queries = ["예금을 들었다", "이자율이 상승했다"]
    file = tmp_path / "corpus.txt"
    file.write_text("\ufeff" + "\r\n".join(corpus) + "\n\n", encoding="utf-8")
    result = run_script(
        "bin/search.py", *queries, "--model_name_or_path", toy_base, "--corpus", file, "--top_k", 3, check=True
    )
    shown = re.findall(r"^(?:Query: (.*)|(.*) \(Score: (-?\d\.\d{4})\))$", result.stdout, re.M)
    expected = plain_cosines(toy_base, queries, corpus)
    for number, query in enumerate(queries):
        block = shown[4 * number : 4 * number + 4]
        assert block[0][0] == query
        order = np.argsort(-expected[number])[:3]
        assert [row[1] for row in block[1:]] == [corpus[index] for index in order]
        assert np.allclose([float(row[2]) for row in block[1:]], expected[number][order], atol=6e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["물음", "--top_k", "0"], "--top_k 0"),
        (["물음", "--corpus", "{missing}"], "cannot be read"),
        (["물음", "--corpus", "{binary}"], ":2: not UTF-8"),
        (["물음", "--corpus", "{empty}"], "no sentence in it"),
        ([], "standard input: no sentence in it"),
        (["--model_name_or_path", "{binary}", "물음"], "not a model directory"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags, message, tmp_path, monkeypatch, capsys, repo):
    import importlib.util
    import io
    import sys

    from kf_deberta.cli import run

    paths = {name: tmp_path / name for name in ("missing", "binary", "empty")}
    paths["binary"].write_bytes("첫 줄\n".encode() + b"\xff\xfe\n")
    paths["empty"].write_text("\n\n")
    spec = importlib.util.spec_from_file_location("search", repo / "bin" / "search.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["search.py", *(flag.format(**paths) for flag in flags)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(SystemExit) as stopped:
        run(module.main)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith("error: ") and message in line
