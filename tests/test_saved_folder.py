"""A saved model loads in every version of sentence-transformers, for every user whom the umask lets read."""

import json
import os
import warnings

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Dropout, Normalize, Pooling, Transformer

from kf_deberta.model.save import format_problem, save_model

SENTENCES = ["은행에서 예금을 인출한다.", "a", " ".join(["주식 시장에서 주식을 매수한다."] * 9)]


def build(base, *modules, **options):
    return SentenceTransformer(modules=[Transformer(str(base)), *modules], device="cpu", **options)


def read(path):
    return json.loads(path.read_text())


MODULES = {
    "mean": (Pooling(32, "mean"),),
    "cls": (Pooling(32, "cls"),),
    "several": (Pooling(32, ("cls", "max", "mean")),),
    "without-prompt": (Pooling(32, "mean", include_prompt=False),),
    "normalize": (Pooling(32, "mean"), Normalize()),
    "dense": (Pooling(32, "mean"), Dense(32, 16), Normalize()),
}


@pytest.mark.parametrize("name", MODULES)
def test_fields_of_the_old_format_and_the_same_embeddings(name, toy_base, tmp_path, capfd):
    modules = MODULES[name]
    model = build(toy_base, *modules)
    model.max_seq_length = 24
    old = os.umask(0o027)
    save_model(model, folder := tmp_path / "model")
    os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o640}
    types = [entry["type"] for entry in read(folder / "modules.json")]
    kinds = ["Transformer", *(type(module).__name__ for module in modules)]
    assert types == [f"sentence_transformers.models.{kind}" for kind in kinds]
    assert read(folder / "sentence_bert_config.json") == {"max_seq_length": 24, "do_lower_case": False}
    pooling = read(folder / "1_Pooling" / "config.json")
    assert (pooling.pop("word_embedding_dimension"), pooling.pop("include_prompt")) == (32, name != "without-prompt")
    flags = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens"}
    modes = {"cls": ["cls"], "several": ["cls", "max", "mean"]}.get(name, ["mean"])
    assert {key for key, value in pooling.items() if value} == {f"pooling_mode_{flags[mode]}" for mode in modes}
    assert len(pooling) == 6
    if name == "dense":
        dense = read(folder / "2_Dense" / "config.json")
        assert set(dense) == {"in_features", "out_features", "bias", "activation_function"}
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = SentenceTransformer(str(folder), device="cpu")
    assert capfd.readouterr().err == "" and loaded.max_seq_length == 24
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


@pytest.mark.parametrize(
    ("modules", "options", "problem"),
    [
        ((Pooling(32, ("mean", "cls")),), {}, "module 1, Pooling, concatenates in the order mean, cls"),
        ((Pooling(32), Dropout(0.1)), {}, "module 2, Dropout, is not a Pooling, Dense or Normalize"),
        (
            (Pooling(32), Dense(32, 32, use_residual=True)),
            {},
            "module 2, Dense, is not a plain layer on sentence_embedding",
        ),
        ((Pooling(32),), {"truncate_dim": 8}, "it truncates its embeddings to 8 dimensions"),
    ],
)
def test_what_the_old_format_cannot_describe_is_saved_in_the_new_one(toy_base, tmp_path, modules, options, problem):
    model = build(toy_base, *modules, **options)
    assert format_problem(model) == problem
    save_model(model, tmp_path)
    assert np.array_equal(SentenceTransformer(str(tmp_path), device="cpu").encode(SENTENCES), model.encode(SENTENCES))
