"""The README of an exported folder, from the template readme.md."""

import json
from pathlib import Path

import jinja2
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

from kf_deberta.evaluation.report import escape_markdown, markdown
from kf_deberta.evaluation.scoring import FIGURES
from kf_deberta.export.graph import graph_bytes
from kf_deberta.model.load import plain_pooling

KINDS = {
    "float32": "float32",
    "int8": "int8 weights, for CPUs and browsers; activations are quantized at run time, one scale per token",
    "float16": "float16 inside, float32 outputs, for GPU runtimes",
}


def readme(model: SentenceTransformer, name: str, graphs: dict[str, Path], figures: dict[str, dict], data: str) -> str:
    """Return Markdown text for existing `graphs` by kind (see KINDS), exported from model `name`.

    `figures` are those of check.score_graphs on `data`, or empty.
    """
    rows = [[file, *(f"{values[figure]:.2f}" for figure in FIGURES)] for file, values in figures.items()]
    template = Path(__file__).with_name("readme.md").read_text(encoding="utf-8")
    environment = jinja2.Environment(keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"plain": escape_markdown, "quoted": lambda text: json.dumps(text, ensure_ascii=False)}
    return environment.from_string(template).render(
        name=name,
        graphs=[(path.name, KINDS[kind], f"{graph_bytes(path) / 1e6:.1f}") for kind, path in graphs.items()],
        graph=graphs["float32"],
        model=model,
        modules=", ".join(type(module).__name__ for module in model),
        pooling=plain_pooling(model),
        unit_length=isinstance(model[-1], Normalize),
        figures=markdown([f"{data}, x100", *FIGURES], rows) if rows else None,
    )
