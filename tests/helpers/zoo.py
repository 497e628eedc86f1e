"""Tiny random models of many families, as their save_pretrained writes them, and their plain embeddings."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from scipy.stats import pearsonr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, processors
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from data_util import load_kor_sts
from in_process import run_here
from kf_deberta.model.onnx_encoder import OnnxEncoder

WIDE = 0.3  # standard deviation of the weights: at the usual 0.02 all sentences of a random model are nearly one
POSITIONS = 40
LENGTH = 16  # tokens, less than the longest sentences have
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": POSITIONS,
    "initializer_range": WIDE,
    "pad_token_id": 0,
}
DEBERTA = BERT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
DEBERTA_V2 = DEBERTA | {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True}
SMALL = {"initializer_range": WIDE, "pad_token_id": 0}

# class prefix in transformers and configuration
ENCODERS: dict[str, tuple[str, dict]] = {
    "bert": ("Bert", BERT),
    "electra": ("Electra", BERT | {"embedding_size": 8}),
    "albert": ("Albert", BERT | {"embedding_size": 8}),
    "roberta": ("Roberta", BERT),
    "xlm-roberta": ("XLMRoberta", BERT),
    "mpnet": ("MPNet", BERT),
    "distilbert": (
        "DistilBert",
        SMALL | {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": POSITIONS},
    ),
    "modernbert": ("ModernBert", BERT | {"num_hidden_layers": 2, "global_attn_every_n_layers": 2}),
    "deberta": ("Deberta", DEBERTA | {"max_relative_positions": 8}),
    "deberta-v2": ("DebertaV2", DEBERTA_V2),  # as kf-deberta
    "deberta-v2-conv": ("DebertaV2", DEBERTA_V2 | {"conv_kernel_size": 3, "conv_act": "gelu"}),  # as deberta-v2-xlarge
    "deberta-v2-plain": (
        "DebertaV2",
        BERT | {"relative_attention": False, "position_biased_input": True, "type_vocab_size": 2},
    ),
    "t5": (
        "T5",
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "pad_token_id": 0, "eos_token_id": 3},
    ),
    "gpt2": ("GPT2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": POSITIONS, "initializer_range": WIDE}),
}
# tokens that a sentence needs beside its own, and the most that the encoder takes (None: no limit)
SPECIAL = dict.fromkeys(ENCODERS, 2) | {"t5": 1, "gpt2": 0}
LIMITS = dict.fromkeys(ENCODERS, POSITIONS) | {"t5": None}
# they count positions from behind the row of their padding token: here 0, in MPNet always 1
LIMITS |= {"roberta": POSITIONS - 1, "xlm-roberta": POSITIONS - 1, "mpnet": POSITIONS - 2}


def tokenizer_of(toy_base: Path, special: int) -> PreTrainedTokenizerFast:
    """The toy base's pieces with [CLS] and [SEP] around a sentence (2), [SEP] behind it (1), or nothing (0)."""
    backend = Tokenizer.from_file(os.fspath(toy_base / "tokenizer.json"))
    template = {2: "[CLS] $A [SEP]", 1: "$A [SEP]", 0: "$A"}[special]
    ids = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    tokens = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    tokens = tokens | {"pad_token": "[PAD]"} if special else {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)


def write_encoder(name: str, toy_base: Path, path: Path) -> Path:
    """Write a plain encoder of a family of ENCODERS."""
    kind, options = ENCODERS[name]
    tokenizer = tokenizer_of(toy_base, SPECIAL[name])
    config = getattr(transformers, f"{kind}Config")(vocab_size=max(tokenizer.get_vocab().values()) + 1, **options)
    torch.manual_seed(0)
    model = (transformers.T5ForConditionalGeneration if kind == "T5" else getattr(transformers, f"{kind}Model"))(
        config
    )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def write_static(toy_base: Path, path: Path) -> Path:
    """Write a model of static embeddings."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(os.fspath(toy_base / "tokenizer.json"))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu").save_pretrained(
        os.fspath(path), create_model_card=False
    )
    return path


def plain_embeddings(path: Path, pool: Callable, length: int) -> Callable[[list[str]], torch.Tensor]:
    """A function that pools the token embeddings of plain transformers, one sentence at a time."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    config = transformers.AutoConfig.from_pretrained(path)
    kind = transformers.T5EncoderModel if config.model_type == "t5" else AutoModel
    encoder = kind.from_pretrained(path, dtype=torch.float32).eval()

    def embed(sentences: list[str]) -> torch.Tensor:
        rows = []
        for sentence in sentences:
            inputs = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=length)
            inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
            with torch.no_grad():
                rows.append(pool(encoder(**inputs).last_hidden_state[0]))
        return torch.stack(rows)

    return embed


