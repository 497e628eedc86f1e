"""The card a run leaves can be published unedited: valid metadata, right figures, code that runs."""

import copy
import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from kf_deberta.export.graph import export_model
from kf_deberta.model.save import save_model
from kf_deberta.training.card import add_onnx_usage, write_model_card
from recording import record

SIMILARITIES = ("cosine", "euclidean", "manhattan", "dot")


@pytest.fixture(scope="module")
def run(toy_base, toy_data, tmp_path_factory):
    import training_multi_task

    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--num_epochs", 2, "--nli_batch_size", 32]
    flags += ["--learning_rate", 3e-3, "--matryoshka_dims", "16,8"]
    old = os.umask(0o027)
    try:
        return record(training_multi_task, flags, tmp_path_factory.mktemp("out"))
    finally:
        os.umask(old)


@pytest.fixture(scope="module")
def card(run):
    return ModelCard.load(run.directory / "README.md")


def test_metadata_is_valid_korean_and_leaves_the_license_open(card):
    assert card.data.language == ["ko"]
    assert card.data.get("license") is None
    metadata = card.data.to_dict()
    assert metadata["library_name"] == "sentence-transformers"
    assert metadata["pipeline_tag"] == "sentence-similarity"


def test_model_index_holds_test_and_best_dev_figures(run, card):
    facts = json.loads((run.directory / "training_arguments.json").read_text())
    results = {(r.dataset_type, r.metric_type): r.metric_value for r in card.data.eval_results}
    for similarity in SIMILARITIES:
        for kind in ("pearson", "spearman"):
            expected = facts["test"][f"{similarity}_{kind}"] / 100
            assert results["sts-test", f"{kind}_{similarity}"] == pytest.approx(expected)
    dev = [row for row in run.trainer.state.log_history if "eval_sts-dev_spearman_cosine" in row and row["step"]]
    best = max(row["eval_sts-dev_spearman_cosine"] for row in dev)
    assert results["sts-dev", "spearman_cosine"] == pytest.approx(best)


@pytest.fixture
def write(run, tmp_path, monkeypatch):
    """Write the card of the run once more, as of another model, with other flags or other facts; return its text."""
    facts = json.loads((run.directory / "training_arguments.json").read_text())

    def write(model=None, *, hub_model_id=None, changed_facts=None, folder="model", **flags):
        trainer = copy.copy(run.trainer)
        trainer.model = model or run.trainer.model
        trainer.args = copy.copy(run.trainer.args)
        trainer.args.hub_model_id = hub_model_id
        args = {"model_name_or_path": "owner/base", "trust_remote_code": False, "matryoshka_dims": None}
        save_model(trainer.model, tmp_path / folder)
        arguments = SimpleNamespace(**args | {"dtype": "float32"} | flags)
        write_model_card(trainer, arguments, facts | (changed_facts or {}), {}, tmp_path / folder)
        return (tmp_path / folder / "README.md").read_text(encoding="utf-8")

    monkeypatch.chdir(tmp_path)
    return write


def code_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.S)


def run_code(code):
    namespace = {}
    exec(code, namespace)
    return np.asarray(namespace["embeddings"]), namespace["sentences"]


def tables(text):
    """Return the tables of the rendered card as lists of rows of cell texts."""
    body = text.split("---\n", 2)[2]
    html = MarkdownIt("commonmark").enable("table").render(body)
    return [
        [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)]
        for table in re.findall(r"<table>(.*?)</table>", html, re.S)
    ]


