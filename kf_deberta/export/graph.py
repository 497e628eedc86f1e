"""Writing a sentence-embedding model as one ONNX graph, pooling included, in float32 or float16.

Every graph takes `input_ids` and `attention_mask`, int64 [batch, sequence], and gives float32 `last_hidden_state`
[batch, sequence, hidden] and `sentence_embedding` [batch, dimensions]: what `SentenceTransformer.encode` returns.
"""

import copy
import json
import logging
import warnings
from pathlib import Path

import onnx_ir
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers import Tokenizer
from torch import Tensor, nn

from kf_deberta.errors import InputError, is_out_of_memory, one_line, writing
from kf_deberta.model.onnx_encoder import INPUTS, LENGTH_KEY, TOKENIZER_KEY, tokenizer_fingerprint
from kf_deberta.model.save import NO_LENGTH, save_model, write_json

OUTPUTS = ("last_hidden_state", "sentence_embedding")
# opset -> version of the file format: the oldest that allows it, which the most runtimes read
OPSETS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10}
# a protobuf file ends at 2 GiB; below that the graph and its weights are one file
MAX_FILE_BYTES = 1_900_000_000


class PooledEncoder(nn.Module):
    """The modules of a SentenceTransformer as one on two tensors. A float16 encoder is pooled in float32."""

    def __init__(self, model: SentenceTransformer, dtype: torch.dtype) -> None:
        super().__init__()
        transformer, *others = model
        encoder = transformer.auto_model
        self.encoder = encoder if encoder.dtype == dtype else copy.deepcopy(encoder).to(dtype)
        self.others = nn.ModuleList(others)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return token embeddings [batch, sequence, hidden] and sentence embeddings [batch, dimensions], float32."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        features = {"token_embeddings": hidden, "attention_mask": attention_mask}
        for module in self.others:
            features = module(features)
        return hidden, features["sentence_embedding"]


def check_modules(model: SentenceTransformer, name: str) -> None:
    """Raise InputError if a model is more than Transformer, Pooling, Dense and Normalize, or has no tokenizer.json."""
    first, *others = model
    kinds = ", ".join(type(module).__name__ for module in model)
    poolings = [module for module in others if isinstance(module, Pooling)]
    if type(first) is not Transformer or not poolings or {*map(type, others)} - {Pooling, Dense, Normalize}:
        problem = f"its modules are {kinds}; a Transformer, a Pooling, Dense and Normalize can be exported"
    elif model.truncate_dim is not None:
        problem = f"its embeddings are truncated to {model.truncate_dim} dimensions; set truncate_dim to null"
    elif not isinstance(getattr(first.tokenizer, "backend_tokenizer", None), Tokenizer):
        problem = f"its {type(first.tokenizer).__name__} has no tokenizer.json; convert it first"
    elif first.tokenizer.padding_side != "right":
        problem = "its tokenizer pads on the left; only encoders that pad on the right can be exported"
    elif model.max_seq_length is None or model.max_seq_length > NO_LENGTH:
        problem = "neither encoder nor tokenizer limits the tokens of a sentence; give --max_seq_length"
    else:
        return
    raise InputError(f"{name}: {problem}")


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

    Weights of more than `max_file_bytes` are saved in `<name>.onnx_data` in the same directory. InputError if the
    exporter does not know an operation of this model, or the file cannot be written.
    """
    wrapper = PooledEncoder(model, dtype).eval()
    input_ids = torch.full((3, 11), model.tokenizer.pad_token_id or 0, device=model.device)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 5:] = 0
    axes = {0: "batch", 1: "sequence"}
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):  # remarks of the exporter on itself
            logging.disable(logging.WARNING)
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
        raise InputError(f"the model cannot be exported at opset {opset} ({one_line(error, 300)})") from error
    finally:
        logging.disable(logging.NOTSET)
    program.model.ir_version = OPSETS[opset]
    # every node has the stack trace of this machine's Python files
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(metadata or {})
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    with writing(path):
        onnx_ir.save(program.model, path, external_data=f"{path.name}_data" if size > max_file_bytes else None)


def graph_files(path: Path) -> list[Path]:
    """Return the files of the graph at `path`: itself and, if there is any, its external data."""
    return [file for file in (path, path.with_name(f"{path.name}_data")) if file.exists()]


def graph_bytes(path: Path) -> int:
    """Return the size of a graph with its external data."""
    return sum(file.stat().st_size for file in graph_files(path))


def save_companions(model: SentenceTransformer, directory: Path) -> dict[str, str]:
    """Write what clients need beside a graph of `model`: configuration, modules and tokenizer files.

    `tokenizer.json` truncates as the model does and pads a batch, and `tokenizer_config.json` has the same length.
    Returns the metadata that ties a graph to this tokenizer, for `export_model`.
    """
    save_model(model, directory, weights=False)
    tokenizer, length = model.tokenizer, model.max_seq_length
    path = directory / "tokenizer.json"
    fast = Tokenizer.from_file(str(path))
    fast.enable_truncation(length, direction=tokenizer.truncation_side)
    fast.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    fast.save(str(path))
    path = directory / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"model_max_length": length})
    return {TOKENIZER_KEY: tokenizer_fingerprint(fast), LENGTH_KEY: str(length)}
