"""A float32 graph with int8 weights."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from kf_deberta.export.graph import MAX_FILE_BYTES, graph_files, quiet


def quantize_int8(source: Path, path: Path, *, reduce_range: bool, max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """Write the float32 graph `source` with int8 weights; activations are quantized at run time (dynamic).

    Weights of matrix products: one scale per output channel. Word embeddings: one scale per row, which costs nothing
    measurable, where one scale for the table costs a share of what all matrix products cost.

    `reduce_range` keeps weights to 7 bits: without VNNI a CPU adds two products of 8 bits in 16, which overflows.
    """
    external = sum(file.stat().st_size for file in graph_files(source)) > max_file_bytes
    with tempfile.TemporaryDirectory(prefix=".int8-", dir=path.parent) as directory:
        # constants first: a weight that is used twice is not seen as one, and position terms would lose digits
        folded = Path(directory) / "folded.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        options.log_severity_level = 3  # errors only
        key = "session.optimized_model_external_initializers_file_name"
        options.add_session_config_entry(key, f"{folded.name}_data")  # else it may refer to the source's data
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        original = onnx.load(source, load_external_data=False)
        graph = onnx.load(folded)
        del graph.graph.value_info[:]  # shapes of before the folding; the quantizer infers them again
        quantize_word_embeddings(graph.graph)
        with quiet():
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
    graph.ir_version = original.ir_version
    del graph.metadata_props[:]
    graph.metadata_props.extend(original.metadata_props)
    onnx.save_model(graph, path, save_as_external_data=external, location=f"{path.name}_data", size_threshold=1024)


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
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_vnni", "avx_vnni", "dot"))
