"""Tiny random models of the Korean families in use, their plain embeddings, and what load_model makes of them."""

from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModel, AutoTokenizer

from kf_deberta.errors import InputError
from kf_deberta.model.load import load_model

SENTENCES = ["은행에 돈을 맡긴다", "비가 온다"]
POSITIONS = 40
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
# a large initializer_range, or all sentences of a random model are nearly one
BERT = SIZES | {"max_position_embeddings": POSITIONS, "initializer_range": 0.3, "pad_token_id": 0}
DEBERTA = BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
DEBERTA |= {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False}

# class prefix in transformers, configuration, and how many tokens the encoder takes
ENCODERS = {
    "bert": ("Bert", BERT, POSITIONS),
    "roberta": ("Roberta", BERT | {"pad_token_id": 1}, POSITIONS - 2),  # positions start after the padding token's row
    "electra": ("Electra", BERT | {"embedding_size": 8}, POSITIONS),
    "deberta": ("DebertaV2", DEBERTA, POSITIONS),
}


class RunsCode:
    """Pickled, this creates a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def write_encoder(name: str, toy_base: Path, path: Path, kind: str = "Model") -> Path:
    """Save a plain encoder of a family of ENCODERS, or its checkpoint with a head (`kind` "ForMaskedLM")."""
    prefix, options, _ = ENCODERS[name]
    tokenizer = AutoTokenizer.from_pretrained(toy_base)
    if options["pad_token_id"] == 1:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(1)
    config = getattr(transformers, f"{prefix}Config")(vocab_size=len(tokenizer), **options)
    torch.manual_seed(0)
    getattr(transformers, f"{prefix}{kind}")(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def plain_tokens(path: Path, sentences: list[str], length: int = POSITIONS) -> list[torch.Tensor]:
    """Return the token embeddings of each sentence, [tokens, hidden], by plain transformers, one at a time."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path, dtype="float32")
    encodings = [tokenizer(text, return_tensors="pt", truncation=True, max_length=length) for text in sentences]
    with torch.no_grad():
        return [encoder(encoding["input_ids"]).last_hidden_state[0] for encoding in encodings]


def plain_means(path: Path, sentences: list[str], length: int = POSITIONS) -> torch.Tensor:
    """Return mean token embeddings, [sentences, hidden]."""
    return torch.stack([tokens.mean(0) for tokens in plain_tokens(path, sentences, length)])


def embed(path: object, sentences: list[str] = SENTENCES, **options) -> torch.Tensor:
    """Return embeddings by load_model, [sentences, hidden]."""
    return load_model(str(path), device="cpu", **options).encode(sentences, convert_to_tensor=True)


def refused(path: object, message: str, **options) -> None:
    """Assert that load_model refuses a model in one line that matches `message`."""
    with pytest.raises(InputError, match=message) as error:
        load_model(str(path), **({"device": "cpu"} | options))
    assert "\n" not in str(error.value)
