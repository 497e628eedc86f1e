"""Checks of an exported graph against the model it was made from: embeddings, and the figures on KorSTS."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from kf_deberta.cli import is_out_of_memory
from kf_deberta.evaluation.report import markdown
from kf_deberta.evaluation.scoring import (
    FIGURES,
    SIMILARITIES,
    encode_pairs,
    encode_sorted,
    pair_similarities,
    score,
)
from kf_deberta.export.graph import OUTPUTS, ExportError, graph_files
from kf_deberta.model.onnx_encoder import OnnxEncoder

# largest absolute difference of any float32 embedding value from torch's
FP32_TOLERANCE = 1e-4
# cosine of a sentence's embedding with torch's: float16 keeps 11 bits; int8 is judged by its KorSTS figures, and a
# graph below this is broken rather than coarse
FP16_MIN_COSINE, INT8_MIN_COSINE = 0.999, 0.8
# points of cosine Spearman (x100) on KorSTS test that int8 may lose: a warning, an error
WARN_POINTS, MAX_POINTS = 0.5, 2.0
BATCH_SIZES = (1, 33)
TEXT = "한 남자가 공원에서 기타를 치며 노래를 부르고 , 아이들은 옆에서 춤을 춘다 . 2024년 서울 ( Seoul ) 날씨 ?"


def check_sentences(max_seq_length: int) -> list[str]:
    """33 Korean sentences from no word to twice `max_seq_length` words: one batch of them is padded very unevenly."""
    words = TEXT.split()
    lengths = [1, 0, 2, 3, 5, 8, 13, 21, 34, max_seq_length // 2, 2 * max_seq_length]
    return [
        " ".join(words[(start + position) % len(words)] for position in range(length))
        for start in range(3)
        for length in lengths
    ]


def torch_embeddings(model: SentenceTransformer, sentences: Sequence[str]) -> np.ndarray:
    """The model's own float32 embeddings, one sentence at a time, so that no padding is involved."""
    return model.encode(list(sentences), batch_size=1, show_progress_bar=False)


def check_graph(path: Path, sentences: Sequence[str], expected: np.ndarray) -> float:
    """Validate a float32 graph and compare its embeddings in batches of 1 and 33 with `expected`.

    Returns:
        the largest absolute difference of a value.

    Raises:
        ExportError: the graph is invalid, does not run, or differs by more than FP32_TOLERANCE.
    """
    difference = max(float(np.abs(got - expected).max()) for got in _embeddings(path, sentences, expected.shape))
    if difference > FP32_TOLERANCE:
        raise ExportError(f"{path.name}: embeddings differ from torch's by {difference:.2g}, over {FP32_TOLERANCE:g}")
    return difference


def check_reduced_graph(path: Path, sentences: Sequence[str], expected: np.ndarray, min_cosine: float) -> float:
    """Validate a float16 or int8 graph as `check_graph` does; the smallest cosine of an embedding with torch's.

    Raises:
        ExportError: the graph is invalid, does not run, or a cosine is under `min_cosine`.
    """
    cosines = [
        (got * expected).sum(axis=1) / (np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1))
        for got in _embeddings(path, sentences, expected.shape)
    ]
    smallest = float(np.min(cosines))
    if not smallest >= min_cosine:
        raise ExportError(f"{path.name}: an embedding has cosine {smallest:.4f} with torch's, under {min_cosine:g}")
    return smallest


def _embeddings(path: Path, sentences: Sequence[str], shape: tuple[int, ...]) -> list[np.ndarray]:
    """Embeddings of the sentences by the graph and the tokenizer.json beside it, once for each of BATCH_SIZES."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        encoder = OnnxEncoder(path, device="cpu")
        names = tuple(output.name for output in encoder.session.get_outputs())
        results = [encoder.encode(sentences, batch_size=batch_size) for batch_size in BATCH_SIZES]
    except Exception as error:  # onnx, onnxruntime and tokenizers each raise types of their own
        if is_out_of_memory(error):
            raise
        raise ExportError(f"{path.name}: the graph does not run ({' '.join(str(error).split())[:300]})") from error
    if names != OUTPUTS:
        raise ExportError(f"{path.name}: its outputs are {names} instead of {OUTPUTS}")
    for result in results:
        if result.shape != shape:
            raise ExportError(f"{path.name}: embeddings are {result.shape} instead of {shape}")
        if not np.isfinite(result).all():
            raise ExportError(f"{path.name}: embeddings hold NaN or infinity")
    return results


def eight_figures(encode: Callable[[list[str]], np.ndarray], pairs: Dataset) -> dict[str, float]:
    """The eight correlations (x100) of an encoding function on KorSTS pairs: sentence1, sentence2, score."""
    embedded = encode_pairs(encode, pairs["sentence1"], pairs["sentence2"])
    return {
        name: 100 * value for name, value in score(pair_similarities(embedded), np.asarray(pairs["score"])).items()
    }


def compare_on_kor_sts(
    model: SentenceTransformer, graphs: Sequence[Path], pairs: Dataset, title: str
) -> dict[str, dict]:
    """Print torch's and each graph's eight figures on `pairs`, and its size, under `title`; the figures by name."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    rows = {"torch": eight_figures(lambda sentences: encode_sorted(model, sentences, 64), pairs)}
    sizes = {"torch": weights}
    for path in graphs:
        encoder = OnnxEncoder(path, device="cpu")
        rows[path.name] = eight_figures(lambda s, e=encoder: e.encode(s, show_progress_bar=True), pairs)
        sizes[path.name] = sum(file.stat().st_size for file in graph_files(path))
    table = []
    for name, figures in rows.items():
        values = [f"{figures[name]:.2f}" for name in FIGURES]
        cells = [f"{pearson} / {spearman}" for pearson, spearman in zip(values[::2], values[1::2], strict=True)]
        table.append([name, f"{sizes[name] / 1e6:.1f}", *cells])
    print(f"\n{title}, x100, Pearson / Spearman\n\n{markdown(['graph', 'MB', *SIMILARITIES], table)}")
    return rows


def check_loss(figures: dict[str, dict], name: str, *, force: bool) -> str | None:
    """A warning where graph `name` loses more than WARN_POINTS of cosine Spearman against torch, else None.

    Raises:
        ExportError: it loses more than MAX_POINTS, and `force` is not set.
    """
    loss = figures["torch"]["cosine_spearman"] - figures[name]["cosine_spearman"]
    if loss <= WARN_POINTS:
        return None
    message = f"{name} loses {loss:.2f} points of cosine Spearman"
    if loss > MAX_POINTS and not force:
        raise ExportError(f"{message}, over {MAX_POINTS:g}; nothing was written: leave --quantize out, or --force it")
    return message
