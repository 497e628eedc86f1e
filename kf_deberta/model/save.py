"""Saving a model in the files of sentence-transformers 2.x, which every later version and other clients read too.

Version 6 writes module types and keys that 5.3 and older, infinity, text-embeddings-inference and llama.cpp do not
know.
"""

import json
from collections.abc import Collection
from pathlib import Path

import sentence_transformers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers.models import WordPiece

# modes in the order in which several are concatenated, and their fields
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
FIELDS = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
TEXT_ENCODER = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
NO_LENGTH = 10**9  # tokenizers without a limit report 10**30
OF_THIS_LOAD = ("backend", "is_local", "local_files_only")  # how transformers 5 loaded the tokenizer, not part of it
OF_THIS_VERSION = ("module_input_name", "module_output_name")


def format_problem(model: SentenceTransformer) -> str | None:
    """Return why the files of sentence-transformers 2.x cannot describe `model`, or None if they can."""
    first, *others = model
    if type(first) is not Transformer or not first.save_in_root:
        return f"module 0 is {type(first).__name__}, not a Transformer"
    config = first.get_config_dict() | {"unpad_inputs": None}
    if differing := [key for key in config | TEXT_ENCODER if config.get(key) != TEXT_ENCODER.get(key)]:
        return f"its Transformer has {differing[0]} {config.get(differing[0])!r}"
    if model.truncate_dim is not None:
        return f"it truncates its embeddings to {model.truncate_dim} dimensions"
    for number, module in enumerate(others, start=1):
        name = f"module {number}, {type(module).__name__},"
        if type(module) not in (Pooling, Dense, Normalize):
            return f"{name} is not a Pooling, Dense or Normalize"
        if type(module) is Pooling:
            if _modes(module) != sorted(_modes(module), key=MODES.index):
                return f"{name} concatenates in the order {', '.join(_modes(module))}"
        elif module.module_input_name != "sentence_embedding" or getattr(module, "use_residual", False):
            return f"{name} is not a plain layer on sentence_embedding"
    return None


def save_model(model: SentenceTransformer, directory: Path, *, weights: bool = True) -> None:
    """Save `model` in `directory`, without a model card, each file with the permissions that the umask allows.

    A model that the old files cannot describe (`format_problem`) is saved in the library's own format. Files of the
    same names are replaced. weights=False leaves out `model.safetensors` of the encoder, for a folder of ONNX graphs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if format_problem(model):
        model.save_pretrained(str(directory), create_model_card=False)
    else:
        _save_old_format(model, directory, weights)
    for path in directory.rglob("*.safetensors"):  # which safetensors creates with mode 0600
        path.chmod((directory / "modules.json").stat().st_mode)


def _save_old_format(model: SentenceTransformer, directory: Path, weights: bool) -> None:
    # 1. The encoder and its tokenizer
    encoder, tokenizer = model[0].model, model.tokenizer
    (encoder if weights else encoder.config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    config = _read(directory / "tokenizer_config.json", without=OF_THIS_LOAD)
    if config["tokenizer_class"] == "TokenizersBackend":  # the name that transformers 5 gave it
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(extra := config.pop("extra_special_tokens", None), list):  # transformers 4 needs a dict there
        config["additional_special_tokens"] = extra
    write_json(directory / "tokenizer_config.json", config)
    write_json(directory / "special_tokens_map.json", tokenizer.special_tokens_map)
    wordpiece = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if isinstance(wordpiece, WordPiece):
        wordpiece.save(str(directory))  # vocab.txt, which transformers 5 no longer writes
    length = model.max_seq_length if model.max_seq_length and model.max_seq_length <= NO_LENGTH else None
    config = {"max_seq_length": length, "do_lower_case": model[0].do_lower_case}
    write_json(directory / "sentence_bert_config.json", config)

    # 2. The modules after it
    entries = []
    for number, (name, module) in enumerate(model.named_children()):
        kind = type(module).__name__
        path = directory / f"{number}_{kind}" if number else directory
        path.mkdir(exist_ok=True)
        if type(module) is Pooling:
            modes = {f"pooling_mode_{f}": mode in _modes(module) for f, mode in zip(FIELDS, MODES, strict=True)}
            config = {"word_embedding_dimension": module.embedding_dimension, **modes}
            write_json(path / "config.json", config | {"include_prompt": module.include_prompt})
        elif type(module) is Dense:
            module.save(str(path))
            module.save_torch_weights(str(path), safe_serialization=False)  # the only form that 2.7 reads here
            write_json(path / "config.json", _read(path / "config.json", without=OF_THIS_VERSION))
        entry = {"idx": number, "name": name, "path": path.name if number else ""}
        entries.append(entry | {"type": f"sentence_transformers.models.{kind}"})
    versions = {"sentence_transformers": sentence_transformers, "transformers": transformers, "pytorch": torch}
    config = {"model_type": model.model_type, "__version__": {k: v.__version__ for k, v in versions.items()}}
    config |= {name: getattr(model, name) for name in ("prompts", "default_prompt_name", "similarity_fn_name")}
    write_json(directory / "config_sentence_transformers.json", config)
    write_json(directory / "modules.json", entries)


def _modes(pooling: Pooling) -> list[str]:
    return [pooling.pooling_mode] if isinstance(pooling.pooling_mode, str) else list(pooling.pooling_mode)


def _read(path: Path, without: Collection[str]) -> dict:
    return {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if key not in without}


def write_json(path: Path, content: object) -> None:
    """Write a configuration file."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
