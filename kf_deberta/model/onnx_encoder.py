"""Sentence embeddings from an exported ONNX graph with onnxruntime and tokenizers only: no torch, no transformers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer
from tqdm import tqdm

from kf_deberta.cli import InputError, one_line

INPUTS = {"input_ids", "attention_mask"}
OUTPUT = "sentence_embedding"


class OnnxEncoder:
    """A graph written by bin/export_onnx.py and the tokenizer.json beside it.

    The graph takes int64 `input_ids` and `attention_mask`, both (batch, tokens), and gives `sentence_embedding`,
    (batch, dimensions). Truncation and the padding token are those set inside tokenizer.json.

    Args:
        path: the .onnx file.
        device: "cpu" keeps to the CPU; otherwise CUDA is used where this onnxruntime offers it.
        threads: threads of one operator; 0 leaves the number to onnxruntime.

    Raises:
        InputError: a file is missing or unreadable, or the graph has other inputs or outputs.
    """

    def __init__(self, path: str | Path, *, device: str | None = None, threads: int = 0) -> None:
        """Open the graph and its tokenizer."""
        self.path = Path(path)
        tokenizer_path = self.path.parent / "tokenizer.json"
        for file in (self.path, tokenizer_path):
            if not file.is_file():
                raise InputError(f"{file}: no such file; write the graph and its tokenizer with bin/export_onnx.py")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only
        wanted = ["CPUExecutionProvider"] if device == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        try:
            self.session = onnxruntime.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:  # onnxruntime raises a type of its own for each kind of broken graph
            raise InputError(f"{self.path}: not a usable ONNX graph ({one_line(error)}); export it again") from error
        try:
            self.tokenizer = Tokenizer.from_file(str(tokenizer_path))
        except Exception as error:  # tokenizers raises bare Exception
            raise InputError(f"{tokenizer_path}: not a tokenizer file ({one_line(error)})") from error
        inputs = {node.name for node in self.session.get_inputs()}
        outputs = {node.name: node for node in self.session.get_outputs()}
        if inputs != INPUTS or OUTPUT not in outputs:
            raise InputError(
                f"{self.path}: inputs {sorted(inputs)}, outputs {sorted(outputs)}; needed are {sorted(INPUTS)} and "
                f"{OUTPUT}: export the model with bin/export_onnx.py"
            )
        self.dimension = outputs[OUTPUT].shape[-1]
        self.pad_id = (self.tokenizer.padding or {}).get("pad_id", 0)
        # batches are padded here, after sorting: the tokenizer would pad all sentences to the longest of all
        self.tokenizer.no_padding()

    def encode(self, sentences: Sequence[str], batch_size: int = 64, show_progress_bar: bool = False) -> np.ndarray:
        """Embed `sentences` in batches of similar length, in the order given.

        Returns:
            float32 array (sentences, dimensions).
        """
        encodings = self.tokenizer.encode_batch(list(sentences))
        order = sorted(range(len(encodings)), key=lambda i: -len(encodings[i].ids))
        embeddings: list[np.ndarray] = [np.empty(0)] * len(order)
        with tqdm(total=len(order), desc="Sentences", disable=not show_progress_bar) as progress:
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                longest = len(encodings[batch[0]].ids)
                input_ids = np.full((len(batch), longest), self.pad_id, dtype=np.int64)
                attention_mask = np.zeros((len(batch), longest), dtype=np.int64)
                for row, i in enumerate(batch):
                    length = len(encodings[i].ids)
                    input_ids[row, :length] = encodings[i].ids
                    attention_mask[row, :length] = encodings[i].attention_mask
                feed = {"input_ids": input_ids, "attention_mask": attention_mask}
                for i, embedding in zip(batch, self.session.run([OUTPUT], feed)[0], strict=True):
                    embeddings[i] = embedding
                progress.update(len(batch))
        if not embeddings:
            return np.empty((0, self.dimension), dtype=np.float32)
        return np.stack(embeddings).astype(np.float32, copy=False)
