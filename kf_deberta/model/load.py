"""Loading a base or trained model the one way every script of this repository needs it."""

import contextlib
import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, StaticEmbedding, Transformer
from transformers import modeling_utils

from kf_deberta.cli import InputError, check_model_name, is_out_of_memory, one_line, say
from kf_deberta.model.attention import use_fast_attention
from kf_deberta.model.cpu import use_onednn_linear
from kf_deberta.model.hub import find_model, has_modules, hub_error
from kf_deberta.model.onnx_encoder import describe_prompt

TRIAL = ["가", "비가 오는 날에는 집에서 책을 읽는다."]
# else transformers starts a thread that asks the hub to convert a repository without safetensors
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"


def load_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    fast_attention: bool = True,
    max_seq_length: int | None = None,
    trust_remote_code: bool = False,
    pooling: str | None = None,
    normalize: bool = False,
    prompt: str | None = None,
) -> SentenceTransformer:
    """Load a hub name or a local directory as a SentenceTransformer, checked by a trial sentence.

    Weights are read from safetensors where there are some, else from pytorch_model.bin, of which tensors only. The
    model's `revision` is the commit of the hub that it was loaded at, None for a local directory.

    Args:
        name_or_path: hub name such as `kakaobank/kf-deberta-base`, or a local directory.
        revision: commit, branch or tag of a hub model; None is main.
        device: torch device; None takes the accelerator where there is one.
        dtype: dtype of the weights whatever the checkpoint's own; transformers 5 would keep a float16 checkpoint
            in float16, which trains badly and is 12 times slower on a CPU.
        fast_attention: switch DebertaV2 encoders to the exact fast attention of attention.py, and large
            linear layers to oneDNN on processors where that is faster; the same numbers to rounding.
        max_seq_length: tokens a sentence is truncated to; None keeps the model's own, as far as it has positions.
        trust_remote_code: run Python code from the model repository; off unless the user asks.
        pooling: "mean" or "cls", for an encoder without modules of its own; None takes the library's choice, the
            mean (the last token of a causal language model).
        normalize: scale embeddings to length 1 by a Normalize module at the end, where there is none.
        prompt: text put before every sentence; None keeps the model's default prompt, "" takes none.

    Raises:
        InputError: the model is missing, unreadable, incomplete, not one that embeds sentences, has other pooling,
            cannot take `max_seq_length`, or is neither cached nor on a reachable hub.
    """
    path, commit, offline = Path(name_or_path), None, False
    if path.is_dir() and revision is not None:
        raise InputError(f"--revision {revision}: {name_or_path} is a local directory; leave the flag out")
    if path.is_dir():
        check_model_directory(path)
    else:
        check_model_name(name_or_path)
    say(f"loading {name_or_path}")
    if not path.is_dir():
        commit, offline = find_model(name_or_path, revision)
    transformers.utils.logging.disable_progress_bar()  # of the fraction of a second that reading the weights takes
    try:
        with _load_reports() as reports:
            model = SentenceTransformer(
                name_or_path,
                revision=commit,
                local_files_only=offline,
                device=device,
                model_kwargs={"dtype": dtype},
                trust_remote_code=trust_remote_code,
            )
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{name_or_path}: its pickled weights hold more than tensors, which runs code when it is read: refused; "
            "take a checkpoint in safetensors format"
        ) from error
    except Exception as error:  # every library raises its own type for a broken model
        if is_out_of_memory(error):
            raise
        if not trust_remote_code and "trust_remote_code" in str(error):
            needed = "needs Python code of its own repository; read it, then allow it with --trust_remote_code"
            raise InputError(f"{name_or_path}: {needed}") from error
        reason = f"{name_or_path}: cannot be loaded as a sentence-embedding model ({one_line(error, 300)})"
        raise InputError(hub_error(name_or_path, error) or reason) from error
    model.revision = commit and commit.resolved
    _check_kind(model, name_or_path)
    check_tokenizer(model, name_or_path)
    _set_modules(model, name_or_path, commit, pooling, normalize)
    if prompt is not None:
        model.prompts["prompt"] = prompt
        model.default_prompt_name = "prompt" if prompt else None
    _set_length(model, name_or_path, max_seq_length)
    _check_weights(model, reports, name_or_path)
    if fast_attention:
        use_fast_attention(model)
        use_onednn_linear(model)
    return model


