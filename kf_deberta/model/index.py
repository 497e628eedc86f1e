"""A corpus embedded once and kept in a file beside it, and the nearest of its sentences by blocks of products."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from kf_deberta.cli import InputError, check_writable, progress, say, write_atomically

CHUNK = 1024  # sentences encoded at a time, sorted by length among themselves
BLOCK = 16384  # corpus rows of one product; bounds memory, changes no result
MODEL_FILES = (".safetensors", ".bin", ".json", ".txt", ".model", ".py")  # kinds that decide embeddings
DIGITS = 6  # scores that agree in so many digits are equal: products in other blocks round otherwise


def folder_files(folder: Path) -> list[Path]:
    """Return the files of a model folder that decide its embeddings, checkpoints left out."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in MODEL_FILES and path.is_file())
    return [path for path in files if not any(part.startswith("checkpoint-") for part in path.parts)]


def fingerprint(files: Iterable[Path], *texts: str) -> str:
    """Return SHA-256 over the names and contents of `files`, and over `texts`."""
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass"))
    for path in files:
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"\n{path.name} {content}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def unit_vectors(encode: Callable[[list[str]], np.ndarray], sentences: list[str], name: str) -> np.ndarray:
    """Encode sentences to vectors of length 1, float32 (sentences, dimensions), so that their products are cosines.

    Raises:
        InputError: an embedding is zero or not finite; `name` is the model's.
    """
    embeddings = np.asarray(encode(sentences), dtype=np.float32)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise InputError(f"{name}: embeddings that are zero or not finite; take another model")
    return embeddings / lengths


def embed_corpus(path: Path, sentences: list[str], embed: Callable[[list[str]], np.ndarray], key: str) -> np.ndarray:
    """Return the vectors of a corpus file, (sentences, dimensions), from the file that keeps them, else made and kept.

    Args:
        path: the corpus; its vectors are in <path>.<first 16 digits of the key>.npy.
        sentences: its sentences.
        embed: sentences to vectors of length 1.
        key: a fingerprint of the model and its settings.

    Where the corpus's folder is not writable the vectors are made anew each time.
    """
    key = fingerprint([], key, *sentences)
    kept = path.with_name(f"{path.name}.{key[:16]}.npy")
    try:
        vectors = np.load(kept, mmap_mode="r")
        if vectors.dtype == np.float32 and vectors.shape[:1] == (len(sentences),) and vectors.ndim == 2:
            return vectors
    except (OSError, ValueError, EOFError):  # not there yet, or cut
        pass
    try:
        check_writable(kept.parent)
    except InputError as error:
        say(f"{error}; the vectors are not kept")
        return embed(sentences)
    bar = progress(len(sentences), "corpus", "sentences")
    with write_atomically(kept) as temporary, open(temporary, "wb") as file:
        for start in range(0, len(sentences), CHUNK):
            chunk = embed(sentences[start : start + CHUNK])
            if start == 0:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(sentences), chunk.shape[1])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(chunk.astype("<f4").tobytes())
            bar.update(len(chunk))
    bar.close()
    say(f"{kept}: {len(sentences):,} vectors kept for the next search; delete it freely")
    return np.load(kept, mmap_mode="r")


def nearest(corpus: np.ndarray, queries: np.ndarray, count: int) -> list[list[tuple[int, float]]]:
    """Find for every query the `count` corpus rows of the largest products; equal ones in the order of the corpus.

    Returns:
        For each query (row, product) from the largest down.
    """
    best: list[tuple[np.ndarray, np.ndarray]] = [(np.empty(0, np.int64), np.empty(0))] * len(queries)
    for start in range(0, len(corpus), BLOCK):
        products = np.round(queries @ corpus[start : start + BLOCK].T, DIGITS)
        for i, row in enumerate(products):
            rows, scores = best[i]
            new = np.flatnonzero(row > scores[-1]) if len(scores) == count else np.arange(len(row))
            rows, scores = np.append(rows, start + new), np.append(scores, row[new])
            order = np.argsort(-scores, kind="stable")[:count]
            best[i] = rows[order], scores[order]
    return [list(zip(rows.tolist(), scores.tolist(), strict=True)) for rows, scores in best]
