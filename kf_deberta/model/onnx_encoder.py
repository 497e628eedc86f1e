"""Sentence embeddings from an exported ONNX graph with onnxruntime and tokenizers only: no torch, no transformers."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from kf_deberta.errors import InputError, is_out_of_memory, one_line

INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"
# metadata of an exported graph: the model, the tokenizer it belongs to, and the tokens after which texts are truncated
MODEL_KEY, TOKENIZER_KEY, LENGTH_KEY = "model", "tokenizer_sha256", "max_seq_length"
PROBE = "한 남자가 2024년 Seoul 공원에서 , ＡＢＣ를 부르며 춤을 췄다 !"
EXPORT_AGAIN = "export the model with bin/export_onnx.py"


class OnnxEncoder:
    """A graph written by bin/export_onnx.py and the tokenizer.json beside it, or above it for a graph in `onnx/`.

    `device` is "cpu", "cuda", or None for CUDA if this onnxruntime offers it. `prompt` is put before every sentence.
    InputError if a file is missing or unreadable, the tokenizer is not the graph's, or a trial batch fails.
    """

    def __init__(self, path: str | Path, *, device: str | None = None, prompt: str = "") -> None:
        import onnxruntime

        self.path, self.prompt = Path(path), prompt
        # 1. The graph
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # fatal errors only: other errors are raised
        providers = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
        offered = [name for name, provider in providers.items() if provider in onnxruntime.get_available_providers()]
        if device not in (None, *offered):
            raise InputError(f"--device {device}: not offered by this onnxruntime; it has {', '.join(offered)}")
        try:
            used = [providers[name] for name in offered if name == "cpu" or device != "cpu"]
            self.session = onnxruntime.InferenceSession(str(self.path), options, providers=used)
        except Exception as error:  # onnxruntime raises a type of its own for each kind of broken graph
            raise InputError(f"{self.path}: not a usable ONNX graph ({one_line(error)}); {EXPORT_AGAIN}") from error

        # 2. The tokenizer; batches are padded in encode, because the tokenizer would pad all sentences to the longest
        file, above = (folder / "tokenizer.json" for folder in self.path.absolute().parents[:2])
        file = above if self.path.absolute().parent.name == "onnx" and not file.is_file() else file
        try:
            self.tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises bare Exception
            raise InputError(f"{file}: not a usable tokenizer ({one_line(error)}); {EXPORT_AGAIN}") from error
        fingerprint = tokenizer_fingerprint(Tokenizer.from_file(str(file)))
        metadata = self.session.get_modelmeta().custom_metadata_map
        if metadata.get(TOKENIZER_KEY, fingerprint) != fingerprint:
            raise InputError(f"{file}: {self.path.name} was exported with another tokenizer; {EXPORT_AGAIN}")
        if self.tokenizer.truncation is None and LENGTH_KEY in metadata:
            self.tokenizer.enable_truncation(int(metadata[LENGTH_KEY]))
        self.pad_id = (self.tokenizer.padding or {"pad_id": 0})["pad_id"]
        self.tokenizer.no_padding()

        # 3. A trial
        highest = max(self.tokenizer.get_vocab().values())
        self.dimension = self._run(np.full((2, 3), highest), np.ones((2, 3), dtype=np.int64)).shape[1]

    def _run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Return the embeddings of one batch, (batch, tokens) to (batch, dimensions)."""
        try:
            return self.session.run([OUTPUT], dict(zip(INPUTS, (input_ids, attention_mask), strict=True)))[0]
        except Exception as error:  # no such input or output, a fixed axis, an index out of range
            if is_out_of_memory(error):
                raise
            batch = "{} sentences of {} tokens".format(*input_ids.shape)
            raise InputError(f"{self.path}: cannot embed {batch} ({one_line(error)}); {EXPORT_AGAIN}") from error

    def encode(self, sentences: Sequence[str], batch_size: int = 64, show_progress_bar: bool = False) -> np.ndarray:
        """Embed `sentences` in batches of similar length: float32 (sentences, dimensions), in their order."""
        encodings = self.tokenizer.encode_batch([self.prompt + sentence for sentence in sentences])
        order = sorted(range(len(encodings)), key=lambda row: -len(encodings[row].ids))
        embeddings = np.empty((len(order), self.dimension), dtype=np.float32)
        for start in tqdm(range(0, len(order), batch_size), "encoding", disable=not show_progress_bar):
            rows = order[start : start + batch_size]
            batch = [encodings[row] for row in rows]
            for encoding in batch:
                encoding.pad(len(batch[0].ids), pad_id=self.pad_id)
            input_ids = np.array([encoding.ids for encoding in batch], dtype=np.int64)
            embeddings[rows] = self._run(input_ids, np.array([e.attention_mask for e in batch], dtype=np.int64))
        return embeddings


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """Return a SHA-256 of the vocabulary and the ids of a probe text. Disables truncation and padding."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    content = [sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]), tokenizer.encode(PROBE).ids]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def model_of(path: Path) -> str | None:
    """Return the name of the model that the graph at `path` was exported from, None if that is not known."""
    import onnx

    try:
        properties = onnx.load(path, load_external_data=False).metadata_props
    except Exception:  # no such file, or none of ONNX
        return None
    return next((entry.value for entry in properties if entry.key == MODEL_KEY), None)
