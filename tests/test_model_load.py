"""load_model on what the hub serves: weights in both formats, whole or in parts, and files that do not fit."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM

from kf_deberta.cli import InputError
from kf_deberta.model.load import load_model

SENTENCES = ["은행에 돈을 맡긴다", "비가 온다"]


def plain_means(encoder, path):
    """Mean token embeddings by plain transformers, one sentence at a time."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        return torch.stack(
            [encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in SENTENCES]
        )


@pytest.fixture(scope="module")
def masked(toy_base, tmp_path_factory):
    """A fill-mask checkpoint as kf-deberta-base is one: `deberta.` prefix, MLM head, safetensors here."""
    path = tmp_path_factory.mktemp("masked") / "base"
    torch.manual_seed(1)
    AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(toy_base)).save_pretrained(path)
    AutoTokenizer.from_pretrained(toy_base).save_pretrained(path)
    return path


@pytest.fixture
def variant(masked, tmp_path):
    """A function that writes a copy of `masked` with other weights: variant(state, sharded, pickled)."""

    def write(state: dict, *, sharded: bool = False, pickled: bool = False):
        path = tmp_path / "variant"
        shutil.copytree(masked, path, ignore=shutil.ignore_patterns("*.safetensors"))
        stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
        parts = [dict(list(state.items())[i::3]) for i in range(3)] if sharded else [state]
        names = [f"{stem}-{i + 1:05}-of-00003.{suffix}" if sharded else f"{stem}.{suffix}" for i in range(len(parts))]
        for name, part in zip(names, parts, strict=True):
            torch.save(part, path / name) if pickled else save_file(part, path / name, {"format": "pt"})
        if sharded:
            index = {key: name for name, part in zip(names, parts, strict=True) for key in part}
            text = json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
            (path / f"{stem}.{suffix}.index.json").write_text(text)
        return path

    return write


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("pickled", [False, True])
def test_both_formats_whole_and_sharded_equal_plain_transformers(masked, variant, sharded, pickled, capfd):
    state = load_file(masked / "model.safetensors")
    path = variant(state, sharded=sharded, pickled=pickled)
    model = load_model(str(path), device="cpu")
    expected = plain_means(AutoModel.from_pretrained(masked).eval(), masked)
    capfd.readouterr()
    got = load_model(str(path), device="cpu").encode(SENTENCES, convert_to_tensor=True)
    assert torch.allclose(got, expected, atol=1e-5)
    output = "".join(capfd.readouterr())
    assert "UNEXPECTED" not in output and "cls." not in output  # no table of the unused MLM head
    saved = path / "saved"
    model.save_pretrained(str(saved))
    assert (saved / "model.safetensors").is_file() and not list(saved.rglob("*.bin"))


