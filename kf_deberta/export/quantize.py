"""A float32 graph with int8 weights.

float32  y = x W + b
int8     X = round(x / s) + z      s: one scale per token, so an embedding does not depend on the rest of its batch
         y = (X - z) W' * s * t + b  t: one scale per output channel of the weights W' = round(W / t)
"""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from kf_deberta.errors import writing
from kf_deberta.export.graph import MAX_FILE_BYTES, graph_bytes


def quantize_int8(source: Path, path: Path, *, reduce_range: bool, max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """Write the float32 graph `source`, one of export_model, with int8 weights to `path`.

    `reduce_range`: weights of 7 bits. Without VNNI a processor adds two products of 8 bits in 16, which overflows.
    Weights are saved beside the graph if the source has more than `max_file_bytes`.
    """
    external = graph_bytes(source) > max_file_bytes
    original = onnx.load(source, load_external_data=False)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory, writing(path):
        # fold constants first: otherwise shared weights are not recognized, and position terms would lose digits
        folded = Path(directory) / "folded.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath, options.log_severity_level = str(folded), 3  # errors only
        key = "session.optimized_model_external_initializers_file_name"
        options.add_session_config_entry(key, f"{folded.name}_data")  # else it may refer to the source's data
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        model = onnx.load(folded)
    quantize_word_embeddings(model.graph)
    quantize_products(model.graph, 64 if reduce_range else 127)
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:], model.graph.value_info[:], model.opset_import[:], model.metadata_props[:]
    model.graph.initializer.extend(kept)
    model.opset_import.extend(original.opset_import)
    model.metadata_props.extend(original.metadata_props)
    model.ir_version = original.ir_version
    with writing(path):
        onnx.save_model(model, path, save_as_external_data=external, location=f"{path.name}_data", size_threshold=1024)


def quantize_products(graph: onnx.GraphProto, levels: int) -> None:
    """Replace every product with a constant matrix by one of uint8 tokens and int8 weights of -levels..levels."""
    tables = {tensor.name: tensor for tensor in graph.initializer}
    constants = {"int8_one": np.float32(1), "int8_127": np.float32(127), "int8_255": np.float32(255)}
    constants |= {"int8_0": np.uint8(0), "int8_128": np.uint8(128), "int8_least": np.float32(1e-12)}
    constants |= {"int8_last_axis": np.array([-1])}
    nodes, tokens = [], set()  # quantized already: query, key and value share their tokens
    for node in graph.node:
        constant = node.op_type in ("MatMul", "Gemm") and node.input[1] in tables
        if not constant or len(tables[node.input[1]].dims) != 2:
            nodes.append(node)
            continue
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        (x, w, *terms), y = node.input, node.output[0]
        table = onnx.numpy_helper.to_array(tables[w])
        table = table if transposed else table.T
        # a narrowing product follows an activation function, whose results are nearly all on one side of zero: all
        # 256 levels from the smallest to the largest value; others have -127 to 127 times the scale
        one_sided = table.shape[1] > table.shape[0]
        t, zero = (f"{x}_one_sided", "int8_0") if one_sided else (x, "int8_128")
        if t not in tokens:
            tokens.add(t)
            nodes += _quantize_tokens(x, t, zero, one_sided)
        q = f"{w}_transposed" if transposed else w
        if f"{q}_int8" not in constants:
            rows, scale = _int8_rows(table, levels)
            constants |= {f"{q}_int8": np.ascontiguousarray(rows.T), f"{q}_scale": scale[:, 0]}
            constants[f"{q}_sums"] = (rows * scale).sum(axis=1, dtype=np.float32)
        nodes += [
            _node("MatMulInteger", [f"{t}_uint8", f"{q}_int8", zero], f"{y}_int32"),
            _node("Cast", [f"{y}_int32"], f"{y}_sum", to=onnx.TensorProto.FLOAT),
            _node("Mul", [f"{y}_sum", f"{t}_scale"], f"{y}_tokens"),
        ]
        if one_sided:
            nodes.append(_node("Mul", [f"{t}_min", f"{q}_sums"], f"{y}_offset"))
            terms.append(f"{y}_offset")
        results = [f"{y}_scaled", f"{y}_added"][: len(terms)] + [y]
        nodes.append(_node("Mul", [f"{y}_tokens", f"{q}_scale"], results[0]))
        for term, (before, after) in zip(terms, itertools.pairwise(results), strict=True):
            nodes.append(_node("Add", [before, term], after))
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items())
    del graph.node[:]
    graph.node.extend(nodes)


