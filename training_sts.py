"""Fine-tune a Korean encoder on KorSTS pairs alone.

Five epochs of CosineSimilarityLoss in shuffled batches of 8 pairs, gold score / 5, scored on KorSTS. CoSENTLoss ranks
the pairs of a batch against each other instead; ./bin/train.sh best trains with it.

    python training_sts.py
    python training_sts.py --model_name_or_path klue/roberta-base --bf16
    python training_sts.py --max_rounds 100                              # a short look
    python training_sts.py --sts_loss cosent --batch_size 32 --learning_rate 4e-5 --normalize
    torchrun --nproc_per_node 4 training_sts.py                          # the batch size stays global
    python training_sts.py --resume                                      # the newest unfinished run
"""

from kf_deberta.cli import InputError, run
from kf_deberta.training.flags import parse_flags, training_arguments

# Every number is a flag. Source: training_sts.py of the original repository; sts_loss is ours
RECIPE = {
    "num_epochs": 5,  # passes over the pairs
    "batch_size": 8,  # pairs per step
    "sts_loss": "cosine",  # squared error of the cosine; cosent: the order of the cosines
    "max_seq_length": 128,  # tokens per sentence
    "learning_rate": 2e-5,  # peak
    "weight_decay": 0.01,  # none on biases and LayerNorm
    "max_grad_norm": 1.0,  # clipped per step
    "warmup_steps": 0.1,  # of the steps, linear from 0
    "lr_scheduler_type": "linear",  # to 0 at the last step
    "eval_steps": 1000,  # steps within an epoch; one more evaluation at its end
    "seed": 777,  # order of batches, dropout
}


def main() -> None:
    """Train by the STS recipe."""
    # 1. Flags; what takes seconds to import comes after them
    args = parse_flags(__doc__, RECIPE, output_prefix="kor_sts_")
    from sentence_transformers.sentence_transformer.losses import CoSENTLoss, CosineSimilarityLoss

    from data_util import load_kor_sts
    from kf_deberta.data.download import ensure_kor_nlu_datasets
    from kf_deberta.training.batches import ShuffledBatchSampler
    from kf_deberta.training.loop import kor_sts_evaluator, load_base, train_and_score, with_matryoshka
    from kf_deberta.training.trainer import MultiTaskTrainer

    training_args = training_arguments(args)
    if args.sts_loss == "cosent" and training_args.world_size > 1:  # each process would rank its own share alone
        raise InputError("--sts_loss cosent: ranks all pairs of a batch, so it takes one process; leave torchrun out")

    # 2. Data: KorSTS pairs with their gold score / 5
    root = args.dataset_path
    with training_args.main_process_first():
        ensure_kor_nlu_datasets(root)  # cloned where it is absent
    sts = load_kor_sts(root / "KorSTS" / "sts-train.tsv")
    dev_file, test_file = (root / "KorSTS" / f"sts-{split}.tsv" for split in ("dev", "test"))
    dev = kor_sts_evaluator(load_kor_sts(dev_file), dev_file, args)
    test = kor_sts_evaluator(load_kor_sts(test_file), test_file, args)

    # 3. Model: the encoder with mean pooling, in float32
    model = load_base(args)

    # 4. Train: mean squared error between cosine and gold, or gold's order alone
    sts_loss = CoSENTLoss(model) if args.sts_loss == "cosent" else CosineSimilarityLoss(model)
    trainer = MultiTaskTrainer(
        model=model,
        args=training_args,
        train_dataset={"sts": sts},
        loss=with_matryoshka(model, {"sts": sts_loss}, args.matryoshka_dims),
        batch_samplers={"sts": ShuffledBatchSampler(sts, args.batch_size, args.seed)},
        evaluator=dev,
    )

    # 5. Reload the best on dev from disk, score it on test
    train_and_score(trainer, args, test)


if __name__ == "__main__":
    run(main)
