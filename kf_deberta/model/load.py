"""Loading a base or trained model, from a directory or the model hub, the one way every script needs it."""

import contextlib
import json
import os
import pickle
import random
import re
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding

from kf_deberta.errors import InputError, is_out_of_memory, one_line, say
from kf_deberta.model.attention import use_fast_attention
from kf_deberta.model.cpu import use_onednn_linear

HUB_SECONDS = 5  # the longest wait for the hub before the cache is used
HUB_FILES = ["*.json", "*.txt", "*.model", "model*.safetensors", "[0-9]*_*/*"]  # of an encoder and its modules
HUB_SETTINGS = "the network, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN, SSL_CERT_FILE, ALL_PROXY and HTTPS_PROXY"
NOT_DENSE = "SequenceClassification|cross.?encoder|sparse|multi.?vector|ColBERT|pylate"


def load_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    device: str | None = None,
    fast_attention: bool = True,
    max_seq_length: int | None = None,
    pooling: str | None = None,
    normalize: bool = False,
    prompt: str | None = None,
) -> SentenceTransformer:
    """Load a hub name or a local directory as a float32 SentenceTransformer, checked by trial sentences.

    Weights are read from safetensors if there are any, else from pytorch_model.bin (tensors only). No code of a model
    is run. The model's `revision` is the commit on the hub, None for a local directory. InputError if the model or the
    device cannot be used, or the model is neither cached nor on a reachable hub.

    Args:
        name_or_path: hub name, of which `revision` is a commit, branch or tag, or a local directory.
        fast_attention: use attention.py and cpu.py: the same numbers to rounding.
        max_seq_length: maximum tokens per sentence; None is the model's own, limited by its positions.
        pooling: "mean" or "cls", for an encoder without modules.json; None is the mean.
        normalize: append a Normalize module (embeddings of length 1) unless the model ends with one.
        prompt: text put before every sentence; None keeps the model's default prompt, "" is none.
    """
    folder = Path(name_or_path)
    local = folder.is_dir()
    if local and revision is not None:
        raise InputError(f"--revision {revision}: {name_or_path} is a local directory; omit the flag")
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:
        raise InputError(f"--device {device}: cannot be used here ({one_line(error)}); omit it") from error
    say(f"loading {name_or_path}")
    transformers.logging.disable_progress_bar()  # reading the weights takes a fraction of a second
    transformers.logging.set_verbosity_error()  # no table of missing weights: they are refused below
    try:
        if not local:
            folder = _download(name_or_path, revision)
        _check_files(folder)
        # float32 whatever the file has: float16 would train badly; weights that do not fit are refused below
        options = {"dtype": torch.float32, "ignore_mismatched_sizes": True}
        model = SentenceTransformer(str(folder), device=device, local_files_only=True, model_kwargs=options)
        model.revision = None if local else folder.name
        if not isinstance(model[0], StaticEmbedding):
            _check_encoder(model, folder)
            _set_length(model, max_seq_length)
        if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
            raise InputError("the weights contain NaN or infinite values; use another checkpoint")
        if pooling is not None and pooling != pooling_of(model):
            if (folder / "modules.json").exists():
                raise InputError(f"its own pooling is {pooling_of(model)}; omit --pooling {pooling}")
            model[1] = Pooling(model[1].embedding_dimension, pooling)
        if normalize and not isinstance(model[-1], Normalize):
            model.append(Normalize())
        if prompt is not None:
            model.prompts["prompt"] = prompt
            model.default_prompt_name = "prompt" if prompt else None
        model.encode(["가", "비가 오는 날"], show_progress_bar=False)  # fails if the modules do not fit each other
    except Exception as error:  # every library raises its own type for a broken model
        if is_out_of_memory(error):
            raise
        raise InputError(f"{name_or_path or folder}: {_problem(error, folder)}") from error
    if fast_attention:
        use_fast_attention(model)
        use_onednn_linear(model)
    return model


def pooling_of(model: SentenceTransformer) -> str:
    """Return how token embeddings become one, such as `mean`, `cls` or `mean+max`; `no` without a Pooling module."""
    modes = [module.pooling_mode for module in model if isinstance(module, Pooling)]
    return "+".join([modes[0]] if isinstance(modes[0], str) else modes[0]) if modes else "no"


def plain_pooling(model: SentenceTransformer) -> str | None:
    """Return `mean` or `cls` if nothing but that, and perhaps Normalize, follows the encoder, else None."""
    plain = [type(module) for module in model][1:] in ([Pooling], [Pooling, Normalize])
    return pooling_of(model) if plain and pooling_of(model) in ("mean", "cls") else None


def describe(model: SentenceTransformer) -> str:
    """Return the settings that change embeddings and are not in the model's name: `mean pooling, prompt 'query: '`."""
    prompt = model.prompts.get(model.default_prompt_name)
    return f"{pooling_of(model)} pooling" + (f", prompt {prompt!r}" if prompt else "")


def check_no_prompt(model: SentenceTransformer, name: str) -> None:
    """Raise InputError if the model puts a prompt before every sentence."""
    if prompt := model.prompts.get(model.default_prompt_name):
        remedy = "set default_prompt_name to null in its config_sentence_transformers.json"
        raise InputError(f"{name}: it puts {prompt!r} before every sentence, which is not supported here; {remedy}")


