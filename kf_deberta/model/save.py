"""Saving a model in the files of sentence-transformers 2.x, which every later version and other clients read too.

Version 6 writes module types and keys that 5.3 and older, infinity, text-embeddings-inference and llama.cpp do not
know.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers.models import WordPiece

POOLING_FLAGS = {  # mode -> field, in the order in which several are concatenated
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
TEXT_ENCODER = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
NO_LENGTH = 10**9  # a tokenizer without a length of its own says 10**30
OLD_TYPE = "sentence_transformers.models."
OF_THIS_LOAD = ("backend", "is_local", "local_files_only")  # how transformers 5 came by a tokenizer, no part of it


def format_problem(model: SentenceTransformer) -> str | None:
    """Return what the files of sentence-transformers 2.x cannot say of `model`, or None where they say it all."""
    first, *others = model
    if type(first) is not Transformer or not first.save_in_root:
        return f"module 0 is {type(first).__name__}, not a Transformer"
    if getattr(first.model, "peft_config", None):
        return "it carries an adapter; merge it into the weights first"
    config = {key: value for key, value in first.get_config_dict().items() if key != "unpad_inputs"}
    if differing := [key for key in config | TEXT_ENCODER if config.get(key) != TEXT_ENCODER.get(key)]:
        return f"its Transformer has {differing[0]} {config.get(differing[0])!r}"
    if model.truncate_dim is not None:
        return f"it truncates its embeddings to {model.truncate_dim} dimensions"
    if any(model.module_kwargs.values() if model.module_kwargs else []):
        return "its modules take arguments of their own in encode"
    for number, module in enumerate(others, start=1):
        name = f"module {number}, {type(module).__name__},"
        if type(module) not in (Pooling, Dense, Normalize):
            return f"{name} is not a Pooling, Dense or Normalize"
        if type(module) is Pooling and _modes(module) != [mode for mode in POOLING_FLAGS if mode in _modes(module)]:
            return f"{name} concatenates in the order {', '.join(_modes(module))}"
        if type(module) is not Pooling and {module.module_input_name, module.module_output_name} != {
            "sentence_embedding"
        }:
            return f"{name} works on {module.module_input_name}"
        if type(module) is Dense and module.use_residual:
            return f"{name} has a residual connection"
    return None


def save_model(model: SentenceTransformer, directory: Path, *, weights: bool = True) -> None:
    """Write `model` into `directory` without a model card, readable for everyone whom the umask lets read.

    A model that the old files cannot describe (`format_problem`) is written in the library's own format.

    Args:
        model: any SentenceTransformer.
        directory: made where it does not exist; files of the same names are replaced.
        weights: False leaves out `model.safetensors` of the encoder, for a folder that has it or holds a graph.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if format_problem(model):
        model.save_pretrained(str(directory), create_model_card=False)
        return honor_umask(directory)
    # 1. The encoder and its tokenizer
    encoder, tokenizer = model[0].model, model.tokenizer
    (encoder if weights else encoder.config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _edit(directory / "tokenizer_config.json", _old_tokenizer_config)
    _write(directory / "special_tokens_map.json", tokenizer.special_tokens_map)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and isinstance(backend.model, WordPiece):
        backend.model.save(str(directory))  # vocab.txt, which transformers 5 no longer writes
    length = model.max_seq_length
    length = None if length is None or length > NO_LENGTH else length
    _write(
        directory / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": model[0].do_lower_case}
    )

    # 2. The modules behind it
    entries = []
    for number, (name, module) in enumerate(model.named_children()):
        kind = type(module).__name__
        path = directory / f"{number}_{kind}" if number else directory
        path.mkdir(exist_ok=True)
        if type(module) is Pooling:
            modes = {field: mode in _modes(module) for mode, field in POOLING_FLAGS.items()}
            config = {"word_embedding_dimension": module.embedding_dimension, **modes}
            _write(path / "config.json", config | {"include_prompt": module.include_prompt})
        elif type(module) is Dense:
            module.save(str(path))
            module.save_torch_weights(str(path), safe_serialization=False)  # all that 2.7 reads here
            _edit(path / "config.json", _without_names)
        entries.append({"idx": number, "name": name, "path": path.name if number else "", "type": OLD_TYPE + kind})
    _write(directory / "config_sentence_transformers.json", model._get_model_config())
    _write(directory / "modules.json", entries)  # last: what reads the folder meanwhile finds a format that it knows
    honor_umask(directory)


def honor_umask(directory: Path) -> None:
    """Let everyone read the weights whom the umask lets; safetensors writes them for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for path in [*directory.glob("*.safetensors"), *directory.glob("*/*.safetensors")]:
        path.chmod(0o666 & ~umask)


def _modes(pooling: Pooling) -> list[str]:
    return [pooling.pooling_mode] if isinstance(pooling.pooling_mode, str) else list(pooling.pooling_mode)


def _old_tokenizer_config(config: dict) -> dict:
    config = {key: value for key, value in config.items() if key not in OF_THIS_LOAD}
    if config["tokenizer_class"] == "TokenizersBackend":  # the name that transformers 5 gave it
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(extra := config.pop("extra_special_tokens", None), list):  # 4.x wants a dict there
        config["additional_special_tokens"] = extra
    return config


def _without_names(config: dict) -> dict:
    return {key: value for key, value in config.items() if not key.startswith("module_")}


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _edit(path: Path, change: Callable[[dict], dict]) -> None:
    _write(path, change(json.loads(path.read_text(encoding="utf-8"))))
