"""--pooling, --normalize and --prompt in training, benchmark, export and search, against plain transformers."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import pearsonr, spearmanr
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoTokenizer

from data_util import load_kor_sts
from in_process import run_here
from kf_deberta.evaluation.scoring import FIGURES
from kf_deberta.model.load import load_model
from kf_deberta.model.onnx_encoder import OnnxEncoder

PROMPT = "질문: "


def plain_tokens(path, texts, pool) -> np.ndarray:
    """pool(token embeddings of one sentence) for each text, by plain transformers."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    with torch.no_grad():
        rows = [pool(encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]) for text in texts]
    return torch.stack(rows).numpy()


def mean(tokens):
    return tokens.mean(0)


def figures(first: np.ndarray, second: np.ndarray, gold: list[float]) -> dict[str, float]:
    """The eight correlations by numpy and scipy."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    similarities = {
        "cosine": (first * second).sum(1) / lengths,
        "euclidean": -np.linalg.norm(first - second, axis=1),
        "manhattan": -np.abs(first - second).sum(1),
        "dot": (first * second).sum(1),
    }
    return {
        f"{name}_{kind}": correlate(values, gold).statistic
        for name, values in similarities.items()
        for kind, correlate in (("pearson", pearsonr), ("spearman", spearmanr))
    }


def benchmark(data, output, *arguments) -> list[dict]:
    assert run_here("bin/benchmark.py", "--sts_dataset_path", data / "KorSTS", "--output", output, *arguments) == 0
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def base(toy_base, tmp_path_factory):
    """The toy base with larger random weights: sentences lie apart, so that figures are not rounding."""
    path = tmp_path_factory.mktemp("base") / "base"
    shutil.copytree(toy_base, path)
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.from_pretrained(toy_base, initializer_range=0.3)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pairs(toy_data):
    return load_kor_sts(toy_data / "KorSTS" / "sts-test.tsv")


def test_pooling_of_a_plain_encoder(base, toy_data, pairs, tmp_path, capsys):
    (record,) = benchmark(
        toy_data, tmp_path / "r.json", "--model_name_or_path", base, "--pooling", "cls", "--bootstrap", 0
    )
    first, second = (plain_tokens(base, pairs[name], lambda t: t[0]) for name in ("sentence1", "sentence2"))
    expected = figures(first, second, pairs["score"])
    for name in FIGURES:
        assert record[name] == pytest.approx(expected[name], abs=1e-5 if "pearson" in name else 5e-3), name
    assert f"{base} (cls pooling)" in capsys.readouterr().out
    load_model(str(base), device="cpu").save_pretrained(str(tmp_path / "own"))
    arguments = ("--model_name_or_path", tmp_path / "own", "--pooling", "cls")
    for script in ("bin/benchmark.py", "bin/export_onnx.py", "bin/search.py"):
        extra = ["물음"] if "search" in script else ["--sts_dataset_path", toy_data / "KorSTS"]
        assert run_here(script, *extra, *arguments) == 2
        assert "its own pooling is mean; leave --pooling cls out" in capsys.readouterr().err


def test_a_published_row_knows_its_pooling(base, toy_data, pairs, tmp_path, monkeypatch, capsys):
    """From SENTENCE_TRANSFORMERS_HOME, where the library caches too."""
    name, commit = "BM-K/KoSimCSE-roberta-multitask", "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "models--BM-K--KoSimCSE-roberta-multitask"
    shutil.copytree(base, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    (record,) = benchmark(toy_data, tmp_path / "r.json", "--model_name_or_path", name)
    first, second = (plain_tokens(base, pairs[column], lambda t: t[0]) for column in ("sentence1", "sentence2"))
    assert record["cosine_pearson"] == pytest.approx(
        figures(first, second, pairs["score"])["cosine_pearson"], abs=1e-5
    )
    assert record["revision"] == commit and f"{name} (cls pooling)" in capsys.readouterr().out


def test_normalized_training_and_scores(base, toy_data, pairs, tmp_path, capsys):
    flags = ("--model_name_or_path", base, "--dataset_path", toy_data, "--max_rounds", 2, "--learning_rate", 1e-3)
    facts, weights = {}, {}
    for extra in ([], ["--normalize"]):
        parent = tmp_path / f"runs{len(extra)}"
        assert run_here("training_sts.py", *flags, "--output_dir", parent, *extra) == 0
        (run,) = parent.iterdir()
        facts[bool(extra)] = json.loads((run / "training_arguments.json").read_text())["test"]
        weights[bool(extra)] = load_file(run / "model.safetensors")
    assert facts[True]["dot_pearson"] == pytest.approx(facts[True]["cosine_pearson"], abs=1e-4)
    assert facts[True]["cosine_pearson"] == pytest.approx(facts[False]["cosine_pearson"], abs=1e-2)
    assert abs(facts[False]["dot_pearson"] - facts[False]["cosine_pearson"]) > 0.1
    for key, value in weights[False].items():  # the loss is of cosines, so training does not change
        assert torch.allclose(value, weights[True][key], atol=1e-5), key
    saved = SentenceTransformer(str(run), device="cpu")
    assert np.abs(np.linalg.norm(saved.encode(pairs["sentence1"]), axis=1) - 1).max() < 1e-6

    records = benchmark(toy_data, tmp_path / "r.json", "--model_name_or_path", base, "--normalize", "--bootstrap", 0)
    first, second = (plain_tokens(base, pairs[name], mean) for name in ("sentence1", "sentence2"))
    first, second = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (first, second))
    expected = figures(first, second, pairs["score"])
    for name in FIGURES:
        assert records[0][name] == pytest.approx(expected[name], abs=1e-5 if "pearson" in name else 5e-3), name
    assert records[0]["dot_pearson"] == pytest.approx(records[0]["cosine_pearson"], abs=1e-6)
    assert f"{base} (normalized)" in capsys.readouterr().out


@pytest.fixture(scope="module")
def prompted(base, tmp_path_factory):
    """The toy base as a sentence-transformers model with a default prompt, the multilingual-e5 way."""
    path = tmp_path_factory.mktemp("prompted") / "model"
    model = load_model(str(base), device="cpu", max_seq_length=64)
    model.prompts, model.default_prompt_name = {"query": PROMPT, "passage": "문서: "}, "query"
    model.save_pretrained(str(path))
    return path


def test_one_prompt_in_torch_and_onnx(prompted, toy_data, pairs, tmp_path, capsys):
    export = ("bin/export_onnx.py", "--model_name_or_path", prompted, "--normalize", "--output_dir", tmp_path / "onnx")
    assert run_here(*export) == 0
    assert f"prompt '{PROMPT}'" in capsys.readouterr().out
    graph = tmp_path / "onnx" / "model.onnx"
    expected = plain_tokens(prompted, [PROMPT + text for text in pairs["sentence1"]], mean)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    got = OnnxEncoder(graph).encode(pairs["sentence1"])
    assert np.abs(got - expected).max() < 1e-5 and np.abs(np.linalg.norm(got, axis=1) - 1).max() < 1e-6
    for extra, text in ([], PROMPT), (["--prompt", ""], ""), (["--prompt", "글: "], "글: "):
        models = ("--model_name_or_path", prompted, graph, "--normalize", "--bootstrap", 0)
        records = benchmark(toy_data, tmp_path / "r.json", *models, *extra)
        columns = [[text + sentence for sentence in pairs[name]] for name in ("sentence1", "sentence2")]
        first, second = (plain_tokens(prompted, column, mean) for column in columns)
        expected = figures(first, second, pairs["score"])
        for record in records:
            assert record["cosine_pearson"] == pytest.approx(expected["cosine_pearson"], abs=1e-5)
            assert (f"prompt '{text}'" in record["settings"]) == bool(text) and "normalized" in record["settings"]
    data = ("--sts_dataset_path", toy_data / "KorSTS")
    assert run_here("bin/benchmark.py", "--model_name_or_path", graph, "--pooling", "cls", *data) == 2
    assert "pooling is inside the graph" in capsys.readouterr().err


@pytest.mark.parametrize(("extra", "text"), [([], PROMPT), (["--prompt", ""], "")])
def test_search_uses_the_prompt(prompted, tmp_path, capsys, extra, text):
    corpus, query = ["은행에 돈을 맡긴다", "비가 온다"], "예금을 들었다"
    (tmp_path / "corpus.txt").write_text("\n".join(corpus), encoding="utf-8")
    flags = ("--model_name_or_path", prompted, "--corpus", tmp_path / "corpus.txt", *extra)
    assert run_here("bin/search.py", query, *flags) == 0
    vectors = plain_tokens(prompted, [text + sentence for sentence in [query, *corpus]], mean)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    output = capsys.readouterr()
    for sentence, score in zip(corpus, vectors[1:] @ vectors[0], strict=True):
        assert f"{sentence} (Score: {score:.4f})" in output.out
    assert (f"prompt '{PROMPT}'" in output.err) == bool(text)


def test_training_and_evaluation_see_the_same_texts(prompted, toy_data, tmp_path, capsys):
    """A base with a default prompt trains and scores as one without does on data that hold the prompt."""
    written = tmp_path / "data"
    shutil.copytree(toy_data, written)
    for path in (written / "KorSTS").iterdir():
        header, *rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
        rows = [[*row[:5], PROMPT + row[5], PROMPT + row[6]] for row in rows]
        path.write_text("\n".join("\t".join(row) for row in [header, *rows]) + "\n", encoding="utf-8")
    results = []
    for data, extra in (toy_data, []), (written, ["--prompt", ""]):
        flags = ("--model_name_or_path", prompted, "--max_rounds", 2, "--learning_rate", 1e-3, "--dataset_path", data)
        parent = tmp_path / data.name / "runs"
        assert run_here("training_sts.py", *flags, "--output_dir", parent, *extra) == 0
        (run,) = parent.iterdir()
        facts = json.loads((run / "training_arguments.json").read_text())
        results.append((load_file(run / "model.safetensors"), facts["baseline"], facts["test"]))
        config = json.loads((run / "config_sentence_transformers.json").read_text())
        assert config["default_prompt_name"] == (None if extra else "query")
    for key, value in results[0][0].items():
        assert torch.equal(value, results[1][0][key]), key
    assert results[0][1:] == results[1][1:]
    assert f"prompt '{PROMPT}'" in capsys.readouterr().out
    assert run_here("training_sts.py", "--model_name_or_path", prompted, "--prompts", "x: ") == 2
    assert "use --prompt" in capsys.readouterr().err
