"""Fine-tune a Korean encoder on KorNLI triplets alone.

One epoch of MultipleNegativesRankingLoss in batches of 64 triplets without duplicate texts, scored on KorSTS.

    python training_nli.py
    python training_nli.py --model_name_or_path klue/roberta-base --bf16
    python training_nli.py --max_rounds 100                              # a short look
    python training_nli.py --batch_size 2048 --nli_mini_batch_size 128
    torchrun --nproc_per_node 4 training_nli.py                          # the batch size stays global
    python training_nli.py --resume                                      # the newest unfinished run
"""

from kf_deberta.cli import run
from kf_deberta.training.flags import parse_flags, training_arguments

# Every number is a flag. Source: training_nli.py of the original repository
RECIPE = {
    "num_epochs": 1,  # one pass over the triplets
    "batch_size": 64,  # triplets per step, no text twice
    "max_seq_length": 128,  # tokens per sentence
    "scale": 20.0,  # factor on the cosines in MultipleNegativesRankingLoss
    "learning_rate": 2e-5,  # peak
    "weight_decay": 0.01,  # none on biases and LayerNorm
    "max_grad_norm": 1.0,  # clipped per step
    "warmup_steps": 0.1,  # of the steps, linear from 0
    "lr_scheduler_type": "linear",  # to 0 at the last step
    "eval_steps": 1000,  # steps within an epoch; one more evaluation at its end
    "seed": 777,  # triplets, order of batches, dropout
}


def main() -> None:
    """Train by the NLI recipe."""
    # 1. Flags; what takes seconds to import comes after them
    args = parse_flags(__doc__, RECIPE, output_prefix="kor_nli_")
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )

    from data_util import find_kor_nli_train_files, load_kor_nli, load_kor_sts
    from kf_deberta.data.download import ensure_kor_nlu_datasets
    from kf_deberta.training.batches import TripletBatchSampler
    from kf_deberta.training.loop import kor_sts_evaluator, load_base, train_and_score, with_matryoshka
    from kf_deberta.training.trainer import MultiTaskTrainer

    training_args = training_arguments(args)

    # 2. Data: triplets from every KorNLI train file
    root = args.dataset_path
    with training_args.main_process_first():
        ensure_kor_nlu_datasets(root)  # cloned where it is absent
    nli = load_kor_nli(find_kor_nli_train_files(root), seed=args.seed)
    dev_file, test_file = (root / "KorSTS" / f"sts-{split}.tsv" for split in ("dev", "test"))
    dev = kor_sts_evaluator(load_kor_sts(dev_file), dev_file, args)
    test = kor_sts_evaluator(load_kor_sts(test_file), test_file, args)

    # 3. Model: the encoder with mean pooling, in float32
    model = load_base(args)

    # 4. Loss; in-batch negatives come from all processes
    ranking = {"scale": args.scale, "gather_across_devices": training_args.world_size > 1}
    if args.nli_mini_batch_size:  # the same result in several small passes
        nli_loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=args.nli_mini_batch_size, **ranking)
    else:
        nli_loss = MultipleNegativesRankingLoss(model, **ranking)

    # 5. Train on full batches in which no text occurs twice
    trainer = MultiTaskTrainer(
        model=model,
        args=training_args,
        train_dataset={"nli": nli},
        loss=with_matryoshka(model, {"nli": nli_loss}, args.matryoshka_dims),
        batch_samplers={"nli": TripletBatchSampler(nli, args.batch_size, args.seed)},
        evaluator=dev,
    )

    # 6. Reload the best on dev from disk, score it on test
    train_and_score(trainer, args, test)


if __name__ == "__main__":
    run(main)
