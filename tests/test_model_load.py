"""load_model: the Korean families in use equal plain transformers; files that do not fit are refused in one line."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer
from torch.nn.functional import normalize
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import zoo
from kf_deberta.errors import InputError
from kf_deberta.model.load import check_no_prompt, check_vocabulary, describe, load_model
from zoo import SENTENCES, RunsCode, embed, refused

LONG = "은행에 돈을 맡긴다 " * 60


def edit(path, **values):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


@pytest.fixture(scope="module")
def bert(toy_base, tmp_path_factory):
    return zoo.write_encoder("bert", toy_base, tmp_path_factory.mktemp("bert") / "bert")


@pytest.fixture(scope="module")
def masked(toy_base, tmp_path_factory):
    """A fill-mask checkpoint as kf-deberta-base is one: `deberta.` prefix and a head, here as safetensors."""
    return zoo.write_encoder("deberta", toy_base, tmp_path_factory.mktemp("masked") / "base", "ForMaskedLM")


@pytest.mark.parametrize("name", zoo.ENCODERS)
def test_a_family_equals_plain_transformers(name, toy_base, tmp_path):
    path, limit = zoo.write_encoder(name, toy_base, tmp_path / name), zoo.ENCODERS[name][2]
    model = load_model(str(path), device="cpu")
    assert model.max_seq_length == limit and model.revision is None
    texts = [*SENTENCES, LONG]
    got = model.encode(texts, convert_to_tensor=True)
    assert torch.allclose(got, zoo.plain_means(path, texts, limit), atol=1e-5)
    assert not torch.allclose(got[0], got[1], atol=1e-2)
    short = embed(path, texts, max_seq_length=3)
    assert torch.allclose(short, zoo.plain_means(path, texts, 3), atol=1e-5)
    for length in (2, limit + 1):
        refused(path, rf"--max_seq_length {length}; it takes 3 to {limit} tokens", max_seq_length=length)


def test_pooling_normalize_and_prompt(bert, tmp_path):
    cls = torch.stack([tokens[0] for tokens in zoo.plain_tokens(bert, SENTENCES)])
    assert torch.allclose(embed(bert, pooling="cls"), cls, atol=1e-5)
    model = load_model(str(bert), device="cpu", pooling="cls", normalize=True, prompt="질문: ")
    assert torch.allclose(model.encode(SENTENCES, prompt="", convert_to_tensor=True), normalize(cls), atol=1e-5)
    asked = [tokens[0] for tokens in zoo.plain_tokens(bert, [f"질문: {text}" for text in SENTENCES])]
    expected = normalize(torch.stack(asked))
    assert torch.allclose(model.encode(SENTENCES, convert_to_tensor=True), expected, atol=1e-5)
    assert describe(model) == "cls pooling, prompt '질문: '"
    model.save_pretrained(str(tmp_path))
    again = load_model(str(tmp_path), device="cpu", normalize=True)
    assert len(again) == 3 and torch.allclose(again.encode(SENTENCES, convert_to_tensor=True), expected, atol=1e-5)
    with pytest.raises(InputError, match="it puts '질문: ' before every sentence"):
        check_no_prompt(again, "model")
    check_no_prompt(load_model(str(tmp_path), device="cpu", prompt=""), "model")
    refused(tmp_path, "its own pooling is cls; omit --pooling mean", pooling="mean")


def copy(masked, folder, state, pickled=False):
    shutil.copytree(masked, path := folder / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    write, file = (torch.save, "pytorch_model.bin") if pickled else (save_file, "model.safetensors")
    write(state, path / file)
    return path


@pytest.mark.parametrize("pickled", [False, True])
def test_half_precision_weights_of_a_checkpoint_with_a_head_are_loaded_as_float32(masked, tmp_path, pickled, capfd):
    state = {key: value.half() for key, value in load_file(masked / "model.safetensors").items()}
    path = copy(masked, tmp_path, state, pickled)
    edit(path / "config.json", dtype="float16")
    model = load_model(str(path), device="cpu")
    assert model.dtype is torch.float32
    got = model.encode(SENTENCES, convert_to_tensor=True)
    assert torch.allclose(got, zoo.plain_means(masked, SENTENCES), atol=1e-2)
    assert capfd.readouterr().err == f"loading {path}\n"  # no table of the head that is not used


LAYER = "deberta.encoder.layer.0."


SPOILED = [
    (lambda state: {f"module.{key}": value for key, value in state.items()}, r"22 of 22 weights .*embeddings"),
    (lambda state: {k: v for k, v in state.items() if LAYER not in k}, r"16 of 22 weights .*encoder\.layer\.0"),
    (lambda state: {k: v for k, v in state.items() if "rel_emb" not in k}, r"1 of 22 weights .*rel_embeddings"),
    (lambda state: state | {f"{LAYER}output.dense.bias": torch.ones(15)}, r"has shape \[15\], not \[16\]"),
    (lambda state: state | {f"{LAYER}output.dense.bias": torch.full((16,), torch.nan)}, "contain NaN"),
]


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize(("change", "message"), SPOILED)
def test_weights_missing_misshapen_or_not_finite(masked, tmp_path, change, message, pickled):
    state = load_file(masked / "model.safetensors")
    refused(copy(masked, tmp_path, change(state), pickled), message)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused(masked, tmp_path, legacy):
    path, made = copy(masked, tmp_path, {}, pickled=True), tmp_path / "made"
    state = load_file(masked / "model.safetensors") | {"code": RunsCode(made)}
    torch.save(state, path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    refused(path, "copy: its pickled weights contain more than tensors, which would run code; use safetensors")
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(RunsCode(made)))
    refused(path, "copy: ")
    assert not made.exists()
    pickle.loads((path / "pytorch_model.bin").read_bytes()).close()  # it does run code
    assert made.exists()


def test_other_kinds_of_models_are_refused_and_a_pooler_may_be_missing(toy_base, bert, tmp_path):
    AutoModelForSequenceClassification.from_pretrained(bert, num_labels=1).save_pretrained(tmp_path / "ce")
    AutoTokenizer.from_pretrained(toy_base).save_pretrained(tmp_path / "ce")
    refused(tmp_path / "ce", "BertForSequenceClassification gives no sentence embeddings")
    mlm = zoo.write_encoder("bert", toy_base, tmp_path / "mlm", "ForMaskedLM")
    assert torch.allclose(
        embed(mlm), zoo.plain_means(mlm, SENTENCES), atol=1e-5
    )  # without a pooler, which is not used
    for kind in (CrossEncoder, SparseEncoder, MultiVectorEncoder):
        path = tmp_path / kind.__name__
        base = mlm if kind is SparseEncoder else bert
        kind(str(base), device="cpu").save_pretrained(str(path))
        refused(path, f"{kind.__name__} gives no sentence embeddings")
        (path / "config_sentence_transformers.json").unlink()  # as older versions saved it
        refused(path, "gives no sentence embeddings")
    SentenceTransformer(modules=[Transformer(str(bert))], device="cpu").save_pretrained(str(tmp_path / "unpooled"))
    refused(tmp_path / "unpooled", "unpooled: cannot be loaded as a sentence-embedding model .*sentence_embedding")


def test_code_in_the_repository_is_never_run(bert, tmp_path):
    """As jina-embeddings-v2 (a known model_type with code beside it) and monologg/kobert (a tokenizer) do."""
    for file in ("config.json", "tokenizer_config.json"):
        shutil.copytree(bert, path := tmp_path / f"of-{file}")
        edit(path / file, auto_map={"AutoModel": "owner/other-repository--modeling.JinaBertModel"})
        refused(path, "auto_map in its files names Python code, which is never run here; delete auto_map")


def test_files_that_are_no_model(bert, tmp_path):
    refused(tmp_path, "cannot be loaded as a sentence-embedding model .*config.json")
    shutil.copytree(bert, path := tmp_path / "copy")
    (path / "model.safetensors").unlink()
    for file in ("pytorch_model.bin", "model.safetensors"):
        (path / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        refused(path, f"copy: {file} is a pointer of git-lfs, not the file itself; run git lfs pull")
        (path / file).unlink()
    refused(path, "copy: cannot be loaded .*no file named model.safetensors")
    shutil.copy(bert / "model.safetensors", path)
    (path / "tokenizer.json").unlink()
    refused(path, "copy: no usable tokenizer; save the base's tokenizer files")
    shutil.copy(bert / "tokenizer.json", path)
    tokenizer = Tokenizer.from_file(str(bert / "tokenizer.json"))
    tokenizer.add_tokens(["새말"])
    tokenizer.save(str(path / "tokenizer.json"))
    rows = tokenizer.get_vocab_size() - 1
    refused(path, rf"its tokenizer has ids up to {rows}, its embeddings {rows} rows")


def test_modules_in_other_orders_and_static_embeddings(toy_base, bert, tmp_path):
    encoder, mean = Transformer(str(bert)), Pooling(16)
    static = StaticEmbedding(Tokenizer.from_file(str(toy_base / "tokenizer.json")), embedding_dim=16)
    for modules in [encoder, mean, Dense(16, 8), Normalize()], [encoder, Normalize(), mean], [static]:
        model = SentenceTransformer(modules=modules, device="cpu")
        model.save_pretrained(path := str(tmp_path / str(len(modules))))
        assert torch.allclose(embed(path, LONG), model.encode(LONG, convert_to_tensor=True), atol=1e-6)
    check_vocabulary(model, ["☃"], "static")


def test_the_share_of_unknown_tokens(bert, capsys):
    model = load_model(str(bert), device="cpu")
    unknown, known = ["☃ ☃ ☃"] * 50, ["비 가 온 다"] * 50
    check_vocabulary(model, known, "model")
    assert capsys.readouterr().err == f"loading {bert}\n"
    check_vocabulary(model, known + unknown[:10], "model")
    assert "model: 13% of the tokens of these texts are unknown to its tokenizer" in capsys.readouterr().err
    with pytest.raises(InputError, match="model: 60% of the tokens of these texts .*; use a model for this language"):
        check_vocabulary(model, known[:25] + unknown, "model")


def test_device_and_memory_are_no_fault_of_the_model(bert, monkeypatch):
    for device in ["meta", "nonsense"] + ["cuda"] * (not torch.cuda.is_available()):
        refused(bert, rf"^--device {device}: cannot be used here \(.*\); omit it$", device=device)

    def run_out(*args, **kwargs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(AutoModel, "from_pretrained", run_out)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_model(str(bert))