def test_figures_stand_once_and_the_recipe_says_what_was_done(card, run):
    facts = json.loads((run.directory / "training_arguments.json").read_text())
    figures, prefixes, recipe = tables(card.content)
    names = [f"{similarity} {kind}" for similarity in SIMILARITIES for kind in ("pearson", "spearman")]
    keys = [name.replace(" ", "_") for name in names]
    assert figures[0] == ["similarity", "before training", "this model"]
    assert [row[0].lower() for row in figures[1:]] == names
    assert [row[1:] for row in figures[1:]] == [[f"{facts[k][key]:.2f}" for k in ("baseline", "test")] for key in keys]
    assert [row[0] for row in prefixes[1:]] == ["16", "8"]
    assert prefixes[2][2] == f"{facts['test']['8_cosine_spearman']:.2f}"
    rows = dict(recipe[1:])
    assert rows["NLI objective"].startswith("600 triplets of KorNLI, batches of 32,")
    assert rows["STS objective"].startswith("28 pairs of KorSTS, batches of 8,")
    assert "MatryoshkaLoss over MultipleNegativesRankingLoss, scale 20" in rows["NLI objective"]
    assert rows["rounds"].startswith("8 in 2 epochs")
    assert rows["learning rate"].startswith("0.003, linear schedule, warm-up over the first 10%")
    assert "torch 2.13.0" in rows["libraries"] and "processes" not in rows
    assert f"round {facts['best_round']}, {facts['best_dev_cosine_spearman']:.2f}" in rows["kept"]
    assert "None" not in card.text and "pearson_max" not in card.content


def test_text_has_korean_examples_links_curves_and_citations(card, run):
    for text in ("만기가 된 정기예금", "ham2020kornli", "Matryoshka", "creativecommons.org/licenses/by-sa/4.0"):
        assert text in card.text
    assert "[KorNLI](https://github.com/kakaobrain/kor-nlu-datasets/tree/master/KorNLI) and [KorSTS](" in card.text
    assert "up to 128 tokens" in card.text and "do not have unit length" in card.text and "recall@10" in card.text
    picture = re.search(r"!\[.+\]\((.+)\)", card.text)[1]
    assert (run.directory / picture).read_bytes().startswith(b"\x89PNG")
    assert "not the official" in card.text and "kakaobrain/kor_nlu" not in card.content
    assert "jeon-etal" not in card.text


def test_no_path_of_this_machine_is_in_what_a_run_leaves(run, toy_base, toy_data):
    for path in run.directory.rglob("*"):
        for folder in (run.directory, toy_base, toy_data):
            assert path.is_dir() or str(folder.parent).encode() not in path.read_bytes(), path.name


def test_every_file_and_folder_of_a_run_honors_the_umask(run):
    modes = {path.is_dir(): set() for path in run.directory.rglob("*")}
    for path in [run.directory, *run.directory.rglob("*")]:
        modes[path.is_dir()].add(path.stat().st_mode & 0o777)
    assert modes == {False: {0o640}, True: {0o750}}


def test_both_usages_run_and_agree(card, run, monkeypatch):
    first, second = code_blocks(card.text)
    assert run.directory.name in first and run.directory.name in second
    monkeypatch.chdir(run.directory.parent)
    left, right = run_code(first)[0], run_code(second)[0]
    assert np.allclose(left, right, atol=1e-5)


def build(base, *modules, **options):
    return SentenceTransformer(modules=[Transformer(str(base)), *modules], device="cpu", **options)


