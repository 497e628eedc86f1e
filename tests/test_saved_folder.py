"""A saved model loads in every version of sentence-transformers, for every user whom the umask lets read."""

import json
import logging
import os
import warnings

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Dropout, Normalize, Pooling, Transformer

from kf_deberta.model.save import save_model

SENTENCES = ["은행에서 예금을 인출한다.", "a", " ".join(["주식 시장에서 주식을 매수한다."] * 9)]


def build(base, *modules):
    return SentenceTransformer(modules=[Transformer(str(base)), *modules], device="cpu")


def read(path):
    return json.loads(path.read_text())


def load_in_silence(directory):
    """Load with every warning of Python, transformers and sentence-transformers an error."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = SentenceTransformer(str(directory), device="cpu")
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == []
    return model


MODULES = {
    "mean": (Pooling(32, "mean"),),
    "cls": (Pooling(32, "cls"),),
    "several": (Pooling(32, ("cls", "max", "mean")),),
    "without-prompt": (Pooling(32, "mean", include_prompt=False),),
    "normalize": (Pooling(32, "mean"), Normalize()),
    "dense": (Pooling(32, "mean"), Dense(32, 16), Normalize()),
}


@pytest.mark.parametrize("name", MODULES)
def test_fields_of_the_old_format_and_the_same_embeddings(name, toy_base, tmp_path):
    modules = MODULES[name]
    model = build(toy_base, *modules)
    model.max_seq_length = 24
    save_model(model, tmp_path / "model")

    folder = tmp_path / "model"
    types = [entry["type"] for entry in read(folder / "modules.json")]
    kinds = ["Transformer", *(type(module).__name__ for module in modules)]
    assert types == [f"sentence_transformers.models.{kind}" for kind in kinds]
    assert read(folder / "sentence_bert_config.json") == {"max_seq_length": 24, "do_lower_case": False}
    pooling = read(folder / "1_Pooling" / "config.json")
    assert pooling.pop("word_embedding_dimension") == 32
    assert pooling.pop("include_prompt") == (name != "without-prompt")
    flags = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens"}
    modes = {"cls": ["cls"], "several": ["cls", "max", "mean"]}.get(name, ["mean"])
    assert {key for key, value in pooling.items() if value} == {f"pooling_mode_{flags[mode]}" for mode in modes}
    assert len(pooling) == 6
    if name == "dense":
        assert read(folder / "2_Dense" / "config.json").keys() == {
            "in_features",
            "out_features",
            "bias",
            "activation_function",
        }

    loaded = load_in_silence(folder)
    assert loaded.max_seq_length == 24
    assert np.array_equal(loaded.encode(SENTENCES), model.encode(SENTENCES))


def test_tokenizer_files_are_those_of_the_base(tiny_deberta, tmp_path):
    save_model(build(tiny_deberta, Pooling(128)), tmp_path)
    assert (tmp_path / "vocab.txt").read_bytes() == (tiny_deberta / "vocab.txt").read_bytes()
    assert read(tmp_path / "special_tokens_map.json") == read(tiny_deberta / "special_tokens_map.json")
    assert read(tmp_path / "tokenizer_config.json")["tokenizer_class"] == "BertTokenizer"


def test_a_tokenizer_without_a_class_has_the_name_that_transformers_4_knows(e5_small, tmp_path):
    model = SentenceTransformer(str(e5_small), device="cpu", model_kwargs={"dtype": "float32"})
    model.tokenizer.add_special_tokens({"extra_special_tokens": ["<문장>"]})
    save_model(model, tmp_path, weights=False)
    config = read(tmp_path / "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<문장>"] and "extra_special_tokens" not in config
    assert not (tmp_path / "model.safetensors").exists() and (tmp_path / "config.json").exists()


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_every_file_honors_the_umask(umask, toy_base, tmp_path):
    old = os.umask(umask)
    try:
        save_model(build(toy_base, *MODULES["dense"]), tmp_path / "model")
    finally:
        os.umask(old)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert sum(path.suffix == ".safetensors" for path in files) == 2
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


UNLIKE = {
    "order": lambda base: build(base, Pooling(32, ("mean", "cls"))),
    "kind": lambda base: build(base, Pooling(32), Dropout(0.1)),
    "residual": lambda base: build(base, Pooling(32), Dense(32, 32, use_residual=True)),
    "truncated": lambda base: SentenceTransformer(
        modules=[Transformer(str(base)), Pooling(32)], device="cpu", truncate_dim=8
    ),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_what_the_old_format_cannot_say_is_saved_in_the_new_one(name, toy_base, tmp_path):
    model = UNLIKE[name](toy_base)
    save_model(model, tmp_path)
    assert np.array_equal(SentenceTransformer(str(tmp_path), device="cpu").encode(SENTENCES), model.encode(SENTENCES))
