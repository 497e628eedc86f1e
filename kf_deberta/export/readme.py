"""The README that an exported graph is delivered with."""

import json
from pathlib import Path

import jinja2
from sentence_transformers import SentenceTransformer

from kf_deberta.cli import escape_markdown
from kf_deberta.model.load import default_prompt, pooling_of

TEMPLATE = Path(__file__).with_name("readme.md")
KINDS = {
    "float32": "float32, opset {opset}",
    "int8": "int8 weights, for CPUs and browsers; activations are quantized at run time, token by token",
    "float16": "float16 inside, float32 outputs, for GPU runtimes",
}


def readme(model: SentenceTransformer, name: str, graphs: dict[str, str], opset: int) -> str:
    """Markdown text for `graphs` (file names by kind, see KINDS), exported from model `name`."""
    graph = json.dumps(graphs["float32"], ensure_ascii=False)
    folder, _, file = graphs["float32"].rpartition("/")
    place = [f'subfolder="{folder}"'] * bool(folder) + [f"file_name={json.dumps(file, ensure_ascii=False)}"]
    environment = jinja2.Environment(keep_trailing_newline=True)
    environment.filters["plain"] = escape_markdown
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=name,
        revision=model.revision,
        graphs=[(file.replace("|", r"\|"), KINDS[kind].format(opset=opset)) for kind, file in graphs.items()],
        max_seq_length=model.max_seq_length,
        hidden=model[0].get_embedding_dimension(),
        dimension=model.get_embedding_dimension(),
        modules=", ".join(type(module).__name__ for module in model),
        prompt=default_prompt(model),
        graph=graph,
        opset=opset,
        float16="float16" in graphs,
        optimum=", ".join(["folder", *place]),
        javascript="nothing more"
        if folder
        else f'`subfolder: "", model_file_name: {json.dumps(file[:-5], ensure_ascii=False)}`',
        mean=[type(module).__name__ for module in model][1:] in (["Pooling"], ["Pooling", "Normalize"])
        and pooling_of(model) == "mean",
        hub_layout=bool(folder),
    )
