"""The README that an exported graph is delivered with."""

from pathlib import Path

import jinja2
from sentence_transformers import SentenceTransformer

TITLE = "# ONNX export of "
TEMPLATE = Path(__file__).with_name("readme.md")
KINDS = {
    "": "float32, opset {opset}",
    "-int8": "int8 weights, activations quantized at run time; an embedding depends slightly on its batch",
    "-fp16": "float16 inside, float32 outputs, for GPU runtimes",
}


def readme(model: SentenceTransformer, name: str, stem: str, suffixes: list[str], opset: int) -> str:
    """Markdown text for the graphs `stem` + each of `suffixes` (keys of KINDS), exported from model `name`."""
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), keep_trailing_newline=True)
    return template.render(
        name=name,
        graphs=[(f"{stem}{suffix}.onnx", KINDS[suffix].format(opset=opset)) for suffix in suffixes],
        max_seq_length=model.max_seq_length,
        hidden=model[0].get_embedding_dimension(),
        dimension=model.get_embedding_dimension(),
        modules=", ".join(type(module).__name__ for module in model),
        prompt=model.prompts.get(model.default_prompt_name or "", ""),
        graph=f"{stem}.onnx",
    )
