"""Checks of an exported graph against the model it was made from: embeddings, and the figures on KorSTS."""

from pathlib import Path

import numpy as np
import onnx
from sentence_transformers import SentenceTransformer

from kf_deberta.errors import InputError, say
from kf_deberta.evaluation.scoring import PairEvaluator
from kf_deberta.export.graph import OUTPUTS
from kf_deberta.model.onnx_encoder import OnnxEncoder

# largest absolute difference of any float32 embedding value from torch's
FP32_TOLERANCE = 1e-4
# cosine of a sentence's embedding with torch's: float16 has 11 bits; int8 is judged by its figures on KorSTS, and a
# graph below this is broken rather than coarse
MIN_COSINE = {"float16": 0.999, "int8": 0.8}
# points of cosine Spearman (x100) on KorSTS test that int8 may lose before a warning, and before an error
WARN_POINTS, MAX_POINTS = 0.5, 2.0
TEXT = "한 남자가 공원에서 기타를 치며 노래를 부르고 , 아이들은 옆에서 춤을 춘다 . 2024년 서울 ( Seoul ) 날씨 ?"


def expectation(model: SentenceTransformer) -> tuple[list[str], list[list[int]], np.ndarray]:
    """Return 33 Korean sentences, from no word to twice the model's length, their tokens and their embeddings."""
    generator, words = np.random.default_rng(0), TEXT.split()
    longest = 2 * model.max_seq_length
    lengths = [1, 0, 2, 3, 5, 8, 13, 21, 34, longest // 4, longest]
    # drawn, not repeated: a periodic text has the same words wherever it is truncated
    sentences = [" ".join(generator.choice(words, length)) for _ in range(3) for length in lengths]
    # the empty sentence has no tokens if the tokenizer adds none
    sentences = [text for text in sentences if model.tokenizer(text, verbose=False)["input_ids"]]
    tokens = [model.preprocess([text])["input_ids"][0].tolist() for text in sentences]
    return sentences, tokens, model.encode(sentences, batch_size=1, show_progress_bar=False)  # one by one: no padding


def check_graph(path: Path, kind: str, sentences: list[str], tokens: list[list[int]], expected: np.ndarray) -> str:
    """Validate a graph and compare its embeddings, in batches of 1 and 33, with an `expectation`.

    `kind` is float32, float16 or int8. Returns what was found, for the user; InputError if the graph is invalid, does
    not run, or differs too much.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        raise InputError(f"{path.name}: not a valid graph ({error})") from error
    encoder = OnnxEncoder(path, device="cpu")
    for text, ids in zip(sentences, tokens, strict=True):
        if encoder.tokenizer.encode(text).ids != ids:
            raise InputError(f"{path.name}: tokenizer.json gives other tokens than the model's tokenizer for {text!r}")
    names = tuple(output.name for output in encoder.session.get_outputs())
    results = np.stack([encoder.encode(sentences, batch_size=size) for size in (1, len(sentences))])
    if names != OUTPUTS or results.shape[1:] != expected.shape or not np.isfinite(results).all():
        raise InputError(f"{path.name}: outputs {names} with embeddings {results.shape[1:]}, or not finite")
    if kind == "float32":
        difference = np.abs(results - expected).max()
        if difference > FP32_TOLERANCE:
            raise InputError(f"{path.name}: embeddings differ from torch's by {difference:.2g}")
        return f"{path.name}: embeddings differ from torch's by at most {difference:.1e}"
    cosines = (results * expected).sum(-1) / np.linalg.norm(results, axis=-1) / np.linalg.norm(expected, axis=-1)
    if cosines.min() < MIN_COSINE[kind]:
        raise InputError(f"{path.name}: an embedding has cosine {cosines.min():.4f} with torch's")
    return f"{path.name}: cosine with torch's embeddings at least {cosines.min():.4f} (on this CPU)"


def score_graphs(model: SentenceTransformer, graphs: list[Path], evaluator: PairEvaluator) -> dict[str, dict]:
    """Return the eight figures (x100) of torch and of each graph on KorSTS pairs, by name."""
    figures = {}
    for name, encoder in {"torch": model, **{path.name: OnnxEncoder(path, device="cpu") for path in graphs}}.items():
        say(f"scoring {name} on {len(evaluator.gold):,} pairs")
        figures[name] = {figure: 100 * value for figure, value in evaluator(encoder).items()}
    return figures


def check_loss(figures: dict[str, dict[str, float]], name: str, *, force: bool) -> None:
    """Warn if graph `name` loses over WARN_POINTS of cosine Spearman; InputError over MAX_POINTS without `force`."""
    loss = figures["torch"]["cosine_spearman"] - figures[name]["cosine_spearman"]
    if loss > WARN_POINTS:
        message = f"{name} loses {loss:.2f} points of cosine Spearman"
        if loss > MAX_POINTS and not force:
            raise InputError(f"{message}, more than {MAX_POINTS:g}; nothing is saved: omit --quantize, or --force it")
        say(f"warning: {message}")
