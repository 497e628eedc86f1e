"""Writing a sentence-embedding model as one ONNX graph, pooling included, in float32, float16 or int8.

Every graph takes `input_ids` and `attention_mask`, int64 [batch, sequence], and gives float32 `last_hidden_state`
[batch, sequence, hidden] and `sentence_embedding` [batch, dimensions]: what `SentenceTransformer.encode` returns.
"""

import contextlib
import copy
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers import Tokenizer
from torch import Tensor, nn

from kf_deberta.cli import InputError, one_line

INPUTS = ("input_ids", "attention_mask")
OUTPUTS = ("last_hidden_state", "sentence_embedding")
OPSETS = (18, 19, 20, 21, 22)
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
    if model.truncate_dim is not None:
        raise InputError(f"{name}: it truncates its embeddings to {model.truncate_dim} dimensions: not exported")
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
    opset: int = OPSETS[0],
    dtype: torch.dtype = torch.float32,
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
        reason = one_line(error, 300)
        raise ExportError(f"the model cannot be exported at opset {opset} ({reason})") from error
    # every node carries the stack trace of this machine's Python files
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    onnx_ir.save(program.model, path, external_data=f"{path.name}_data" if size > max_file_bytes else None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the remarks of exporter and quantiser on themselves (no torchvision, unfolded constants) from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def quantize_int8(source: Path, path: Path, *, reduce_range: bool, max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """Write the float32 graph `source` with int8 weights; activations are quantised at run time (dynamic).

    Weights of matrix products: one scale per output channel. Word embeddings: one scale per row, which costs nothing
    measurable, where one scale for the table costs a share of what all matrix products cost.

    `reduce_range` keeps weights to 7 bits: without VNNI a CPU adds two products of 8 bits in 16, which overflows.
    """
    folded = path.with_name(f"{path.stem}.folded.onnx")
    try:
        # constants first: a weight that is used twice is not seen as one, and position terms would lose digits
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        options.log_severity_level = 3  # errors only
        external = sum(file.stat().st_size for file in source.parent.glob(f"{source.name}*")) > max_file_bytes
        if external:
            key = "session.optimized_model_external_initializers_file_name"
            options.add_session_config_entry(key, f"{folded.name}_data")
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(folded)
        del graph.graph.value_info[:]  # shapes of before the folding; the quantiser infers them again
        quantize_word_embeddings(graph.graph)
        with _quiet():
            quantize_dynamic(
                graph,
                folded,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                reduce_range=reduce_range,
                weight_type=QuantType.QInt8,
                use_external_data_format=external,
                extra_options={"MatMulConstBOnly": True},
            )
        graph = onnx.load(folded)
        used = {node.domain for node in graph.graph.node}
        kept = [entry for entry in graph.opset_import if entry.domain in used]
        del graph.opset_import[:]
        graph.opset_import.extend(kept)
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
        onnx.save_model(graph, path, save_as_external_data=external, location=f"{path.name}_data", size_threshold=1024)
    finally:
        for file in path.parent.glob(f"{folded.name}*"):
            file.unlink()


def quantize_word_embeddings(graph: onnx.GraphProto) -> None:
    """Turn the float table that `input_ids` indexes into int8 rows with a float32 scale each, in place."""
    tables = {tensor.name: tensor for tensor in graph.initializer}
    for index, node in enumerate(graph.node):
        if node.op_type != "Gather" or node.input[1] != "input_ids" or node.input[0] not in tables:
            continue
        name, output = node.input[0], node.output[0]
        table = onnx.numpy_helper.to_array(tables[name])
        if sum(name in other.input for other in graph.node) > 1:
            return
        scale = np.abs(table).max(axis=1, keepdims=True) / 127
        scale[scale == 0] = 1
        rows = np.rint(table / scale).astype(np.int8)
        graph.initializer.remove(tables[name])
        graph.initializer.extend(
            [
                onnx.numpy_helper.from_array(rows, f"{name}_int8"),
                onnx.numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"),
            ]
        )
        nodes = [
            onnx.helper.make_node("Gather", [f"{name}_int8", "input_ids"], [f"{output}_int8"]),
            onnx.helper.make_node("Cast", [f"{output}_int8"], [f"{output}_rows"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Gather", [f"{name}_scale", "input_ids"], [f"{output}_scale"]),
            onnx.helper.make_node("Mul", [f"{output}_rows", f"{output}_scale"], [output]),
        ]
        graph.node.remove(node)
        for offset, new in enumerate(nodes):
            graph.node.insert(index + offset, new)
        return


def cpu_has_vnni() -> bool:
    """Whether this CPU multiplies 8-bit integers without overflow (x86 VNNI, or the dot product of ARM)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # macOS, Windows: the 7-bit choice is right everywhere
        return False
    return re.search(r"avx512_vnni|avx_vnni|asimddp", text) is not None


def save_tokenizer(model: SentenceTransformer, directory: Path) -> None:
    """Write the tokenizer files; `tokenizer.json` truncates to the model's max_seq_length and pads a batch."""
    tokenizer = model.tokenizer
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer.json"
    fast = Tokenizer.from_file(str(path))
    fast.enable_truncation(model.max_seq_length)
    pad = {"pad_id": tokenizer.pad_token_id, "pad_token": tokenizer.pad_token}
    fast.enable_padding(pad_type_id=tokenizer.pad_token_type_id, **pad)
    fast.save(str(path))
