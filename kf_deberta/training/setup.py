"""What the three training scripts share: fetching the data, loading the base, the evaluators.

The recipes themselves, their numbers and losses, stand in the scripts.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss

from kf_deberta.cli import InputError
from kf_deberta.data.download import ensure_kor_nlu_datasets
from kf_deberta.evaluation.evaluator import PairEvaluator
from kf_deberta.model.cpu import keep_freed_memory
from kf_deberta.model.load import load_model


def kor_nlu_datasets(args: argparse.Namespace, training_args: SentenceTransformerTrainingArguments) -> Path:
    """Return the directory of KorNLI/ and KorSTS/; one process fetches it where it does not exist."""
    root = Path(args.dataset_path)
    with training_args.main_process_first():
        ensure_kor_nlu_datasets(root)
    return root


def load_base(args: argparse.Namespace) -> SentenceTransformer:
    """Load the base encoder as the flags say.

    Raises:
        InputError: it cannot be loaded, or has fewer dimensions than --matryoshka_dims.
    """
    if not torch.accelerator.is_available():
        keep_freed_memory()
    model = load_model(
        args.model_name_or_path,
        revision=args.revision,
        dtype=getattr(torch, args.dtype),
        fast_attention=not args.no_fast_attention,
        max_seq_length=args.max_seq_length,
        trust_remote_code=args.trust_remote_code,
        normalize=args.normalize,
        prompt=args.prompt,
    )
    size = model.get_embedding_dimension()
    if args.matryoshka_dims and args.matryoshka_dims[0] > size:
        raise InputError(
            f"--matryoshka_dims {args.matryoshka_dims[0]}: {args.model_name_or_path} has {size} dimensions"
        )
    return model


def with_matryoshka(
    model: SentenceTransformer, losses: dict[str, torch.nn.Module], dims: list[int] | None
) -> dict[str, torch.nn.Module]:
    """Wrap every loss in a MatryoshkaLoss over `dims` (arXiv 2205.13147), or return them as they are without dims."""
    return {name: MatryoshkaLoss(model, loss, dims) for name, loss in losses.items()} if dims else losses


def kor_sts_evaluator(pairs: Dataset, path: Path, args: argparse.Namespace) -> PairEvaluator:
    """Return the evaluator of KorSTS pairs: all eight figures, at full size and at each Matryoshka dimension.

    The run keeps the model with the best cosine Spearman at full size, the figure that the published table ranks by.

    Args:
        pairs: what data_util.load_kor_sts returns for `path`.
        path: sts-dev.tsv or sts-test.tsv; the figures carry its name without suffix.
        args: the script's flags.

    Raises:
        InputError: all scores are the same, so that no correlation exists.
    """
    if len(set(pairs["score"][:])) < 2:
        raise InputError(f"{path}: a correlation needs at least two different scores")
    return PairEvaluator(pairs, path.stem, args.eval_batch_size, args.matryoshka_dims or [])
