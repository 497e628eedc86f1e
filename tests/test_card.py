"""The card a run leaves can be published unedited: valid metadata, right figures, code that runs."""

import json
import os
import re

import numpy as np
import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from in_process import run_here
from kf_deberta.data.official import BLOB_IDS
from kf_deberta.evaluation.scoring import FIGURES
from kf_deberta.model.save import save_model
from kf_deberta.training.card import add_onnx_usage, write_card


@pytest.fixture(scope="module")
def directory(toy_base, toy_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("out")
    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--max_rounds", 4, "--nli_batch_size", 32]
    old = os.umask(0o027)
    try:
        assert run_here("training_multi_task.py", *flags, "--matryoshka_dims", "16,8", "--output_dir", output) == 0
    finally:
        os.umask(old)
    (path,) = output.iterdir()
    return path


@pytest.fixture(scope="module")
def facts(directory):
    return json.loads((directory / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def card(directory):
    return ModelCard.load(directory / "README.md")


@pytest.fixture
def write(facts, tmp_path):
    """Write the card of the run once more, as of another model or with other facts; returns its text."""

    def write(model, **changed):
        save_model(model, tmp_path / "model")
        write_card(model, facts | changed, tmp_path / "model")
        return (tmp_path / "model" / "README.md").read_text(encoding="utf-8")

    return write


def build(base, *modules):
    return SentenceTransformer(modules=[Transformer(str(base)), *modules], device="cpu")


def code_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.S)


def run_code(code, directory):
    namespace = {}
    exec(code.replace("OWNER/MODEL", str(directory)), namespace)
    return np.asarray(namespace["embeddings"]), namespace["sentences"]


def tables(text):
    """Return the tables of the rendered card as lists of rows of cell texts."""
    html = MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])
    return [
        [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)]
        for table in re.findall(r"<table>(.*?)</table>", html, re.S)
    ]


