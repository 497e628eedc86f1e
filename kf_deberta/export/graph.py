"""Writing a sentence-embedding model as one ONNX graph, pooling included, in float32 or float16.

Every graph takes `input_ids` and `attention_mask`, int64 [batch, sequence], and gives float32 `last_hidden_state`
[batch, sequence, hidden] and `sentence_embedding` [batch, dimensions]: what `SentenceTransformer.encode` returns.
"""

import contextlib
import copy
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers import Tokenizer
from torch import Tensor, nn

from kf_deberta.cli import InputError, is_out_of_memory, one_line
from kf_deberta.model.onnx_encoder import LENGTH_KEY, TOKENIZER_KEY, tokenizer_fingerprint
from kf_deberta.model.save import save_model

INPUTS = ("input_ids", "attention_mask")
OUTPUTS = ("last_hidden_state", "sentence_embedding")
# opset -> version of the file format: the oldest that allows it, which the most runtimes read
OPSETS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10}
MAX_TOKENS = 100_000  # a tokenizer without a length of its own says 10**30
# a protobuf file ends at 2 GiB; below that the graph and its weights are one file
MAX_FILE_BYTES = 1_900_000_000


class ExportError(Exception):
    """A graph could not be written, or does not compute what the model computes."""


class PooledEncoder(nn.Module):
    """The modules of a SentenceTransformer as one module on two tensors.

    A float16 encoder is pooled in float32: a sum over 512 tokens would lose digits.
    """

    def __init__(self, model: SentenceTransformer, dtype: torch.dtype) -> None:
        """Take the encoder in `dtype` (a copy, where that is not its own) and the modules behind it."""
        super().__init__()
        transformer, *others = model
        encoder = transformer.auto_model
        self.encoder = encoder if encoder.dtype == dtype else copy.deepcopy(encoder).to(dtype)
        self.others = nn.ModuleList(others)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Token embeddings [batch, sequence, hidden] and sentence embeddings [batch, dimensions], both float32."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        features = {"token_embeddings": hidden, "attention_mask": attention_mask}
        for module in self.others:
            features = module(features)
        return hidden, features["sentence_embedding"]


def check_modules(model: SentenceTransformer, name: str) -> None:
    """Raise InputError, naming the module, where a model is more than Transformer, Pooling, Dense and Normalize."""
    first, *others = model
    if type(first) is not Transformer or not any(isinstance(module, Pooling) for module in others):
        kinds = ", ".join(type(module).__name__ for module in model)
        raise InputError(f"{name}: its modules are {kinds}; only a Transformer followed by a Pooling can be exported")
    if model.max_seq_length is None or model.max_seq_length > MAX_TOKENS:
        raise InputError(
            f"{name}: neither encoder nor tokenizer limits the tokens of a sentence; give --max_seq_length"
        )
    if model.truncate_dim is not None:
        size = model.truncate_dim
        raise InputError(f"{name} truncates its embeddings to {size} dimensions, which the exporter does not support")
    for number, module in enumerate(others, start=1):
        if type(module) not in (Pooling, Dense, Normalize):
            raise InputError(
                f"{name}: module {number} is {type(module).__name__}, which cannot be exported; "
                "only Transformer, Pooling, Dense and Normalize can"
            )
        if isinstance(module, Pooling) and not module.include_prompt:
            raise InputError(f"{name}: its Pooling leaves the prompt out (include_prompt false): cannot be exported")
    if not isinstance(getattr(first.tokenizer, "backend_tokenizer", None), Tokenizer):
        raise InputError(f"{name}: its {type(first.tokenizer).__name__} has no tokenizer.json; convert it first")
    if first.tokenizer.padding_side != "right":
        raise InputError(
            f"{name}: its tokenizer pads on the left; only encoders that pad on the right can be exported"
        )


def export_model(
    model: SentenceTransformer,
    path: Path,
    *,
    opset: int = min(OPSETS),
    dtype: torch.dtype = torch.float32,
    metadata: dict[str, str] | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write `model` as a graph with dynamic batch and sequence axes.

    Weights of more than `max_file_bytes` go to `<name>.onnx_data` in the same directory.

    Raises:
        ExportError: the exporter does not know an operation of this model.
    """
    wrapper = PooledEncoder(model, dtype).eval()
    input_ids = torch.full((3, 11), model.tokenizer.pad_token_id or 0, device=model.device)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 5:] = 0
    axes = {0: "batch", 1: "sequence"}
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                wrapper,
                (input_ids, attention_mask),
                input_names=INPUTS,
                output_names=OUTPUTS,
                dynamic_shapes={name: axes for name in INPUTS},
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises a type of its own for each of its stages
        if is_out_of_memory(error):
            raise
        reason = one_line(error, 300)
        raise ExportError(f"the model cannot be exported at opset {opset} ({reason})") from error
    program.model.ir_version = OPSETS[opset]
    # every node carries the stack trace of this machine's Python files
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(metadata or {})
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    onnx_ir.save(program.model, path, external_data=f"{path.name}_data" if size > max_file_bytes else None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on itself (no torchvision, unfolded constants) from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def copy_graph(source: Path, target: Path) -> None:
    """Copy a graph; its external data, where it has any, is copied under the name that belongs to the new one."""
    _, *data = graph_files(source)
    if not data:
        shutil.copyfile(source, target)
        return
    graph = onnx.load(source, load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = f"{target.name}_data"
    onnx.save(graph, target)
    shutil.copyfile(data[0], target.with_name(f"{target.name}_data"))


def graph_files(path: Path) -> list[Path]:
    """Return the files of the graph at `path`: itself and, where there is one, its external data."""
    return [file for file in (path, path.with_name(f"{path.name}_data")) if file.exists()]


def save_companions(model: SentenceTransformer, directory: Path) -> dict[str, str]:
    """Write what clients want beside a graph of `model`: configuration, modules and tokenizer files.

    `tokenizer.json` truncates to the model's max_seq_length and pads a batch, `tokenizer_config.json` says the same.

    Returns:
        the metadata that ties a graph to this tokenizer, for `export_model`.
    """
    save_model(model, directory, weights=False)
    tokenizer = model.tokenizer
    path = directory / "tokenizer.json"
    fast = Tokenizer.from_file(str(path))
    fast.enable_truncation(model.max_seq_length)
    pad = {"pad_id": tokenizer.pad_token_id, "pad_token": tokenizer.pad_token}
    fast.enable_padding(pad_type_id=tokenizer.pad_token_type_id, **pad)
    fast.save(str(path))
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"model_max_length": model.max_seq_length}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return {TOKENIZER_KEY: tokenizer_fingerprint(fast), LENGTH_KEY: str(model.max_seq_length)}
