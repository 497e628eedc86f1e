"""Small random models in the file layouts that the hub really serves: one function for each repository."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2Model,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)

from build_base import read_training_texts, train_vocabulary

BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
ROBERTA = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
DEBERTA = {  # kakaobank/kf-deberta-base's config.json at a small size
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "relative_attention": True,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "conv_kernel_size": 0,
    "pad_token_id": 0,
    "pooler_dropout": 0,
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def vocabulary(special: dict[str, str], size: int | None = None) -> list[str]:
    """Pieces of the sample corpus after the special ones, filled up to `size` with pieces that no text has."""
    pieces = [piece for piece in train_vocabulary(read_training_texts(), 1200) if piece not in BERT.values()]
    pieces = [*special.values(), *sorted(pieces)]
    return pieces + [f"[unused{number}]" for number in range(len(pieces), size or 0)]


def write_tokenizer(folder: Path, special: dict[str, str], pieces: list[str], files: str) -> None:
    """Write tokenizer_config.json, special_tokens_map.json and of `files` "json", "txt" what is named."""
    config = special | {"do_lower_case": False, "model_max_length": 512, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    if "txt" in files:
        (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    if "json" in files:
        ids = {piece: number for number, piece in enumerate(pieces)}
        tokenizer = Tokenizer(models.WordPiece(ids, unk_token=special["unk_token"]))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        cls, sep = ((special[name], ids[special[name]]) for name in ("cls_token", "sep_token"))
        tokenizer.post_processor = processors.BertProcessing(sep, cls)
        tokenizer.add_special_tokens(list(special.values()))
        tokenizer.save(str(folder / "tokenizer.json"))


def write_weights(folder: Path, state: dict[str, torch.Tensor], files: str) -> None:
    """Write pytorch_model.bin ("bin" in `files`) and model.safetensors ("safetensors" in `files`)."""
    if "bin" in files:
        torch.save(state, folder / "pytorch_model.bin")
    if "safetensors" in files:
        save_file(
            {name: value.clone() for name, value in state.items()}, folder / "model.safetensors", {"format": "pt"}
        )


def write_modules(folder: Path, max_seq_length: int = 128) -> None:
    """Write the files of a sentence-transformers 2.x model: class paths, mean pooling, figures."""
    types = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"]
    paths = ["", "1_Pooling"]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": kind}
        for n, (path, kind) in enumerate(zip(paths, types, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    settings = {"max_seq_length": max_seq_length, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    versions = {"sentence_transformers": "2.2.2", "transformers": "4.36.2", "pytorch": "2.1.2"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"__version__": versions}))
    size = json.loads((folder / "config.json").read_text())["hidden_size"]
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    pooling = {"word_embedding_dimension": size} | {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in modes}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "eval").mkdir()
    (folder / "eval" / "similarity_evaluation_sts-dev_results.csv").write_text(
        "epoch,steps,cosine_pearson\n0,-1,0.8\n"
    )
    (folder / "similarity_evaluation_sts-test_results.csv").write_text("epoch,steps,cosine_pearson\n-1,-1,0.8\n")
    (folder / "README.md").write_text("---\npipeline_tag: sentence-similarity\n---\n# a model\n")


def kf_deberta_base(folder: Path, vocab_size: int | None = None) -> Path:
    """kakaobank/kf-deberta-base: pytorch_model.bin only, a fill-mask checkpoint, both tokenizer files."""
    folder.mkdir(parents=True)
    pieces = vocabulary(BERT, vocab_size)
    torch.manual_seed(0)
    model = DebertaV2ForMaskedLM(DebertaV2Config(vocab_size=len(pieces), **DEBERTA))
    config = {"model_type": "deberta-v2", "architectures": ["DebertaV2ForMaskedLM"], "vocab_size": len(pieces)}
    (folder / "config.json").write_text(json.dumps(DEBERTA | config))
    assert {name.split(".")[0] for name in model.state_dict()} == {"deberta", "cls"}
    write_weights(folder, model.state_dict(), "bin")
    write_tokenizer(folder, BERT, pieces, "json txt")
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: ko\n---\n# KF-DeBERTa\n")
    return folder


def kf_deberta_multitask(folder: Path, weights: str = "safetensors") -> Path:
    """upskyy/kf-deberta-multitask: a 2.x model of a DebertaV2 encoder; `weights` is "bin", "safetensors" or both."""
    folder.mkdir(parents=True)
    pieces = vocabulary(BERT)
    torch.manual_seed(1)
    model = DebertaV2Model(DebertaV2Config(vocab_size=len(pieces), initializer_range=0.1, **DEBERTA))
    config = {"model_type": "deberta-v2", "architectures": ["DebertaV2Model"], "vocab_size": len(pieces)}
    (folder / "config.json").write_text(json.dumps(DEBERTA | config))
    write_weights(folder, model.state_dict(), weights)
    write_tokenizer(folder, BERT, pieces, "json txt")
    write_modules(folder)
    return folder


def roberta(
    folder: Path,
    *,
    weights: str = "bin safetensors",
    files: str = "json txt",
    modules: bool = False,
    masked_lm: bool = False,
    special: dict[str, str] = ROBERTA,
    seed: int = 2,
) -> Path:
    """An encoder of klue/roberta-base's kind: 514 positions of which 512 are usable, `<s>` is 0 and `<pad>` 1."""
    folder.mkdir(parents=True)
    pieces = vocabulary(special)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    options = SIZES | ids | {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    torch.manual_seed(seed)
    kind = RobertaForMaskedLM if masked_lm else RobertaModel
    model = kind(RobertaConfig(vocab_size=len(pieces), initializer_range=0.1, **options))
    about = {"model_type": "roberta", "architectures": [kind.__name__], "vocab_size": len(pieces)}
    (folder / "config.json").write_text(json.dumps(options | about | {"tokenizer_class": "BertTokenizer"}))
    write_weights(folder, model.state_dict(), weights)
    write_tokenizer(folder, special, pieces, files)
    if modules:
        write_modules(folder)
    return folder


def klue_roberta_base(folder: Path) -> Path:
    """klue/roberta-base: a fill-mask checkpoint in both formats."""
    return roberta(folder, masked_lm=True)


def ko_sroberta_multitask(folder: Path) -> Path:
    """jhgan/ko-sroberta-multitask: pytorch_model.bin only, tokenizer.json only, modules.json in the 2.x form."""
    return roberta(folder, weights="bin", files="json", modules=True, seed=3)


def kosimcse_roberta_multitask(folder: Path) -> Path:
    """BM-K/KoSimCSE-roberta-multitask: a plain encoder in both formats whose figures are of token 0."""
    return roberta(folder, seed=4)


def vocab_txt_only(folder: Path) -> Path:
    """An encoder whose tokenizer is a vocab.txt and nothing else that lists pieces."""
    special = dict(zip(ROBERTA, ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"), strict=True))
    return roberta(folder, weights="bin", files="txt", special=special, seed=5)