def test_metadata_is_valid_and_leaves_the_license_of_other_data_open(card, facts):
    metadata = card.data.to_dict()
    assert metadata["language"] == ["ko"] and metadata["pipeline_tag"] == "sentence-similarity"
    assert metadata["library_name"] == "sentence-transformers" and metadata.get("license") is None
    assert metadata.get("base_model") is None and "feature-extraction" in metadata["tags"]
    results = {(r.dataset_type, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert len(results) == 16
    for split in ("test", "dev"):
        for figure in FIGURES:
            similarity, kind = figure.split("_")
            assert results[f"sts-{split}", f"{kind}_{similarity}"] == pytest.approx(facts[split][figure])


def test_tables_have_the_figures_of_the_run_and_what_it_trained_on(card, facts):
    figures, truncated, stages, settings = tables(card.content)
    assert figures[0] == ["similarity", "before training", "this model"]
    for row, name in zip(figures[1:], FIGURES, strict=True):
        values = [f"{100 * facts[split][name]:.2f}" for split in ("baseline", "test")]
        assert row == [name.replace("_", " ").title(), *values]
    assert [row[0] for row in truncated[1:]] == ["16", "8"]
    assert truncated[2][2] == f"{100 * facts['test']['8_cosine_spearman']:.2f}"
    (nli, sts) = stages[1:]
    assert nli[:3] == [
        "600 NLI rows in batches of 32",
        "MatryoshkaLoss over MultipleNegativesRankingLoss, scale 20",
        "4",
    ]
    assert sts[0] == "28 STS rows in batches of 8" and "CosineSimilarityLoss" in sts[1]
    rows = dict(settings[1:])
    assert "torch 2.13.0" in rows["libraries"] and rows["processes"] == "1" and rows["base model"] == "toy-base"
    assert "first 10% of the rounds" in rows["schedule"] and "gradients clipped to norm 1" in rows["optimizer"]
    assert "None" not in card.text and "{" not in card.text.split("```")[0]


def test_text_is_korean_first_and_names_data_files_limits_and_placeholder(card, directory):
    for text in ("한국어 문장 임베딩 모델입니다.", "pip install -U sentence-transformers", "Replace `OWNER/MODEL`"):
        assert text in card.text
    assert "KorNLI/toy.train.ko.tsv, KorSTS/sts-train.tsv" in card.text  # not the official ones
    assert "not comparable with published" in card.text and "16 or 8 dimensions" in card.text
    assert str(directory) not in card.content and "SentenceTransformer(\n  (0): Transformer(" in card.text
    picture = re.search(r"!\[.+\]\((.+)\)", card.text)[1]
    assert (directory / picture).read_bytes().startswith(b"\x89PNG")


def test_bibtex_entries_parse(write, toy_base):
    text = write(build(toy_base, Pooling(32)), base="kakaobank/kf-deberta-base", base_on_hub=True)
    (block,) = re.findall(r"```bibtex\n(.*?)```", text, re.S)
    entries = re.findall(r"@(\w+)\{([\w-]+),\n(.*?)\n\}", block, re.S)
    assert [name for _, name, _ in entries][0] == "jeon-etal-2023-kfdeberta"
    assert [kind for kind, *_ in entries] == ["inproceedings", "article", "inproceedings"]
    for _, _, fields in entries:
        fields = dict(re.findall(r"^ *(\w+) *= *[{]?(.*?)[}]?,?$", fields, re.M))
        assert {"title", "author", "year"} <= fields.keys()
        assert all(author.count(",") <= 1 for author in fields["author"].split(" and "))


def test_official_data_bring_license_citation_and_published_rows(write, toy_base):
    official = {
        "data": BLOB_IDS,
        "trained_on": {n: b for n, b in BLOB_IDS.items() if "train" in n},
        "test_pairs": 1379,
    }
    base = {"base": "kakaobank/kf-deberta-base", "base_on_hub": True, "base_revision": "363b171d7144"}
    text = write(build(toy_base, Pooling(32)), **official, **base)
    card = ModelCard(text)
    assert card.data.base_model == "kakaobank/kf-deberta-base" and card.data.license == "cc-by-sa-4.0"
    assert card.data.datasets == ["kakaobrain/kor_nlu"]
    assert {result.dataset_name for result in card.data.eval_results} == {"KorSTS test", "KorSTS dev"}
    assert "1,379 pairs of KorSTS test" in text and "not the official" not in text
    published = tables(text)[2]
    assert len(published) == 6 and published[1][1:] == ["85.75", "86.25"]
    assert ["base model", "kakaobank/kf-deberta-base, commit 363b171d7144"] in tables(text)[-1]
    for part in ("train", "test"):  # the license follows the files that were trained on, not the test file
        own = {name: blob if part not in name else "0" * 40 for name, blob in BLOB_IDS.items()}
        trained = {name: blob for name, blob in own.items() if "train" in name}
        changed = ModelCard(write(build(toy_base, Pooling(32)), **official | {"data": own, "trained_on": trained}))
        assert changed.data.license == (None if part == "train" else "cc-by-sa-4.0")


def test_both_usages_run_and_agree(card, directory):
    first, second = code_blocks(card.text)
    assert np.allclose(run_code(first, directory)[0], run_code(second, directory)[0], atol=1e-5)


PLAIN = {"cls": [Pooling(32, "cls")], "normalized": [Pooling(32), Normalize()]}
NOT_PLAIN = {"two": [Pooling(32, ("cls", "mean"))], "dense": [Pooling(32), Dense(32, 8)]}


@pytest.mark.parametrize("name", [*PLAIN, *NOT_PLAIN])
def test_plain_transformers_code_does_what_the_modules_do_or_is_left_out(name, write, toy_base, tmp_path):
    model = build(toy_base, *(PLAIN | NOT_PLAIN)[name])
    text = write(model)
    first, *plain = code_blocks(text)
    assert len(plain) == (name in PLAIN)
    for code in (first, *plain):
        embeddings, sentences = run_code(code, tmp_path / "model")
        assert np.allclose(embeddings, model.encode(sentences), atol=1e-5)
    assert ("embeddings have length 1, so" in text) == (name == "normalized")


def test_onnx_code_is_added_and_renewed(write, toy_base, tmp_path, monkeypatch):
    from kf_deberta.export.graph import export_model

    model = build(toy_base, Pooling(32), Normalize())
    before = write(model)
    assert "onnxruntime" not in before
    (tmp_path / "model" / "onnx").mkdir()
    export_model(model, tmp_path / "model" / "onnx" / "model.onnx")
    monkeypatch.chdir(tmp_path / "model")
    for length in (64, 32):
        model.max_seq_length = length
        assert add_onnx_usage(model, tmp_path / "model")
        text = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
        *others, onnx = code_blocks(text)
        assert others == code_blocks(before) and f"enable_truncation({length})" in onnx
    embeddings, sentences = run_code(onnx, tmp_path)
    assert np.allclose(embeddings, model.encode(sentences), atol=1e-5)
    assert not add_onnx_usage(model, tmp_path)  # no card of a run


HOSTILE = 'a|b<script>"c\n\n# d`e`*f*[g](h)&lt;{{ 7 * 7 }}---'


def test_hostile_names_change_no_structure(write, toy_base):
    model = build(toy_base, Pooling(32))
    text, plain = write(model, base=HOSTILE), write(model)
    html = MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2])
    assert "<script>" not in html and "<em>" not in html
    assert ModelCard(text).data.eval_results and [len(table) for table in tables(text)] == list(
        map(len, tables(plain))
    )


def test_every_file_and_directory_honors_the_umask(directory):
    modes = {True: set(), False: set()}
    for path in [directory, *directory.rglob("*")]:
        modes[path.is_dir()].add(path.stat().st_mode & 0o777)
    assert modes == {False: {0o640}, True: {0o750}}


def test_a_run_that_starts_from_a_run_keeps_the_first_base_and_its_data(directory, toy_data, tmp_path):
    flags = ["--model_name_or_path", directory, "--dataset_path", toy_data, "--max_rounds", 2]
    assert run_here("training_sts.py", *flags, "--output_dir", tmp_path) == 0
    facts = json.loads(next(tmp_path.glob("*/results.json")).read_text(encoding="utf-8"))
    assert facts["base"] == "toy-base" and set(facts["trained_on"]) == {
        "KorNLI/toy.train.ko.tsv",
        "KorSTS/sts-train.tsv",
    }
