"""The sample corpus keeps its promises (size, spread, labels, no leakage), and its base is what it claims to be."""

import itertools
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertTokenizer, DebertaV2Model

from build_base import SAMPLE_DIR, build_base, read_training_texts, train_vocabulary
from data_util import find_kor_nli_train_files, load_kor_nli, load_kor_sts
from kf_deberta.errors import InputError

# kakaobank/kf-deberta-base's config.json, less the sizes that build_base reduces
KF_DEBERTA_OPTIONS = """
    {"model_type": "deberta-v2", "max_position_embeddings": 512, "max_relative_positions": -1,
     "relative_attention": true, "pos_att_type": ["p2c", "c2p"], "share_att_key": true, "norm_rel_ebd": "layer_norm",
     "conv_kernel_size": 0, "position_biased_input": false, "type_vocab_size": 0, "layer_norm_eps": 1e-7,
     "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
"""


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a TSV file with nothing but str methods, independently of data_util."""
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == "", "the file ends with a newline"
    header = lines[0].split("\t")
    assert all(line.count("\t") == len(header) - 1 and "\r" not in line for line in lines)
    return [dict(zip(header, line.split("\t"), strict=True)) for line in lines[1:]]


STS = {split: read_rows(SAMPLE_DIR / "KorSTS" / f"sts-{split}.tsv") for split in ("train", "dev", "test")}
NLI = read_rows(SAMPLE_DIR / "KorNLI" / "sample.train.ko.tsv")


def normalize(sentence: str) -> str:
    """Drop what does not make another sentence: spaces, punctuation, letter case."""
    return re.sub(r"[\W_]", "", sentence).lower()


def sentences(rows: list[dict[str, str]]) -> list[str]:
    return [row[column] for row in rows for column in ("sentence1", "sentence2")]


def test_every_row_is_as_the_official_files_have_them():
    assert list(NLI[0]) == ["sentence1", "sentence2", "gold_label"]
    for rows in STS.values():
        assert list(rows[0]) == ["genre", "filename", "year", "id", "score", "sentence1", "sentence2"]
        assert all(re.fullmatch(r"[0-5]\.\d{3}", row["score"]) and float(row["score"]) <= 5 for row in rows)
    for sentence in sentences([*NLI, *itertools.chain(*STS.values())]):
        assert re.search("[가-힣]", sentence) and sentence == " ".join(sentence.split())


def test_nothing_is_repeated_and_no_sentence_is_in_two_splits():
    pairs = [(normalize(row["sentence1"]), normalize(row["sentence2"])) for rows in STS.values() for row in rows]
    texts = map(normalize, [row["sentence2"] for row in NLI] + list({row["sentence1"] for row in NLI}))
    assert max(Counter(pairs).values()) == max(Counter(texts).values()) == 1
    parts = {split: set(map(normalize, sentences(rows))) for split, rows in (STS | {"nli": NLI}).items()}
    for one, other in itertools.combinations(parts, 2):
        assert not parts[one] & parts[other] or {one, other} == {"train", "nli"}, (one, other)


def test_the_loaders_read_every_row():
    for split, rows in STS.items():
        dataset = load_kor_sts(SAMPLE_DIR / "KorSTS" / f"sts-{split}.tsv")
        assert dataset["sentence2"][:] == [row["sentence2"] for row in rows]
        assert dataset["score"][:] == pytest.approx([float(row["score"]) / 5 for row in rows])
    by_premise = defaultdict(dict)
    for row in NLI:
        by_premise[row["sentence1"]][row["gold_label"]] = row["sentence2"]
    expected = {(premise, by["entailment"], by["contradiction"]) for premise, by in by_premise.items()}
    expected |= {(entailed, premise, contradicting) for premise, entailed, contradicting in expected}
    triplets = load_kor_nli(find_kor_nli_train_files(SAMPLE_DIR), seed=0)
    assert {tuple(row.values()) for row in triplets} == expected and len(triplets) == len(expected)


@pytest.fixture(scope="module")
def built(run_script, tmp_path_factory) -> Path:
    """The base of the command line, in a fresh directory, built by a process that hashes strings in its own way."""
    folder = tmp_path_factory.mktemp("builds")
    run_script(
        "sample/build_base.py", "--output_dir", "새 폴더/base", env={"PYTHONHASHSEED": "1"}, cwd=folder, check=True
    )
    return folder / "새 폴더" / "base"


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_build_is_the_same_bytes_in_every_process_and_leaves_the_callers_random_state(built, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert bytes_of(build_base(tmp_path / "base")) == bytes_of(built) and torch.rand(1) == expected
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(bytes_of(built))
    assert list(built.parent.iterdir()) == [built]  # no temporary directory left
    weights = [build_base(tmp_path / str(seed), ["예금 금리"], hidden_size=8, seed=seed) for seed in (1, 2)]
    assert len({bytes_of(folder)["model.safetensors"] for folder in weights}) == 2


def test_base_has_the_options_of_kf_deberta_base(built):
    config = json.loads((built / "config.json").read_text(encoding="utf-8"))
    assert config | json.loads(KF_DEBERTA_OPTIONS) == config
    model = AutoModel.from_pretrained(built)
    assert isinstance(model, DebertaV2Model) and model.dtype == torch.float32
    names = dict(model.named_parameters())
    assert "embeddings.position_embeddings.weight" not in names and "encoder.LayerNorm.weight" in names
    assert not any("pos_key_proj" in name or "pos_query_proj" in name for name in names)  # share_att_key


def test_vocabulary_is_of_the_training_text_only_and_covers_unseen_words_of_its_characters(built):
    texts = read_training_texts()
    assert sorted(texts) == sorted(sentences(NLI + STS["train"]))
    tokenizer = AutoTokenizer.from_pretrained(built)
    assert type(tokenizer).__name__ == "BertTokenizer" and tokenizer.do_lower_case is False
    assert tokenizer.decode(tokenizer("ATM에서 OTP로 ok", add_special_tokens=False).input_ids) == "ATM에서 OTP로 ok"
    assert tokenizer.unk_token_id not in itertools.chain(*tokenizer(texts).input_ids)
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert len(train_vocabulary(texts, 3500)) == 3500
    assert {"예", "##예", "금", "##금", "리", "##리", "a", "##a"} <= set(train_vocabulary(["예금 금리"], 1))


def test_what_cannot_be_built_is_one_line_and_leaves_everything_as_it_was(built, tmp_path, monkeypatch):
    before = bytes_of(built)
    with pytest.raises(InputError, match="base: exists already"):
        build_base(built)
    assert bytes_of(built) == before

    def full(*_, **__):
        raise Exception("No space left on device (os error 28)")  # tokenizers has no type of its own

    monkeypatch.setattr(BertTokenizer, "save_pretrained", full)
    with pytest.raises(InputError, match=r"base: cannot be written \(No space left on device .*; free space"):
        build_base(tmp_path / "base", ["예금"], hidden_size=8)
    assert list(tmp_path.iterdir()) == []
