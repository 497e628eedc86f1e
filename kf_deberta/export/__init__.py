"""Model to ONNX: graph, quantization, checks, README."""