PLAIN = {
    "mean": lambda base: build(base, Pooling(32)),
    "cls": lambda base: build(base, Pooling(32, "cls")),
    "normalized": lambda base: build(base, Pooling(32), Normalize()),
    "prompt": lambda base: build(base, Pooling(32), prompts={"query": 'query: "'}, default_prompt_name="query"),
}
NOT_PLAIN = {
    "max": lambda base: build(base, Pooling(32, "max")),
    "two": lambda base: build(base, Pooling(32, ("cls", "mean"))),
    "dense": lambda base: build(base, Pooling(32), Dense(32, 8)),
    "without prompt": lambda base: build(
        base, Pooling(32, include_prompt=False), prompts={"query": "query: "}, default_prompt_name="query"
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_transformers_code_does_what_the_modules_do(name, write, toy_base):
    model = PLAIN[name](toy_base)
    text = write(model, folder='a "model"')
    _, plain = code_blocks(text)
    embeddings, sentences = run_code(plain)
    assert np.allclose(embeddings, model.encode(sentences), atol=1e-5)
    assert ("have unit length, so" in text) == (name == "normalized")


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_plain_transformers_code_is_left_out_where_it_would_differ(name, write, toy_base):
    model = NOT_PLAIN[name](toy_base)
    (only,) = code_blocks(write(model))
    embeddings, sentences = run_code(only)
    assert np.array_equal(embeddings, model.encode(sentences))


def test_onnx_code_is_added_once_an_export_lies_inside(write, toy_base, tmp_path, monkeypatch):
    model = build(toy_base, Pooling(32), Normalize(), prompts={"query": 'query: "'}, default_prompt_name="query")
    before = write(model)
    assert "onnxruntime" not in before
    (tmp_path / "model" / "onnx").mkdir()
    export_model(model, tmp_path / "model" / "onnx" / "model.onnx")
    assert add_onnx_usage(model, tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    first, plain, onnx = code_blocks(text)
    assert [first, plain] == code_blocks(before)
    with monkeypatch.context() as patch:
        patch.chdir("model")
        embeddings, sentences = run_code(onnx)
    assert np.allclose(embeddings, model.encode(sentences), atol=1e-5)
    assert not add_onnx_usage(model, tmp_path / "model")  # once, and never into a card that is not a run's
    assert write(model) == text  # a card that is written with the export there has it from the start


OFFICIAL = {
    "test_pairs": 1379,
    "base_revision": "363b171d71443b0874b0bf9cea053eb5b1650633",
    "content": {"KorSTS/sts-test.tsv": "d2a7c958d520ed84402c0042142a60d9a18ee3e4"},
}


def test_hub_names_and_the_metadata_of_the_official_data(write):
    text = write(hub_model_id="me/my-model", model_name_or_path="kakaobank/kf-deberta-base", changed_facts=OFFICIAL)
    card = ModelCard(text)
    assert card.data.base_model == "kakaobank/kf-deberta-base"
    assert card.data.license == "cc-by-sa-4.0" and card.data.datasets == ["kakaobrain/kor_nlu"]
    assert {result.dataset_name for result in card.data.eval_results} == {"KorSTS test"}
    assert all('("me/my-model")' in code for code in code_blocks(text))
    assert "1,379 pairs of KorSTS test" in text and "not the official" not in text
    assert "jeon-etal-2023-kfdeberta" in text and "month     = {oct}" in text and "moth" not in text
    assert "are not the official" not in text
    assert ["base model", "kakaobank/kf-deberta-base, commit 363b171d7144"] in tables(text)[-1]


def test_files_that_are_not_the_official_ones_are_named(write):
    content = OFFICIAL["content"] | {"KorNLI/my_own.train.ko.tsv": "0" * 40, "base config.json": "1" * 40}
    text = write(changed_facts=OFFICIAL | {"content": content})
    assert r"These data files are not the official ones: KorNLI/my\_own.train.ko.tsv." in text


HOSTILE = 'a|b<script>"c\n\n# d`e`*f*[g](h)&lt;{{ 7 * 7 }}---'


def test_hostile_names_change_no_structure(write, tmp_path):
    (tmp_path / "base" / HOSTILE).mkdir(parents=True)
    text = write(model_name_or_path=str(tmp_path / "base" / HOSTILE), folder=HOSTILE)
    card = ModelCard(text)
    assert isinstance(card.data, ModelCardData) and card.data.eval_results
    html = MarkdownIt("commonmark").enable("table").render(card.text)
    assert "<script>" not in html and "<em>" not in html
    shown = " ".join(HOSTILE.split())
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        shown = shown.replace(sign, entity)
    assert f"from {shown}</h1>" in html
    assert [len(table) for table in tables(text)] == [len(table) for table in tables(write())]
    first, plain = code_blocks(text)
    assert np.allclose(run_code(first)[0], run_code(plain)[0], atol=1e-5)
