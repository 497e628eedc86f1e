"""The README that an exported graph is delivered with."""

from sentence_transformers import SentenceTransformer

TITLE = "# ONNX export of "

TEMPLATE = """{title}{name}

Sentence embeddings without Python's model libraries: the graph pools with the attention mask itself.

| file | what |
|---|---|
{files}
| `tokenizer.json` | for HF tokenizers; truncates to {max_seq_length} tokens, pads to the longest of a batch |

| tensor | type | shape |
|---|---|---|
| input `input_ids` | int64 | batch, sequence |
| input `attention_mask` | int64, 1 = token, 0 = padding | batch, sequence |
| output `last_hidden_state` | float32 | batch, sequence, {hidden}; meaningless where the mask is 0 |
| output `sentence_embedding` | float32 | batch, {dimension} |

Batch and sequence are free; `token_type_ids` are not taken. Modules inside the graph: {modules}.
{notes}
The example needs `pip install numpy onnxruntime tokenizers` and runs in this directory.

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("{graph}")
sentences = ["한 남자가 음식을 먹는다.", "한 남자가 빵 한 조각을 먹는다.", "한 여자가 바이올린을 연주한다."]
encodings = tokenizer.encode_batch(sentences)
inputs = {{
    "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
    "attention_mask": np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64),
}}
embeddings = session.run(["sentence_embedding"], inputs)[0]
embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
print(np.round(embeddings @ embeddings.T, 4))
```
"""

KINDS = {
    "": "float32, opset {opset}",
    "-int8": "int8 weights, activations quantised at run time; an embedding depends slightly on its batch",
    "-fp16": "float16 inside, float32 outputs, for GPU runtimes",
}


def readme(model: SentenceTransformer, name: str, stem: str, suffixes: list[str], opset: int) -> str:
    """Markdown text for the graphs `stem` + each of `suffixes` (keys of KINDS), exported from model `name`."""
    notes = ""
    prompt = model.prompts.get(model.default_prompt_name or "", "")
    if prompt:
        notes = f"\nThe model puts `{prompt}` before every sentence; the graph does not: put it there yourself.\n"
    return TEMPLATE.format(
        title=TITLE,
        name=name,
        files="\n".join(f"| `{stem}{suffix}.onnx` | {KINDS[suffix].format(opset=opset)} |" for suffix in suffixes),
        max_seq_length=model.max_seq_length,
        hidden=model[0].get_embedding_dimension(),
        dimension=model.get_embedding_dimension(),
        modules=", ".join(type(module).__name__ for module in model),
        notes=notes,
        graph=f"{stem}.onnx",
    )