class RunsCode:
    """Pickled, this creates a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused(masked, variant, tmp_path, legacy):
    state = {**load_file(masked / "model.safetensors"), "code": RunsCode(tmp_path / "made")}
    path = variant({}, pickled=True)
    torch.save(state, path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match="variant: its pickled weights hold more than tensors.*refused") as refused:
        load_model(str(path), device="cpu")
    assert "\n" not in str(refused.value) and not (tmp_path / "made").exists()
    torch.load(path / "pytorch_model.bin", weights_only=False)["code"].close()  # it does run code
    assert (tmp_path / "made").exists()
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(RunsCode(tmp_path / "second")))
    with pytest.raises(InputError):
        load_model(str(path), device="cpu")
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda key: f"module.{key}", r"38 of the encoder's 38 weights are not in its file.*: embeddings\.LayerNorm"),
        (lambda key: None if ".layer.1." in key else key, r"16 of the encoder's 38 weights.*: encoder\.layer\.1\."),
        (
            lambda key: None if key.endswith("rel_embeddings.weight") else key,
            r"1 of .*: encoder\.rel_embeddings\.w",
        ),
    ],
)
def test_missing_encoder_weights_are_an_error(masked, variant, change, message, sharded, pickled):
    state = {change(key): value for key, value in load_file(masked / "model.safetensors").items() if change(key)}
    with pytest.raises(InputError, match=message) as refused:
        load_model(str(variant(state, sharded=sharded, pickled=pickled)), device="cpu")
    assert str(refused.value).count(".weight") + str(refused.value).count(".bias") <= 3


@pytest.mark.parametrize("pickled", [False, True])
def test_another_shape_is_an_error(masked, variant, pickled):
    state = load_file(masked / "model.safetensors")
    key = "deberta.encoder.layer.0.output.dense.weight"
    state[key] = state[key][:-1].clone()
    with pytest.raises(InputError, match=r"1 weights have another shape.*layer\.0\.output\.dense\.weight: \[31, "):
        load_model(str(variant(state, pickled=pickled)), device="cpu")


def test_a_pooler_that_the_embedding_never_uses_may_be_missing(toy_base, tmp_path):
    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=2000, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    masked = BertForMaskedLM(config)
    masked.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(toy_base).save_pretrained(tmp_path)
    got = load_model(str(tmp_path), device="cpu").encode(SENTENCES, convert_to_tensor=True)
    assert torch.allclose(got, plain_means(masked.bert.eval(), tmp_path), atol=1e-5)


def test_a_directory_without_weights_is_one_line(masked, variant):
    path = variant({}, pickled=True)
    (path / "pytorch_model.bin").rename(path / "tf_model.h5")
    with pytest.raises(InputError, match=r"no \.safetensors weights and no pytorch_model\.bin"):
        load_model(str(path), device="cpu")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("owner/model", "models--owner--model"),
        ("no-owner", "models--sentence-transformers--no-owner"),  # where the library looks for it
        ("bert-base-multilingual-cased", "models--bert-base-multilingual-cased"),  # older than owners
    ],
)
@pytest.mark.parametrize("library", [True, False])
def test_cached_names_are_found_where_the_library_puts_them(masked, tmp_path, monkeypatch, name, folder, library):
    if library:
        monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path))
    else:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(masked, tmp_path / folder / "snapshots" / commit)
    (tmp_path / folder / "refs").mkdir()
    (tmp_path / folder / "refs" / "main").write_text(commit)
    model = load_model(name, device="cpu")
    assert model.revision == commit
    expected = plain_means(AutoModel.from_pretrained(masked).eval(), masked)
    assert torch.allclose(model.encode(SENTENCES, convert_to_tensor=True), expected, atol=1e-5)


@pytest.mark.parametrize("place", ["SentenceTransformer", "SentenceTransformer.preprocess"])
def test_out_of_memory_is_no_fault_of_the_model(toy_base, monkeypatch, place):
    def run_out(*args, **kwargs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(f"kf_deberta.model.load.{place}", run_out)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_model(str(toy_base))


@pytest.mark.parametrize("length", [1, 2, True, 12.5, "abc", [5]])
def test_a_length_that_leaves_no_room_for_a_word_is_refused(toy_base, tmp_path, length):
    from kf_deberta.model.save import save_model

    save_model(load_model(str(toy_base), device="cpu"), tmp_path / "model")
    file = tmp_path / "model" / "sentence_bert_config.json"
    file.write_text(json.dumps({"max_seq_length": length, "do_lower_case": False}))
    with pytest.raises(InputError, match="model: (max_seq_length .* in its files; correct it to 3|cannot be loaded)"):
        load_model(str(tmp_path / "model"), device="cpu")


def test_names_are_checked_as_the_hub_checks_them():
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from kf_deberta.cli import is_hub_name

    accepted = []
    for name in (
        "owner/model",
        "klue-base",
        "a.b/c_d",
        "-a",
        "a-",
        "a--b",
        "a..b",
        "a/b.git",
        "a/b/c",
        "../x",
        "x" * 97,
        "한글",
        "",
    ):
        try:
            validate_repo_id(name)
            valid = True
        except HFValidationError:
            valid = False
        assert is_hub_name(name) == valid, name
        accepted += [name] * valid
    assert accepted == ["owner/model", "klue-base", "a.b/c_d"]
