"""bin/search.py against cosines computed with plain transformers, and its refusals."""

import importlib.util
import io
import re
import signal
import sys

import numpy as np
import pytest
import torch

from kf_deberta.cli import InputError, run
from kf_deberta.model import index


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
        (["물음", "--top_k", "0"], "--top_k: must be 1 or more, not 0"),
        (["물음", " \t"], "a query is blank"),
        (["물음", "--onnx", "x.onnx", "--pooling", "cls", "--revision", "v1"], "leave out --revision, --pooling"),
        (["물음", "--corpus", "/dev/zero"], "/dev/zero: a pipe or a device"),
        (["물음", "--corpus", "{missing}"], "missing: No such file"),
        (["물음", "--corpus", "{binary}"], ":2: not UTF-8"),
        (["물음", "--corpus", "{empty}"], "no sentence in it"),
        ([], "standard input: no sentence in it"),
        (["--model_name_or_path", "{binary}", "물음"], "not a model directory"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags, message, tmp_path, monkeypatch, capsys, repo):
    paths = {name: tmp_path / name for name in ("missing", "binary", "empty")}
    paths["binary"].write_bytes("첫 줄\n".encode() + b"\xff\xfe\n")
    paths["empty"].write_text("\n\n")
    status, _, errors = search(repo, monkeypatch, capsys, *(flag.format(**paths) for flag in flags))
    (line,) = errors.splitlines()
    assert status == 2 and line.startswith("error: ") and message in line


def search(repo, monkeypatch, capsys, *arguments):
    """The script in this process: its status and what it printed."""
    spec = importlib.util.spec_from_file_location("search", repo / "bin" / "search.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["search.py", *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(SystemExit) as stopped:
        run(module.main)
    return stopped.value.code or 0, *capsys.readouterr()


def test_a_corpus_is_embedded_once_for_each_model_and_content(toy_base, repo, monkeypatch, capsys, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("은행에 돈을 맡긴다\n주식을 샀다\n비가 온다\n", encoding="utf-8")
    kept = lambda: sorted(path.name for path in tmp_path.glob("corpus.txt.*.npy"))  # noqa: E731
    arguments = ("예금을 들었다", "--model_name_or_path", toy_base, "--corpus", corpus)
    status, first, said = search(repo, monkeypatch, capsys, *arguments)
    (file,) = kept()
    assert status == 0 and f"{file}: 3 vectors kept" in said
    vectors = np.load(tmp_path / file)
    assert vectors.shape == (3, 32) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    # the kept vectors are what is searched: with other ones in their place the scores are theirs
    np.save(tmp_path / file, -vectors)
    status, negated, said = search(repo, monkeypatch, capsys, *arguments)
    scores, opposite = (sorted(map(float, re.findall(r"Score: (-?[0-9.]+)", text))) for text in (first, negated))
    assert "kept" not in said and opposite == [-score for score in reversed(scores)]

    # a cut file is made anew; another setting, text or model makes a file of its own
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:150])
    assert search(repo, monkeypatch, capsys, *arguments)[1] == first and kept() == [file]
    search(repo, monkeypatch, capsys, *arguments, "--prompt", "query: ")
    assert len(kept()) == 2
    corpus.write_text("은행에 돈을 맡긴다\n주식을 팔았다\n비가 온다\n", encoding="utf-8")
    search(repo, monkeypatch, capsys, *arguments)
    assert len(kept()) == 3 and not list(tmp_path.glob(".*"))


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit on the size of files")
def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    import resource

    corpus = tmp_path / "corpus.txt"
    monkeypatch.setattr(index, "CHUNK", 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(OSError) as error:
            index.embed_corpus(corpus, list("abcd"), lambda texts: np.ones((len(texts), 9999), np.float32), "key")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert str(error.value.filename).startswith(f"{corpus}.") and not list(tmp_path.iterdir())


def test_the_key_is_of_the_weights_not_of_the_path(toy_base, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(toy_base, copy)
    before = index.fingerprint(index.folder_files(copy), "a")
    assert before == index.fingerprint(index.folder_files(toy_base), "a") != index.fingerprint([], "a")
    weights = next(copy.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = index.fingerprint(index.folder_files(copy), "a")
    assert changed != before
    (copy / "modeling_own.py").write_text("own code decides embeddings too")
    assert index.fingerprint(index.folder_files(copy), "a") != changed


@pytest.mark.parametrize("count", [1, 7, 50, 1000])
def test_nearest_is_a_full_sort_whatever_the_blocks(count, monkeypatch):
    generator = np.random.default_rng(0)
    corpus, queries = (generator.normal(size=(rows, 4)).astype(np.float32) for rows in (300, 5))
    corpus[200:250] = corpus[100:150]  # equal scores come in the order of the corpus
    expected = np.argsort(-np.round(queries @ corpus.T, index.DIGITS), axis=1, kind="stable")[:, :count]
    monkeypatch.setattr(index, "BLOCK", 37)
    found = index.nearest(corpus, queries, count)
    assert [[row for row, _ in rows] for rows in found] == expected.tolist()
    assert found[0][0][1] == pytest.approx((queries @ corpus.T)[0].max(), abs=1e-5)


def test_vectors_without_direction_are_refused():
    for bad in (0.0, np.nan, np.inf):
        with pytest.raises(InputError, match="my/model: embeddings that are zero or not finite"):
            index.unit_vectors(lambda sentences, bad=bad: np.array([[1.0, 2.0], [bad, bad]]), ["a", "b"], "my/model")


def test_foreign_text_neither_stops_the_search_nor_steers_the_terminal(toy_base, repo, monkeypatch, capsys, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\x1b]0;나쁜 제목\x07주식을 샀다\x9b31m\n", encoding="utf-8")
    status, out, _ = search(
        repo, monkeypatch, capsys, "주식\udcff \ud800\x1b[2J", "--model_name_or_path", toy_base, "--corpus", corpus
    )
    assert status == 0 and "주식을 샀다" in out and not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", out)