def pooling_of(model: SentenceTransformer) -> str:
    """How token embeddings become one, such as `mean`, `cls` or `mean+max`; `no` without a Pooling module."""
    modes = [module.pooling_mode for module in model if isinstance(module, Pooling)]
    return "+".join([modes[0]] if isinstance(modes[0], str) else modes[0]) if modes else "no"


def describe(model: SentenceTransformer) -> str:
    """What of a model changes its embeddings and is not seen in its name: `mean pooling, prompt 'query: '`."""
    return f"{pooling_of(model)} pooling{describe_prompt(default_prompt(model))}"


def default_prompt(model: SentenceTransformer) -> str:
    """The text that `model.encode` puts before every sentence, often empty."""
    return model.prompts.get(model.default_prompt_name or "") or ""


def check_model_directory(path: Path) -> None:
    """Raise InputError where a local directory holds no model, or weights in no format that is read."""
    if (path / "adapter_config.json").is_file():
        raise InputError(f"{path}: an adapter without its base; merge it (PeftModel.merge_and_unload) and save that")
    if not (path / "config.json").is_file() and not (path / "modules.json").is_file():
        raise InputError(f"{path}: no config.json or modules.json; give a directory that save_pretrained wrote")
    if not any(path.rglob("*.safetensors")) and not any(path.rglob("pytorch_model*.bin")):
        raise InputError(f"{path}: no .safetensors weights and no pytorch_model.bin; convert the model first")


def check_tokenizer(model: SentenceTransformer, name: str) -> None:
    """Raise InputError where the tokenizer is missing (transformers makes an empty one) or fits another model."""
    tokenizer, first = model.tokenizer, model[0]
    table = first.embedding if isinstance(first, StaticEmbedding) else first.auto_model.get_input_embeddings()
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) <= len(set(getattr(tokenizer, "all_special_tokens", []))):
        raise InputError(f"{name}: no usable tokenizer; save the base's tokenizer files beside its config.json")
    if (highest := max(vocabulary.values())) >= table.num_embeddings:
        raise InputError(
            f"{name}: tokenizer has ids up to {highest}, embeddings {table.num_embeddings} rows; "
            "take the model's own tokenizer"
        )
    if isinstance(first, Transformer) and tokenizer.pad_token is None:  # GPT-2 type: the mask hides what it is
        if tokenizer.eos_token is None:
            raise InputError(f"{name}: its tokenizer has no padding token; set tokenizer.pad_token and save it")
        tokenizer.pad_token = tokenizer.eos_token


def _check_kind(model: SentenceTransformer, name: str) -> None:
    """Raise InputError for models that embed no sentences, though the library loads them."""
    first = model[0]
    if not isinstance(first, Transformer | StaticEmbedding):
        kinds = ", ".join(type(module).__name__ for module in model)
        raise InputError(f"{name}: its modules are {kinds}; the first must be a Transformer or a StaticEmbedding")
    if isinstance(first, StaticEmbedding):
        return
    architecture = (first.config.architectures or [""])[0]
    if architecture.endswith("ForSequenceClassification"):
        raise InputError(
            f"{name}: {architecture} is a classifier or cross-encoder, which has no sentence embeddings; to start "
            "from its encoder, save that with AutoModel.from_pretrained(...).save_pretrained(...)"
        )
    if first.config.is_encoder_decoder and hasattr(first.auto_model, "decoder"):
        raise InputError(f"{name}: {type(first.auto_model).__name__} has a decoder; give a model with an encoder only")


def _set_modules(
    model: SentenceTransformer, name: str, commit: str | None, pooling: str | None, normalize: bool
) -> None:
    """Set the pooling of a plain encoder, and put a Normalize module behind the others."""
    if pooling is not None and pooling != pooling_of(model):
        if has_modules(name, commit):
            raise InputError(f"{name}: its own pooling is {pooling_of(model)}; leave --pooling {pooling} out")
        model[1] = Pooling(model[1].embedding_dimension, pooling)
    if normalize and not isinstance(model[-1], Normalize):
        model.append(Normalize())