def static_embeddings(path: Path) -> Callable[[list[str]], torch.Tensor]:
    """A function that averages rows of a static model's table by hand."""
    (folder,) = (file.parent for file in path.rglob("model.safetensors"))
    tokenizer = Tokenizer.from_file(os.fspath(folder / "tokenizer.json"))
    (table,) = load_file(folder / "model.safetensors").values()
    return lambda sentences: torch.stack(
        [table[tokenizer.encode(sentence, add_special_tokens=False).ids].mean(0) for sentence in sentences]
    )


def mean(path: Path) -> Callable[[list[str]], torch.Tensor]:
    """Mean token embeddings of plain transformers, over the LENGTH tokens that `drive` trains with."""
    return plain_embeddings(path, lambda tokens: tokens.mean(0), LENGTH)


def drive(path: Path, data: Path, folder: Path, capsys, plain: Callable = mean) -> None:
    """Train 2 rounds from `path`, benchmark, export and search; each result equals what plain(directory) embeds.

    A model without Transformer is refused by the export in one line.
    """
    runs = folder / "runs"
    train = ("training_sts.py", "--model_name_or_path", path, "--dataset_path", data, "--output_dir", runs)
    flags = ("--max_rounds", 2, "--max_seq_length", LENGTH, "--learning_rate", 1e-3)
    assert run_here(*train, *flags) == 0, capsys.readouterr().err
    (run,) = runs.iterdir()
    embed = plain(run)
    pairs = load_kor_sts(data / "KorSTS" / "sts-test.tsv")
    first, second = embed(pairs["sentence1"]), embed(pairs["sentence2"])
    expected = pearsonr(torch.cosine_similarity(first, second).numpy(), pairs["score"]).statistic
    facts = json.loads((run / "training_arguments.json").read_text())
    assert facts["test"]["cosine_pearson"] == pytest.approx(100 * expected, abs=5e-3)
    before = plain(path)
    before = torch.cosine_similarity(before(pairs["sentence1"]), before(pairs["sentence2"])).numpy()
    before = 100 * pearsonr(before, pairs["score"]).statistic
    assert facts["baseline"]["cosine_pearson"] == pytest.approx(before, abs=5e-3)
    assert facts["baseline"] != facts["test"]  # it did train

    export = ("bin/export_onnx.py", "--model_name_or_path", run, "--output_dir", folder / "onnx")
    status, error, graph = run_here(*export), capsys.readouterr().err, folder / "onnx" / f"{run.name}.onnx"
    models = [("--model_name_or_path", run)]
    if plain is mean:
        assert status == 0, error
        assert abs(OnnxEncoder(graph).encode(pairs["sentence1"]) - first.numpy()).max() < 1e-4
        models.append(("--onnx", graph))
    else:
        assert status == 2 and error.count("error: ") == 1 and "only a Transformer" in error.splitlines()[-1]

    output = folder / "results.json"
    benchmark = ("bin/benchmark.py", "--sts_dataset_path", data / "KorSTS", "--bootstrap", 0, "--output", output)
    assert run_here(*benchmark, "--model_name_or_path", *[m[1] for m in models]) == 0, capsys.readouterr().err
    for record in json.loads(output.read_text()):
        assert record["cosine_pearson"] == pytest.approx(expected, abs=5e-5), record["model"]

    corpus, query = ["은행에 돈을 맡긴다", "비가 온다"], "예금을 들었다"
    (folder / "corpus.txt").write_text("\n".join(corpus), encoding="utf-8")
    score = torch.cosine_similarity(embed([query]), embed(corpus)).tolist()
    for model in models:
        capsys.readouterr()
        assert run_here("bin/search.py", query, *model, "--corpus", folder / "corpus.txt") == 0
        shown = re.findall(r"^(.*) \(Score: (-?[\d.]+)\)$", capsys.readouterr().out, re.MULTILINE)
        assert {text: float(value) for text, value in shown} == pytest.approx(
            dict(zip(corpus, score, strict=True)), abs=1.1e-4
        )
