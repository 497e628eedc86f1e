"""The sample corpus keeps its promises (size, spread, labels, no leakage), and its base is what it claims to be."""

import itertools
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertTokenizer, DebertaV2Model

from build_base import build_base, read_training_texts, train_vocabulary
from data_util import find_kor_nli_train_files, load_kor_nli, load_kor_sts
from kf_deberta.errors import InputError

SPLITS = ("train", "dev", "test")
LABELS = {"entailment", "neutral", "contradiction"}
# kakaobank/kf-deberta-base's config.json, less the sizes that build_base reduces
KF_DEBERTA_OPTIONS = {
    "model_type": "deberta-v2",
    "max_position_embeddings": 512,
    "max_relative_positions": -1,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "conv_kernel_size": 0,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a TSV file with nothing but str methods, independently of data_util."""
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == "", "the file ends with a newline"
    header = lines[0].split("\t")
    assert all(line.count("\t") == len(header) - 1 and "\r" not in line for line in lines)
    return [dict(zip(header, line.split("\t"), strict=True)) for line in lines[1:]]


def normalize(sentence: str) -> str:
    """Drop what does not make another sentence: spaces, punctuation, letter case."""
    return re.sub(r"[\W_]", "", sentence).lower()


@pytest.fixture(scope="module")
def sts(repo) -> dict[str, list[dict[str, str]]]:
    return {split: read_rows(repo / "sample" / "KorSTS" / f"sts-{split}.tsv") for split in SPLITS}


@pytest.fixture(scope="module")
def nli(repo) -> list[dict[str, str]]:
    return read_rows(repo / "sample" / "KorNLI" / "sample.train.ko.tsv")


def sentences(rows: list[dict[str, str]]) -> set[str]:
    return {normalize(row[column]) for row in rows for column in ("sentence1", "sentence2")}


def test_columns_are_the_official_ones(sts, nli):
    for rows in sts.values():
        assert list(rows[0]) == ["genre", "filename", "year", "id", "score", "sentence1", "sentence2"]
    assert list(nli[0]) == ["sentence1", "sentence2", "gold_label"]


def test_every_sentence_is_clean_korean(sts, nli):
    for row in itertools.chain(nli, *sts.values()):
        for sentence in (row["sentence1"], row["sentence2"]):
            assert re.search("[가-힣]", sentence) and sentence == " ".join(sentence.split())


def test_sts_size_and_score_spread(sts):
    assert sum(map(len, sts.values())) >= 400
    for split, rows in sts.items():
        assert all(re.fullmatch(r"[0-5]\.\d{3}", row["score"]) and float(row["score"]) <= 5 for row in rows)
        bands = Counter(min(int(float(row["score"])), 4) for row in rows)
        assert all(bands[band] >= 0.08 * len(rows) for band in range(5)), (split, bands)


def test_nli_has_one_hypothesis_a_label_for_each_premise(nli):
    hypotheses = defaultdict(dict)
    for row in nli:
        assert row["gold_label"] not in hypotheses[row["sentence1"]]
        hypotheses[row["sentence1"]][row["gold_label"]] = row["sentence2"]
    assert len(hypotheses) >= 200
    assert all(set(by_label) == LABELS for by_label in hypotheses.values())


def test_no_sentence_is_repeated(sts, nli):
    premises = {row["sentence1"] for row in nli}
    for texts in ([row["sentence2"] for row in nli] + list(premises), *(pair_list(rows) for rows in sts.values())):
        repeated = [text for text, count in Counter(map(normalize, texts)).items() if count > 1]
        assert not repeated


def pair_list(rows: list[dict[str, str]]) -> list[str]:
    return [normalize(row["sentence1"]) + "/" + normalize(row["sentence2"]) for row in rows]


def test_no_sentence_is_in_two_splits(sts, nli):
    parts = {split: sentences(rows) for split, rows in sts.items()}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not parts[one] & parts[other], (one, other)
    assert not sentences(nli) & (parts["dev"] | parts["test"])


def test_the_loaders_read_every_row(repo, sts, nli):
    for split, rows in sts.items():
        dataset = load_kor_sts(repo / "sample" / "KorSTS" / f"sts-{split}.tsv")
        assert dataset["sentence2"][:] == [row["sentence2"] for row in rows]
        assert dataset["score"][:] == pytest.approx([float(row["score"]) / 5 for row in rows])
    triplets = load_kor_nli(find_kor_nli_train_files(repo / "sample"), seed=0)
    by_premise = defaultdict(dict)
    for row in nli:
        by_premise[row["sentence1"]][row["gold_label"]] = row["sentence2"]
    expected = {(premise, by["entailment"], by["contradiction"]) for premise, by in by_premise.items()}
    expected |= {(entailed, premise, contradicting) for premise, entailed, contradicting in expected}
    assert {tuple(row.values()) for row in triplets} == expected
    assert len(triplets) == 2 * len(by_premise)


def test_the_base_learns_its_vocabulary_from_training_text_only(sts, nli):
    expected = [row[column] for row in nli + sts["train"] for column in ("sentence1", "sentence2")]
    assert sorted(read_training_texts()) == sorted(expected)


@pytest.fixture(scope="module")
def builds(run_script, tmp_path_factory) -> list[Path]:
    """The base of the command line, built by two processes that hash strings differently, in a fresh directory."""
    folder = tmp_path_factory.mktemp("builds")
    for seed in ("1", "2"):
        arguments = ["--output_dir", f"새 폴더/base-{seed}"]
        run_script("sample/build_base.py", *arguments, env={"PYTHONHASHSEED": seed}, cwd=folder, check=True)
    return [folder / "새 폴더" / f"base-{seed}" for seed in ("1", "2")]


def test_build_is_the_same_bytes_in_every_process(builds):
    first, second = ({path.name: path.read_bytes() for path in build.iterdir()} for build in builds)
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(first)
    assert first == second
    assert {path.name for path in builds[0].parent.iterdir()} == {"base-1", "base-2"}  # no temporary directory left


def test_base_has_the_options_of_kf_deberta_base(builds):
    config = json.loads((builds[0] / "config.json").read_text(encoding="utf-8"))
    assert {name: config.get(name) for name in KF_DEBERTA_OPTIONS} == KF_DEBERTA_OPTIONS
    model = AutoModel.from_pretrained(builds[0])
    assert isinstance(model, DebertaV2Model) and model.dtype == torch.float32
    names = dict(model.named_parameters())
    assert "embeddings.position_embeddings.weight" not in names and "encoder.LayerNorm.weight" in names
    assert not any("pos_key_proj" in name or "pos_query_proj" in name for name in names)  # share_att_key


def test_tokenizer_keeps_case_and_knows_the_training_text(builds):
    tokenizer = AutoTokenizer.from_pretrained(builds[0])
    assert type(tokenizer).__name__ == "BertTokenizer" and tokenizer.do_lower_case is False
    assert tokenizer.decode(tokenizer("ATM에서 OTP로 ok", add_special_tokens=False).input_ids) == "ATM에서 OTP로 ok"
    assert tokenizer.unk_token_id not in itertools.chain(*tokenizer(read_training_texts()).input_ids)
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


def test_seed_decides_the_weights_and_the_callers_random_state_is_kept(tmp_path):
    texts = ["예금 금리가 올랐다.", "대출을 갚았다."]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    weights = [
        AutoModel.from_pretrained(build_base(tmp_path / str(seed), texts, hidden_size=8, seed=seed)).embeddings
        for seed in (1, 2)
    ]
    assert torch.rand(1) == expected
    assert not torch.equal(*(embeddings.word_embeddings.weight for embeddings in weights))


def test_vocabulary_is_bounded_and_covers_unseen_words_of_known_characters():
    texts = read_training_texts()
    assert len(train_vocabulary(texts, 3500)) == 3500
    vocabulary = train_vocabulary(["예금 금리"], 1)
    assert {"예", "##예", "금", "##금", "리", "##리", "a", "##a"} <= set(vocabulary)


def test_what_cannot_be_built_is_one_line_and_leaves_everything_as_it_was(builds, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in builds[0].iterdir()}
    with pytest.raises(InputError, match="base-1: exists already"):
        build_base(builds[0])
    assert {path.name: path.read_bytes() for path in builds[0].iterdir()} == before

    def full(*_, **__):
        raise Exception("No space left on device (os error 28)")  # tokenizers has no type of its own

    monkeypatch.setattr(BertTokenizer, "save_pretrained", full)
    with pytest.raises(InputError, match=r"base: cannot be written \(No space left on device .*; free space"):
        build_base(tmp_path / "base", ["예금"], hidden_size=8)
    assert list(tmp_path.iterdir()) == []