def _set_length(model: SentenceTransformer, name: str, length: int | None) -> None:
    """Truncate to `length` tokens, or to the positions the encoder has where the model asks for more."""
    if isinstance(model[0], StaticEmbedding):  # takes any length
        return
    least, limit = model.tokenizer.num_special_tokens_to_add() + 1, usable_positions(model)
    if length is None:
        length = model.max_seq_length or limit
        if length is not None and (type(length) is not int or length < least):
            raise InputError(f"{name}: max_seq_length {length!r} in its files; correct it to {least} or more")
        model.max_seq_length = min(length, limit) if limit else length
        return
    if limit and length > limit:
        raise InputError(f"{name}: --max_seq_length {length} exceeds its {limit} positions")
    if length < least:
        raise InputError(
            f"{name}: --max_seq_length {length} leaves no room for a word beside {least - 1} special tokens; "
            f"give {least} or more"
        )
    model.max_seq_length = length


def usable_positions(model: SentenceTransformer) -> int | None:
    """Tokens that the encoder takes, special ones included; None where nothing limits them."""
    limit = getattr(model[0].config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:  # XLNet has -1
        return None
    for name, module in model[0].named_modules():
        # the RoBERTa family counts from behind the row of its padding token
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return min(limit, module.num_embeddings) - module.padding_idx - 1
    return limit


def _check_weights(model: SentenceTransformer, reports: list[tuple], name: str) -> None:
    """Raise InputError where weights are missing, do not fit, are not finite, or a trial sentence does not run.

    A weight that the embedding does not depend on, such as the pooler of BERT, may be missing.
    """
    for _, report in reports:
        if report.mismatched_keys:
            key, found, wanted = sorted(report.mismatched_keys)[0]
            raise InputError(
                f"{name}: {len(report.mismatched_keys)} weights have another shape than config.json says, the first "
                f"{key}: {list(found)} instead of {list(wanted)}; take the configuration that belongs to the weights"
            )
        if report.error_msgs or report.conversion_errors:
            reason = one_line(Exception(*report.error_msgs, *report.conversion_errors.values()))
            raise InputError(f"{name}: its weights cannot be read ({reason})")
    if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
        raise InputError(f"{name}: the weights hold NaN or infinite values; take another checkpoint")
    missing = {key: encoder for encoder, report in reports for key in sorted(report.missing_keys)}
    parameters = {
        key: parameter
        for encoder in missing.values()
        for key, parameter in encoder.named_parameters(remove_duplicate=False)
        if key in missing
    }
    try:
        model.eval()
        features = model.preprocess(TRIAL, prompt=default_prompt(model))
        features = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in features.items()}
        with torch.set_grad_enabled(bool(parameters)):
            total = model(features)["sentence_embedding"].sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True) if parameters else ()
    except Exception as error:  # whatever modules that do not fit each other raise
        if is_out_of_memory(error):
            raise
        kinds = ", ".join(type(module).__name__ for module in model)
        raise InputError(
            f"{name}: its modules ({kinds}) give no sentence embedding ({type(error).__name__}: {one_line(error)}); "
            "needed are a Transformer and a Pooling after it, or a StaticEmbedding"
        ) from error
    for key, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            del missing[key]
    if missing:
        size, shown = sum(len(encoder.state_dict()) for encoder, _ in reports), ", ".join(list(missing)[:3])
        raise InputError(
            f"{name}: {len(missing)} of the encoder's {size} weights are not in its file and would be random: {shown}"
            f"{', ...' if len(missing) > 3 else ''}; take a complete checkpoint, its names without another prefix"
        )


@contextlib.contextmanager
def _load_reports() -> Iterator[list[tuple]]:
    """Collect (encoder, load report) of every checkpoint that transformers reads, in place of its printed table."""
    reports: list[tuple] = []
    logging.getLogger("transformers.distributed.tensor_parallel").setLevel(logging.ERROR)  # of unsharded layers
    original = modeling_utils.log_state_dict_report
    modeling_utils.log_state_dict_report = lambda model, loading_info, **_: reports.append((model, loading_info))
    try:
        yield reports
    finally:
        modeling_utils.log_state_dict_report = original
