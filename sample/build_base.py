"""Build a small DebertaV2 base with random weights, for a demo that needs no download.

It has kf-deberta-base's options at reduced sizes and a WordPiece tokenizer trained on the sample corpus (training text
only). The same texts and options give the same bytes. It knows nothing: it only stands in for the real base.

    python sample/build_base.py --output_dir output/sample-base
    python training_multi_task.py --model_name_or_path output/sample-base --dataset_path sample
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kf_deberta.cli import InputError, Parser, file_path, flags_first, number, run, seed, writing


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--output_dir", type=file_path, default=Path("output/sample-base"), help="directory to create")
    add("--vocab_size", type=number(int, least=100, most=10**6), default=4000, help="most pieces in the vocabulary")
    add("--hidden_size", type=number(int, least=1, most=8192), default=128, help="embedding dimension")
    add("--num_hidden_layers", type=number(int, least=1, most=96), default=2, help="transformer layers")
    add("--seed", type=seed, default=42, help="seed of the random weights")
    return parser.parse_args()


flags_first(parse_args)

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, DebertaV2Config, DebertaV2Model
from transformers.utils.logging import disable_progress_bar

SAMPLE_DIR = Path(__file__).resolve().parent
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MAX_LENGTH = 512


def read_training_texts(sample_dir: Path = SAMPLE_DIR) -> list[str]:
    """Every sentence of the sample's KorSTS train and KorNLI train files, in file order; InputError without any."""
    files = [*sorted(sample_dir.glob("KorNLI/*train.ko.tsv")), sample_dir / "KorSTS" / "sts-train.tsv"]
    texts: list[str] = []
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: no such file; restore the sample directory (git checkout -- sample)")
        header, *rows = path.read_text(encoding="utf-8").splitlines()
        columns = [index for index, name in enumerate(header.split("\t")) if name.startswith("sentence")]
        for row in rows:
            cells = row.split("\t")
            texts.extend(cells[index] for index in columns)
    return texts


def train_vocabulary(texts: Iterable[str], vocab_size: int) -> dict[str, int]:
    """WordPiece vocabulary (piece -> id, special tokens first) of at most `vocab_size` pieces.

    Every character of the texts is in it in both forms, word-initial and continuing, even beyond `vocab_size`.
    """
    texts = list(texts)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ascii_characters = {chr(code) for code in range(33, 127)}
    characters = sorted(character for character in ascii_characters.union(*texts) if not character.isspace())
    # The trainer numbers continuing pieces in hash order, which changes from run to run, unless named up front.
    fixed = [*SPECIAL_TOKENS, *(f"##{character}" for character in characters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=fixed, initial_alphabet=characters, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab()


def build_base(
    output_dir: str | Path,
    texts: Iterable[str] | None = None,
    *,
    vocab_size: int = 4000,
    hidden_size: int = 128,
    num_hidden_layers: int = 2,
    num_attention_heads: int = 2,
    intermediate_size: int = 256,
    position_buckets: int = 32,
    initializer_range: float = 0.02,
    seed: int = 42,
) -> Path:
    """Write the base into `output_dir`, which must not exist yet, and return that path.

    Args:
        output_dir: becomes a plain transformers directory: config.json, model.safetensors (float32), tokenizer files.
        texts: what the tokenizer is trained on; None takes the sample's training texts.
        vocab_size: the most pieces in the vocabulary (see `train_vocabulary`).
        hidden_size: embedding dimension, a multiple of `num_attention_heads`.
        num_hidden_layers: number of transformer layers.
        num_attention_heads: attention heads of each layer.
        intermediate_size: width of each layer's feed-forward block.
        position_buckets: relative positions are told apart in this many log-spaced buckets to each side.
        initializer_range: standard deviation of the random weights (0.02 in kf-deberta-base).
        seed: seed of the random weights; the caller's random state is left as it was.

    Raises:
        InputError: `output_dir` exists, cannot be written, a size cannot be used, or the sample's files are missing.
    """
    output_dir = Path(output_dir)
    if output_dir.exists():
        raise InputError(f"{output_dir}: exists already; use it, delete it or choose another --output_dir")
    if min(vocab_size, num_hidden_layers, hidden_size) < 1 or hidden_size % num_attention_heads:
        raise InputError(f"sizes must be positive and hidden_size a multiple of {num_attention_heads} heads")
    vocabulary = train_vocabulary(read_training_texts() if texts is None else texts, vocab_size)
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=False, model_max_length=MAX_LENGTH)
    config = DebertaV2Config(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        intermediate_size=intermediate_size,
        position_buckets=position_buckets,
        initializer_range=initializer_range,
        # From here on as in kf-deberta-base's config.json.
        max_position_embeddings=MAX_LENGTH,
        relative_attention=True,
        max_relative_positions=-1,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        conv_kernel_size=0,
        position_biased_input=False,
        type_vocab_size=0,
        layer_norm_eps=1e-7,
        hidden_act="gelu",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DebertaV2Model(config).to(torch.float32)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place when complete: an interrupted build leaves no half-written base.
    temporary = output_dir.with_name(f".{output_dir.name}-{os.getpid()}")
    temporary.mkdir()
    try:
        with writing(output_dir):
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            temporary.rename(output_dir)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return output_dir


def main() -> None:
    """Read the command line, build the base and say what it is."""
    disable_progress_bar()
    output_dir = build_base(**vars(parse_args()))
    size = (output_dir / "model.safetensors").stat().st_size
    print(f"{output_dir}: DebertaV2 with random weights, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
