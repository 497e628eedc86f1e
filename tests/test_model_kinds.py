"""What load_model makes of other kinds of model: lengths, tokenizers, orders of modules, what embeds nothing."""

import json
import shutil

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

import zoo
from kf_deberta.cli import InputError
from kf_deberta.model.load import load_model

LONG = "은행에 돈을 맡긴다 " * 60


@pytest.mark.parametrize("name", zoo.ENCODERS)
def test_lengths_are_what_the_encoder_takes(name, toy_base, tmp_path):
    path = str(zoo.write_encoder(name, toy_base, tmp_path))
    limit, least = zoo.LIMITS[name], zoo.SPECIAL[name] + 1
    model = load_model(path, device="cpu")
    assert limit is None or model.max_seq_length == limit
    if limit is not None:
        assert torch.isfinite(model.encode([LONG, "가"], convert_to_tensor=True)).all()
        assert load_model(path, device="cpu", max_seq_length=limit).max_seq_length == limit
        with pytest.raises(InputError, match=rf"--max_seq_length {limit + 1} exceeds its {limit} positions"):
            load_model(path, device="cpu", max_seq_length=limit + 1)
    short = load_model(path, device="cpu", max_seq_length=least)
    assert short.preprocess([LONG])["input_ids"].shape == (1, least)
    embeddings = short.encode(["은행", "비가"])
    assert abs(embeddings[0] - embeddings[1]).max() > 1e-3  # a word is left
    if least > 1:
        with pytest.raises(InputError, match=rf"--max_seq_length {least - 1} leaves no room.*give {least} or more"):
            load_model(path, device="cpu", max_seq_length=least - 1)


def test_usable_positions_with_the_padding_row_at_1(toy_base, tmp_path):
    """As in klue/roberta-base: 514 positions, of which 512 are usable."""
    from transformers import RobertaConfig, RobertaModel

    tokenizer = zoo.tokenizer_of(toy_base, 2)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(1)
    config = zoo.BERT | {"pad_token_id": 1, "max_position_embeddings": 514, "vocab_size": len(tokenizer)}
    RobertaModel(RobertaConfig(**config)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), device="cpu")
    assert model.max_seq_length == 512
    model.encode(LONG * 5)
    model.max_seq_length = 513
    with pytest.raises(Exception, match="out of"):
        model.encode(LONG * 5)


def write(modules, path):
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(path), create_model_card=False)
    return str(path)


@pytest.fixture(scope="module")
def bert(toy_base, tmp_path_factory):
    return zoo.write_encoder("bert", toy_base, tmp_path_factory.mktemp("bert") / "bert")


def test_modules_in_other_orders(bert, tmp_path):
    encoder, mean = Transformer(str(bert)), Pooling(16)
    for number, modules in enumerate(([encoder, mean, Dense(16, 8), Normalize()], [encoder, Normalize(), mean])):
        path = write(modules, tmp_path / str(number))
        expected = SentenceTransformer(path, device="cpu").encode("가나")
        assert abs(load_model(path, device="cpu").encode("가나") - expected).max() < 1e-6
    path = write([encoder], tmp_path / "none")
    with pytest.raises(
        InputError, match=r"its modules \(Transformer\) give no sentence embedding.*a Pooling after it"
    ):
        load_model(path, device="cpu")
    path = write([encoder, mean], tmp_path / "reversed")
    modules = json.loads((tmp_path / "reversed" / "modules.json").read_text())
    (tmp_path / "reversed" / "modules.json").write_text(json.dumps(modules[::-1]))
    with pytest.raises(InputError, match="its modules are Pooling, Transformer; the first must be a Transformer"):
        load_model(path, device="cpu")


def test_a_tokenizer_without_padding_token(toy_base, tmp_path):
    path = zoo.write_encoder("gpt2", toy_base, tmp_path)
    model = load_model(str(path), device="cpu")
    assert model.tokenizer.pad_token == "[SEP]"
    plain = zoo.plain_embeddings(path, lambda tokens: tokens.mean(0), 40)
    sentences = ["은행에 돈을 맡긴다", "비"]
    assert torch.allclose(model.encode(sentences, convert_to_tensor=True), plain(sentences), atol=1e-5)
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "eos_token"}))
    with pytest.raises(InputError, match=r"no padding token; set tokenizer\.pad_token and save it"):
        load_model(str(path), device="cpu")


def refused(directory, message):
    with pytest.raises(InputError, match=message) as error:
        load_model(str(directory), device="cpu")
    assert "\n" not in str(error.value) and str(directory) in str(error.value)


def test_what_embeds_no_sentences_is_one_line(toy_base, bert, tmp_path):
    from sentence_transformers import CrossEncoder
    from transformers import AutoModelForSequenceClassification, BartConfig, BartModel

    AutoModelForSequenceClassification.from_pretrained(bert, num_labels=1).save_pretrained(tmp_path / "plain-ce")
    shutil.copy(bert / "tokenizer.json", tmp_path / "plain-ce")
    shutil.copy(bert / "tokenizer_config.json", tmp_path / "plain-ce")
    refused(tmp_path / "plain-ce", "BertForSequenceClassification is a classifier or cross-encoder")
    CrossEncoder(str(tmp_path / "plain-ce"), device="cpu").save_pretrained(str(tmp_path / "ce"))
    refused(tmp_path / "ce", "is a classifier or cross-encoder")
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 40}
    BartModel(BartConfig(vocab_size=2000, **sizes, **heads)).save_pretrained(tmp_path / "bart")
    zoo.tokenizer_of(toy_base, 2).save_pretrained(tmp_path / "bart")
    refused(tmp_path / "bart", "BartModel has a decoder; give a model with an encoder only")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"base_model_name_or_path": "x", "peft_type": "LORA"}')
    refused(tmp_path / "lora", "an adapter without its base; merge it")


def test_static_embeddings(toy_base, tmp_path):
    path = zoo.write_static(toy_base, tmp_path)
    model = load_model(str(path), device="cpu", max_seq_length=128)
    assert (model.encode(LONG) == SentenceTransformer(str(path), device="cpu").encode(LONG)).all()
