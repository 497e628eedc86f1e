"""Sentence embeddings from an exported ONNX graph with onnxruntime and tokenizers only: no torch, no transformers."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from kf_deberta.cli import InputError, is_out_of_memory, one_line, progress

INPUTS = {"input_ids", "attention_mask"}
OUTPUT = "sentence_embedding"
PROMPT_FILE = "config_sentence_transformers.json"
# metadata of an exported graph: which tokenizer it belongs to, and the tokens that a sentence is cut to
TOKENIZER_KEY, LENGTH_KEY = "tokenizer_sha256", "max_seq_length"
PROBE = "한 남자가 2024년 Seoul 공원에서 , ＡＢＣ를 부르며 춤을 췄다 !"


class OnnxEncoder:
    """A graph written by bin/export_onnx.py and the tokenizer.json beside it, or above it for a graph in `onnx/`.

    The graph takes int64 `input_ids` and `attention_mask`, both (batch, tokens), and gives `sentence_embedding`,
    (batch, dimensions). Truncation and the padding token are those set inside tokenizer.json; the default prompt, if
    any, is that of config_sentence_transformers.json.

    Args:
        path: the .onnx file.
        device: "cpu", "cuda" or "cuda:1"; None: CUDA where this onnxruntime offers it.
        threads: threads of one operator; 0 leaves the number to onnxruntime.
        prompt: text put before every sentence; None takes the default prompt, "" none.
        normalize: scale embeddings to length 1.

    Raises:
        InputError: a file is missing or unreadable, the tokenizer is not the graph's, the graph has other inputs or
            outputs, or does not embed a trial batch.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str | None = None,
        threads: int = 0,
        prompt: str | None = None,
        normalize: bool = False,
    ) -> None:
        """Open the graph and its tokenizer."""
        self.path = Path(path)
        self.folder = self.path.parent
        if self.folder.name == "onnx" and not (self.folder / "tokenizer.json").exists():
            self.folder = self.folder.parent
        tokenizer_path = self.folder / "tokenizer.json"
        for file in (self.path, tokenizer_path):
            if not file.is_file():
                raise InputError(f"{file}: no such file; write the graph and its tokenizer with bin/export_onnx.py")
        import onnxruntime  # training and scoring without a graph do not need it

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # fatal errors only: what goes wrong is raised
        kind, _, number = (device or "").partition(":")
        has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        if kind not in ("", "cpu", "cuda") or (kind == "cuda" and not has_cuda):
            raise InputError(f"--device {device}: this onnxruntime has no such device; leave --device out")
        cuda = [("CUDAExecutionProvider", {"device_id": int(number or 0)})] if has_cuda and kind != "cpu" else []
        providers = [*cuda, "CPUExecutionProvider"]
        try:
            self.session = onnxruntime.InferenceSession(str(self.path), options, providers=providers)
        except Exception as error:  # onnxruntime raises a type of its own for each kind of broken graph
            raise InputError(f"{self.path}: not a usable ONNX graph ({one_line(error)}); export it again") from error
        try:
            self.tokenizer = Tokenizer.from_file(str(tokenizer_path))
        except Exception as error:  # tokenizers raises bare Exception
            raise InputError(f"{tokenizer_path}: not a tokenizer file ({one_line(error)})") from error
        # what decides the embeddings: the graph, its external data, the tokenizer
        beside = sorted(file for file in self.path.parent.iterdir() if file.name.startswith(self.path.name))
        self.files = [*beside, tokenizer_path]
        inputs = {node.name for node in self.session.get_inputs()}
        outputs = {node.name for node in self.session.get_outputs()}
        if inputs != INPUTS or OUTPUT not in outputs:
            raise InputError(
                f"{self.path}: inputs {sorted(inputs)}, outputs {sorted(outputs)}; needed are {sorted(INPUTS)} and "
                f"{OUTPUT}: export the model with bin/export_onnx.py"
            )
        # batches are padded in encode, after sorting: the tokenizer would pad all sentences to the longest of all
        truncation, padding = self.tokenizer.truncation, self.tokenizer.padding or {}
        fingerprint = tokenizer_fingerprint(self.tokenizer)
        metadata = self.session.get_modelmeta().custom_metadata_map
        if metadata.get(TOKENIZER_KEY, fingerprint) != fingerprint:
            raise InputError(f"{tokenizer_path}: {self.path.name} was exported with another tokenizer; export again")
        if truncation is not None:
            self.tokenizer.enable_truncation(**truncation)
        elif LENGTH_KEY in metadata:
            self.tokenizer.enable_truncation(int(metadata[LENGTH_KEY]))
        self.pad_id = padding.get("pad_id", 0)
        self.prompt = read_default_prompt(self.folder / PROMPT_FILE) if prompt is None else prompt
        self.normalize = normalize
        highest = max(self.tokenizer.get_vocab().values())
        trials = [self._run(np.full(shape, highest), np.ones(shape, dtype=np.int64)) for shape in ((2, 3), (1, 5))]
        self.dimension = trials[0].shape[1]

    def _run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        """Embeddings of one batch, (batch, tokens) to (batch, dimensions); InputError where the graph gives none."""
        try:
            output = self.session.run([OUTPUT], {"input_ids": input_ids, "attention_mask": attention_mask})[0]
        except Exception as error:  # a fixed axis, an index out of range
            if is_out_of_memory(error):
                raise
            batch = "{} sentences of {} tokens".format(*input_ids.shape)
            raise InputError(f"{self.path}: cannot embed {batch} ({one_line(error)})") from error
        if np.ndim(output) != 2 or len(output) != len(input_ids):
            shape = f"{OUTPUT} has shape {np.shape(output)} for {len(input_ids)} sentences"
            raise InputError(f"{self.path}: {shape}; export the model with bin/export_onnx.py")
        return output

    def encode(self, sentences: Sequence[str], batch_size: int = 64, show_progress_bar: bool = False) -> np.ndarray:
        """Embed `sentences` in batches of similar length, in the order given.

        Returns:
            float32 array (sentences, dimensions).
        """
        encodings = self.tokenizer.encode_batch([self.prompt + sentence for sentence in sentences])
        order = sorted(range(len(encodings)), key=lambda i: -len(encodings[i].ids))
        embeddings: list[np.ndarray] = [np.empty(0)] * len(order)
        bar = progress(len(order), "encoding", "sentences", disable=not show_progress_bar)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            longest = len(encodings[batch[0]].ids)
            input_ids = np.full((len(batch), longest), self.pad_id, dtype=np.int64)
            attention_mask = np.zeros((len(batch), longest), dtype=np.int64)
            for row, i in enumerate(batch):
                length = len(encodings[i].ids)
                input_ids[row, :length] = encodings[i].ids
                attention_mask[row, :length] = encodings[i].attention_mask
            for i, embedding in zip(batch, self._run(input_ids, attention_mask), strict=True):
                embeddings[i] = embedding
            bar.update(len(batch))
        bar.close()
        if not embeddings:
            return np.empty((0, self.dimension), dtype=np.float32)
        result = np.stack(embeddings).astype(np.float32, copy=False)
        return result / np.linalg.norm(result, axis=1, keepdims=True).clip(1e-12) if self.normalize else result


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of what decides a text's ids: vocabulary and the ids of a probe. Turns truncation and padding off."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    content = [sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]), tokenizer.encode(PROBE).ids]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_default_prompt(config: Path) -> str:
    """Return the prompt that config_sentence_transformers.json puts before every sentence by default, or ""."""
    if not config.is_file():
        return ""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        name = content.get("default_prompt_name")
        prompt = "" if name is None else content["prompts"][name]
        if not isinstance(prompt, str):
            raise TypeError("a prompt is not a text")
        return prompt
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{config}: its default prompt cannot be read ({one_line(error)}); export again") from error


def describe_prompt(prompt: str) -> str:
    """`, prompt 'query: '`, or nothing without a prompt."""
    return f", prompt {prompt!r}" if prompt else ""
