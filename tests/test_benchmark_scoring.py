"""The eight figures against scipy, plain transformers and EmbeddingSimilarityEvaluator."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator
from transformers import AutoModel, AutoTokenizer

from data_util import load_kor_sts
from kf_deberta.cli import InputError, is_out_of_memory
from kf_deberta.evaluation.scoring import (
    FIGURES,
    PairEmbeddings,
    check_gold,
    encode_pairs,
    encode_sorted,
    pair_similarities,
    score,
    transform,
)
from kf_deberta.model.load import load_model

ROWS = 150


def similarities_by_definition(u: np.ndarray, v: np.ndarray) -> dict[str, np.ndarray]:
    """The definitions in plain numpy float64."""
    u, v = u.astype(np.float64), v.astype(np.float64)
    return {
        "cosine": (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1),
        "euclidean": -np.linalg.norm(u - v, axis=1),
        "manhattan": -np.abs(u - v).sum(1),
        "dot": (u * v).sum(1),
    }


def clearly_ordered(similarities: dict[str, np.ndarray]) -> np.ndarray:
    """Leave out pairs whose order float32 rounding decides, which moves Spearman by more than the test allows."""
    keep = np.ones(len(similarities["dot"]), dtype=bool)
    for values in similarities.values():
        order = np.argsort(values)
        close = np.diff(values[order]) < 1e-5 * np.abs(values).max()
        keep[order[1:][close]] = False
    return np.flatnonzero(keep)


def scipy_figures(similarities: dict[str, np.ndarray], gold: np.ndarray) -> dict[str, float]:
    kinds = {"pearson": pearsonr, "spearman": spearmanr}
    return {f"{s}_{k}": float(f(gold, similarities[s])[0]) for s in similarities for k, f in kinds.items()}


@torch.inference_mode()
def transformers_embeddings(path, sentences: list[str]) -> np.ndarray:
    """Mean pooling by hand, one sentence at a time, so without any padding; eager library attention."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    return np.stack(
        [
            model(**tokenizer(sentence, return_tensors="pt", truncation=True, max_length=128))
            .last_hidden_state[0]
            .mean(0)
            .numpy()
            for sentence in sentences
        ]
    )


@pytest.fixture(scope="module")
def sample_pairs(repo):
    dataset = load_kor_sts(repo / "sample" / "KorSTS" / "sts-test.tsv").select(range(ROWS))
    return list(dataset["sentence1"]), list(dataset["sentence2"]), np.array(dataset["score"])


@pytest.fixture(scope="module")
def toy(toy_base, sample_pairs):
    """The toy model and 60 pairs encoded one by one: without padding an embedding does not depend on its batch."""
    model, columns = load_model(str(toy_base), device="cpu"), [column[:60] for column in sample_pairs]
    return model, columns, encode_pairs(lambda sentences: encode_sorted(model, sentences, 1), *columns[:2])


@pytest.mark.parametrize(("base", "rows"), [("toy_base", ROWS), ("tiny_deberta", ROWS), ("e5_small", 40)])
def test_figures_equal_scipy_on_plain_transformers_embeddings(base, rows, request, sample_pairs):
    path = request.getfixturevalue(base)
    first, second, gold = (column[:rows] for column in sample_pairs)
    by_definition = similarities_by_definition(*(transformers_embeddings(path, texts) for texts in (first, second)))
    chosen = clearly_ordered(by_definition)
    assert len(chosen) > rows / 2
    expected = scipy_figures({name: values[chosen] for name, values in by_definition.items()}, gold[chosen])

    model = load_model(str(path), device="cpu")
    pairs = encode_pairs(
        lambda sentences: encode_sorted(model, sentences, 32), [first[i] for i in chosen], [second[i] for i in chosen]
    )
    assert score(pair_similarities(pairs), gold[chosen]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("dimension", "precision"),
    [(None, None), (20, None), (None, "int8"), (20, "int8"), (None, "binary"), (20, "binary")],
)
def test_figures_equal_the_library_evaluator(dimension, precision, toy):
    model, columns, pairs = toy
    evaluator = EmbeddingSimilarityEvaluator(
        *columns,
        batch_size=1,
        similarity_fn_names=["cosine", "euclidean", "manhattan", "dot"],
        main_similarity="cosine",
        precision=precision,
        truncate_dim=dimension,
        write_csv=False,
    )
    metrics = evaluator(model)
    figures = score(pair_similarities(transform(pairs, dimension, precision or "float32")), columns[2])
    for name in FIGURES:
        similarity, kind = name.split("_")
        assert figures[name] == pytest.approx(metrics[f"{kind}_{similarity}"], abs=1e-6), name


