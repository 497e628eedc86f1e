"""Loading a base or trained model the one way every script of this repository needs it."""

import logging
import os
import re
import socket
import urllib.parse
from pathlib import Path

import torch
import transformers
from huggingface_hub import constants, try_to_load_from_cache
from sentence_transformers import SentenceTransformer

from kf_deberta.cli import InputError, one_line
from kf_deberta.model.attention import use_fast_attention
from kf_deberta.model.cpu import use_onednn_linear

HUB_TIMEOUT_SECONDS = 5.0


def load_model(
    name_or_path: str,
    *,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    fast_attention: bool = True,
    max_seq_length: int | None = None,
    trust_remote_code: bool = False,
) -> SentenceTransformer:
    """Load a hub name or a local directory as a SentenceTransformer (a plain encoder gets mean pooling).

    Args:
        name_or_path: hub name such as `kakaobank/kf-deberta-base`, or a local directory.
        device: torch device; None takes the accelerator where there is one.
        dtype: dtype of the weights whatever the checkpoint's own; transformers 5 would keep a float16 checkpoint
            in float16, which trains badly and is 12 times slower on a CPU.
        fast_attention: switch DebertaV2 encoders to the exact fast attention of attention.py, and large
            linear layers to oneDNN on processors where that is faster; the same numbers to rounding.
        max_seq_length: tokens a sentence is truncated to; None keeps the model's own.
        trust_remote_code: run Python code from the model repository; off unless the user asks.

    Raises:
        InputError: the model is missing, unreadable, not in safetensors format, too short for `max_seq_length`, or
            neither cached nor on a reachable hub.
    """
    path = Path(name_or_path)
    if path.is_dir():
        check_model_directory(path)
    elif path.exists() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path) is None:
        raise InputError(f"{name_or_path}: not a model directory; give a directory or a hub name like owner/model")
    else:
        check_hub(name_or_path)
    # reports of unused pre-training heads and unsharded layers only alarm
    for name in ("modeling_utils", "distributed.tensor_parallel"):
        logging.getLogger(f"transformers.{name}").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()  # of the fraction of a second that reading the weights takes
    try:
        model = SentenceTransformer(
            name_or_path,
            device=device,
            model_kwargs={"dtype": dtype, "use_safetensors": True},
            trust_remote_code=trust_remote_code,
        )
        if fast_attention:
            use_fast_attention(model)
            use_onednn_linear(model)
    except (torch.OutOfMemoryError, InputError):
        raise
    except Exception as error:  # every library raises its own type for a broken model
        reason = one_line(error, 300)
        raise InputError(f"{name_or_path}: cannot be loaded as a sentence-embedding model ({reason})") from error
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise InputError(f"{name_or_path}: the weights hold NaN or infinite values; take another checkpoint")
    check_tokenizer(model, name_or_path)
    if max_seq_length is not None:
        limit = getattr(model[0].config, "max_position_embeddings", max_seq_length)
        if max_seq_length > limit:
            raise InputError(f"{name_or_path}: --max_seq_length {max_seq_length} exceeds its {limit} positions")
        model.max_seq_length = max_seq_length
    return model


def check_model_directory(path: Path) -> None:
    """Raise InputError where a local directory holds no model, or only pickled weights, which are never loaded."""
    if not (path / "config.json").is_file() and not (path / "modules.json").is_file():
        raise InputError(f"{path}: no config.json or modules.json; give a directory that save_pretrained wrote")
    if not any(path.rglob("*.safetensors")):
        raise InputError(
            f"{path}: no .safetensors weights (pickled weights are never loaded); convert the model first"
        )


def check_tokenizer(model: SentenceTransformer, name: str) -> None:
    """Raise InputError where the tokenizer is missing (transformers makes an empty one) or fits another model."""
    vocabulary, rows = model.tokenizer.get_vocab(), model[0].model.get_input_embeddings().num_embeddings
    if len(vocabulary) <= len(set(model.tokenizer.all_special_tokens)):
        raise InputError(f"{name}: no usable tokenizer; save the base's tokenizer files beside its config.json")
    if (highest := max(vocabulary.values())) >= rows:
        raise InputError(
            f"{name}: tokenizer has ids up to {highest}, embeddings {rows} rows; take the model's own tokenizer"
        )


def check_hub(name: str) -> None:
    """Raise InputError within seconds when `name` is not cached and the hub does not answer; the client retries on."""
    files = ("config.json", "modules.json")
    if any(isinstance(try_to_load_from_cache(name, file), str) for file in files):
        return
    if (reason := hub_unreachable()) is not None:
        raise InputError(
            f"{name}: not cached, and the hub cannot be reached ({reason}); "
            "give a local directory with --model_name_or_path, or run ./bin/demo.sh, which needs no hub"
        )


def hub_unreachable() -> str | None:
    """Return why the model hub cannot be reached, or None; answers within HUB_TIMEOUT_SECONDS."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if any(key.lower() in ("https_proxy", "all_proxy") for key in os.environ):
        return None  # behind a proxy only the hub client itself can tell
    endpoint = urllib.parse.urlsplit(constants.ENDPOINT)
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        socket.create_connection((endpoint.hostname, port), timeout=HUB_TIMEOUT_SECONDS).close()
    except OSError as error:
        return f"{endpoint.hostname}: {error.strerror or error}"
    return None