def check_vocabulary(model: SentenceTransformer, sentences: Sequence[str], name: str) -> None:
    """Print the share of unknown tokens in some of the sentences if it is above 3%; InputError above half."""
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    if unknown is None or not len(sentences):  # static embeddings, or a vocabulary of bytes
        return
    rows = random.Random(0).sample(range(len(sentences)), min(500, len(sentences)))
    encoded = model.tokenizer([sentences[row] for row in rows], add_special_tokens=False)["input_ids"]
    tokens = [token for ids in encoded for token in ids]
    share = tokens.count(unknown) / max(1, len(tokens))
    found = f"{name}: {share:.0%} of the tokens of these texts are unknown to its tokenizer"
    if share > 0.5:
        raise InputError(f"{found}; use a model for this language, with its own tokenizer files")
    if share > 0.03:
        say(f"{found}, so different words look alike to it")


def _download(name: str, revision: str | None) -> Path:
    """Return the cached directory of a hub model, named by its commit, after downloading what is new."""

    def fetch(offline: bool) -> Path:
        options = {"cache_dir": os.environ.get("SENTENCE_TRANSFORMERS_HOME"), "local_files_only": offline}
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, **options))
        if not any(folder.rglob("*.safetensors")):
            snapshot_download(name, revision=folder.name, allow_patterns="pytorch_model*.bin*", **options)
        return folder

    try:
        HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS)  # snapshot_download has no timeout
        return fetch(offline=False)
    except Exception as error:  # another type for each setting of the hub's client that is wrong
        with contextlib.suppress(Exception):
            return fetch(offline=True)
        place = f"{constants.ENDPOINT}/{name}"
        problem = f"not cached, and cannot be downloaded ({one_line(error, 150)}); check {HUB_SETTINGS}"
        if isinstance(error, GatedRepoError):
            problem = f"gated; accept its terms at {place} and log in with hf auth login"
        elif isinstance(error, RepositoryNotFoundError | HFValidationError):
            problem = f"no such directory, and no such model at {place}; check the name (or hf auth login)"
        elif isinstance(error, RevisionNotFoundError):
            problem = f"no revision {revision}; give a branch, a tag or the 40 digits of a commit"
        raise InputError(problem) from error


def _problem(error: Exception, folder: Path) -> str:
    """Return in one line why a model could not be loaded."""
    if isinstance(error, InputError):
        return str(error)
    for file in filter(Path.is_file, folder.rglob("*")):
        if file.stat().st_size < 200 and b"git-lfs" in file.read_bytes():
            return f"{file.name} is a pointer of git-lfs, not the file itself; run git lfs pull"
    if isinstance(error, pickle.UnpicklingError):
        return "its pickled weights contain more than tensors, which would run code; use safetensors"
    return f"cannot be loaded as a sentence-embedding model ({type(error).__name__}: {one_line(error)})"


def _check_files(folder: Path) -> None:
    """Raise InputError if a model needs its own code, or is of a kind that would only look like an encoder."""

    def read(file: str) -> dict | list:
        return json.loads((folder / file).read_text(encoding="utf-8")) if (folder / file).is_file() else {}

    config = read("config.json")
    if "auto_map" in config | read("tokenizer_config.json"):
        raise InputError("auto_map in its files names Python code, which is never run here; delete auto_map in a copy")
    kinds = [read("config_sentence_transformers.json").get("model_type", ""), *(config.get("architectures") or [])]
    for kind in [*kinds, *(module["type"] for module in read("modules.json"))]:
        if re.search(NOT_DENSE, kind, re.IGNORECASE):
            raise InputError(f"{kind} gives no sentence embeddings; save its encoder with AutoModel and give that")


def _check_encoder(model: SentenceTransformer, folder: Path) -> None:
    """Raise InputError for weights that are missing or misshapen, or another model's tokenizer."""
    encoder, tokenizer = model[0].auto_model, model.tokenizer
    # loaded again without values, for the report that SentenceTransformer does not pass on
    options = {"device_map": "meta", "ignore_mismatched_sizes": True, "output_loading_info": True}
    place = folder if (folder / "config.json").is_file() else folder / "0_Transformer"
    _, report = type(encoder).from_pretrained(place, **options)
    for key, found, expected in sorted(report["mismatched_keys"]):
        raise InputError(f"{key} has shape {[*found]}, not {[*expected]}; use the config.json of these weights")
    # no embedding uses the pooler
    if missing := [key for key in sorted(report["missing_keys"]) if not key.startswith("pooler.")]:
        part = f"{len(missing)} of {len(encoder.state_dict())} weights of the encoder ({', '.join(missing[:3])} ...)"
        raise InputError(f"{part} are not in its file and would be random; use a complete checkpoint")
    vocabulary, rows = tokenizer.get_vocab(), encoder.get_input_embeddings().num_embeddings
    if len(vocabulary) <= len(set(tokenizer.all_special_tokens)):  # transformers makes one if there is none
        raise InputError("no usable tokenizer; save the base's tokenizer files beside its config.json")
    if (last := max(vocabulary.values())) >= rows:
        raise InputError(f"its tokenizer has ids up to {last}, its embeddings {rows} rows; use its own tokenizer")


def _set_length(model: SentenceTransformer, length: int | None) -> None:
    """Truncate to `length` tokens; None is the model's own length as far as the encoder has positions."""
    limit = getattr(model[0].config, "max_position_embeddings", None)
    for name, module in model[0].named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limit = module.num_embeddings - module.padding_idx - 1  # RoBERTa's start after padding_idx
    least = model.tokenizer.num_special_tokens_to_add() + 1
    source = "--max_seq_length" if length else "max_seq_length in its files:"
    length = length or min(filter(None, (model.max_seq_length, limit)), default=None)
    if length is not None and not least <= length <= (limit or length):
        raise InputError(f"{source} {length}; it takes {least} to {limit} tokens, special ones included")
    model.max_seq_length = length
