"""Build a small DebertaV2 base with random weights, for a demo without download.

It has kf-deberta-base's options at reduced sizes and a WordPiece tokenizer
trained on the sample's training text. The same options give the same bytes.

    python sample/build_base.py --output_dir output/sample-base
    python training_multi_task.py --model_name_or_path output/sample-base \\
        --dataset_path sample
"""

import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kf_deberta.errors import InputError, run, write_atomically
from kf_deberta.flags import Parser, file_path, number, seed

SAMPLE_DIR = Path(__file__).resolve().parent
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def read_training_texts(sample_dir: Path = SAMPLE_DIR) -> list[str]:
    """Return every sentence of the sample's KorNLI and KorSTS train files, in file order."""
    texts: list[str] = []
    for path in [*sorted(sample_dir.glob("KorNLI/*train.ko.tsv")), sample_dir / "KorSTS" / "sts-train.tsv"]:
        header, *rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
        columns = [index for index, name in enumerate(header) if name.startswith("sentence")]
        texts += [row[index] for row in rows for index in columns]
    return texts


def train_vocabulary(texts: Iterable[str], vocab_size: int) -> dict[str, int]:
    """Return a WordPiece vocabulary (piece -> id, special tokens first) of at most `vocab_size` pieces.

    Every character of the texts is in it in both forms, word-initial and continuing, even beyond `vocab_size`.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    texts = list(texts)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters = sorted(set(map(chr, range(33, 127))).union(*"".join(texts).split()))
    # the trainer numbers continuing pieces in hash order, which changes from run to run, unless named up front
    fixed = [*SPECIAL_TOKENS, *(f"##{character}" for character in characters)]
    options = {"vocab_size": vocab_size, "special_tokens": fixed, "initial_alphabet": characters}
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(**options, show_progress=False))
    return tokenizer.get_vocab()


def build_base(
    output_dir: str | Path, texts: Iterable[str] | None = None, *, vocab_size: int = 4000, seed: int = 42, **sizes
) -> Path:
    """Save the base as a transformers directory in `output_dir`, which must not exist yet, and return that path.

    Its tokenizer is trained on `texts` (default: the sample's training texts); `sizes` are other values of
    DebertaV2Config, such as hidden_size. The caller's random state is left as it was.
    """
    import torch
    from transformers import BertTokenizer, DebertaV2Config, DebertaV2Model

    output_dir = Path(output_dir)
    if output_dir.exists():
        raise InputError(f"{output_dir}: exists already; use it, delete it or choose another --output_dir")
    vocabulary = train_vocabulary(read_training_texts() if texts is None else texts, vocab_size)
    options = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
    options |= {"vocab_size": len(vocabulary), "position_buckets": 32} | sizes
    # from here on as in kf-deberta-base's config.json
    options |= {"max_position_embeddings": 512, "relative_attention": True, "max_relative_positions": -1}
    options |= {"pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    options |= {"conv_kernel_size": 0, "position_biased_input": False, "type_vocab_size": 0, "pad_token_id": 0}
    options |= {"layer_norm_eps": 1e-7, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DebertaV2Model(DebertaV2Config(**options)).to(torch.float32)
    with write_atomically(output_dir) as unfinished:
        model.save_pretrained(unfinished)
        BertTokenizer(vocab=vocabulary, do_lower_case=False, model_max_length=512).save_pretrained(unfinished)
    return output_dir


def main() -> None:
    """Build the base and print what it is."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--output_dir", type=file_path, default=Path("output/sample-base"), help="directory to create")
    add("--vocab_size", type=number(int, least=100, most=10**6), default=4000, help="maximum vocabulary size")
    add("--hidden_size", type=number(int, least=2, most=8192), default=128, help="embedding dimension, even")
    add("--num_hidden_layers", type=number(int, least=1, most=96), default=2, help="transformer layers")
    add("--seed", type=seed, default=42, help="seed of the random weights")
    print(f"{build_base(**vars(parser.parse_args()))}: DebertaV2 with random weights")


if __name__ == "__main__":
    run(main)