def _quantize_tokens(x: str, t: str, zero: str, one_sided: bool) -> list[onnx.NodeProto]:
    """Return nodes that round each token of `x` to levels `t`_uint8 of size `t`_scale, from `t`_min if one-sided."""
    nodes = [
        _node("Abs", [x], f"{t}_abs"),
        _node("ReduceMax", [f"{t}_abs", "int8_last_axis"], f"{t}_range", keepdims=1),
    ]
    if one_sided:
        nodes = [
            _node("ReduceMin", [x, "int8_last_axis"], f"{t}_min", keepdims=1),
            _node("ReduceMax", [x, "int8_last_axis"], f"{t}_max", keepdims=1),
            _node("Sub", [f"{t}_max", f"{t}_min"], f"{t}_range"),
            _node("Sub", [x, f"{t}_min"], f"{t}_values"),
        ]
    return nodes + [
        _node("Max", [f"{t}_range", "int8_least"], f"{t}_positive"),
        _node("Div", [f"{t}_positive", "int8_255" if one_sided else "int8_127"], f"{t}_scale"),
        _node("Div", [f"{t}_values" if one_sided else x, f"{t}_scale"], f"{t}_levels"),
        _node("QuantizeLinear", [f"{t}_levels", "int8_one", zero], f"{t}_uint8"),
    ]


def _node(operator: str, inputs: list[str], output: str, **options: int) -> onnx.NodeProto:
    return onnx.helper.make_node(operator, inputs, [output], **options)


def _int8_rows(table: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Round each row of `table` to int8 of -levels..levels; returns them and the float32 scales, (rows, 1)."""
    scale = (np.abs(table).max(axis=1, keepdims=True) / levels).astype(np.float32)
    scale[scale == 0] = 1
    return np.rint(table / scale).astype(np.int8), scale


def quantize_word_embeddings(graph: onnx.GraphProto) -> None:
    """Replace the float table that `input_ids` indexes by int8 rows with a float32 scale each, in place."""
    tables = {tensor.name: tensor for tensor in graph.initializer}
    for index, node in enumerate(graph.node):
        if node.op_type != "Gather" or node.input[1] != "input_ids" or node.input[0] not in tables:
            continue
        name, output = node.input[0], node.output[0]
        rows, scale = _int8_rows(onnx.numpy_helper.to_array(tables[name]), 127)
        graph.initializer.append(onnx.numpy_helper.from_array(rows, f"{name}_int8"))
        graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{name}_scale"))
        nodes = [
            _node("Gather", [f"{name}_int8", "input_ids"], f"{output}_int8"),
            _node("Cast", [f"{output}_int8"], f"{output}_rows", to=onnx.TensorProto.FLOAT),
            _node("Gather", [f"{name}_scale", "input_ids"], f"{output}_scale"),
            _node("Mul", [f"{output}_rows", f"{output}_scale"], output),
        ]
        after = graph.node[index + 1 :]
        del graph.node[index:]
        graph.node.extend([*nodes, *after])
        return


def cpu_has_vnni() -> bool:
    """Tell whether this processor multiplies 8-bit integers without overflow (x86 VNNI, the dot product of ARM)."""
    return any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_vnni", "avx_vnni", "dot"))