def test_each_distinct_sentence_is_encoded_once_and_lands_in_its_pair():
    seen = []

    def encode(sentences):
        seen.extend(sentences)
        return np.array([[len(sentence), 1.0] for sentence in sentences])

    pairs = encode_pairs(encode, ["a", "bb", "a"], ["ccc", "a", "bb"])
    assert sorted(seen) == ["a", "bb", "ccc"]
    assert pairs.embeddings[pairs.first, 0].tolist() == [1, 2, 1]
    assert pairs.embeddings[pairs.second, 0].tolist() == [3, 1, 2]


def test_sorted_batches_give_the_order_of_the_sentences(toy):
    model, sentences = toy[0], toy[1][0][:20]
    alone = np.concatenate([model.encode([sentence]) for sentence in sentences])
    np.testing.assert_allclose(encode_sorted(model, sentences, 7), alone, atol=1e-5)


def test_binary_distances_are_hamming_distances():
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(40, 12)).astype(np.float32)  # 12 bits: the last byte is padded
    pairs = PairEmbeddings(embeddings, np.arange(20), np.arange(20, 40))
    similarities = pair_similarities(transform(pairs, None, "binary"))
    hamming = ((embeddings[:20] > 0) != (embeddings[20:] > 0)).sum(1)
    np.testing.assert_array_equal(similarities[2], -hamming)
    np.testing.assert_allclose(similarities[1], -np.sqrt(hamming), atol=1e-5)  # the library adds 1e-6 to differences
    np.testing.assert_array_equal(similarities[3], ((embeddings[:20] > 0) & (embeddings[20:] > 0)).sum(1))


def test_what_has_no_correlation_is_an_input_error():
    with pytest.raises(InputError, match="1 of 3 sentences hold NaN or infinite"):
        encode_pairs(lambda sentences: np.array([[1.0], [np.nan], [2.0]]), ["a", "b"], ["b", "c"])
    with pytest.raises(InputError, match="1 of 3 sentences hold NaN or infinite"):
        encode_pairs(lambda sentences: np.array([[1.0], [np.inf], [2.0]]), ["a", "b"], ["b", "c"])
    noise = 1e-8 * np.random.default_rng(0).normal(size=(4, 8))  # a collapsed model: equal but for rounding
    collapsed = PairEmbeddings((1 + noise).astype(np.float32), np.array([0, 1]), np.array([2, 3]))
    with pytest.raises(InputError, match="all pairs have the same cosine similarity"):
        pair_similarities(collapsed)
    with pytest.raises(InputError, match="have 8 dimensions, --truncate_dims asks 9"):
        transform(collapsed, 9, "float32")
    with pytest.raises(InputError, match="f.tsv: one sentence pair"):
        check_gold(np.array([0.5]), "f.tsv")
    with pytest.raises(InputError, match="f.tsv: all 3 scores are 2.5"):
        check_gold(np.full(3, 0.5), "f.tsv")


@pytest.mark.parametrize("allocate", [torch.empty, np.empty, lambda size: [0] * size])
def test_every_library_s_lack_of_memory_is_known(allocate):
    with pytest.raises(Exception) as error:  # noqa: B017, PT011
        allocate(1 << 58)
    assert is_out_of_memory(error.value)
    assert not is_out_of_memory(RuntimeError("shape '[2, 3]' is invalid for input of size 5"))
