"""Fine-tune a Korean encoder on KorNLI and KorSTS in turns: the recipe of upskyy/kf-deberta-multitask.

A round is one step of MultipleNegativesRankingLoss on 128 KorNLI triplets, then one step of CosineSimilarityLoss on
8 KorSTS pairs. Each objective has its own AdamW, and the schedule counts rounds; 10 epochs of 719 rounds.

    python training_multi_task.py
    python training_multi_task.py --model_name_or_path klue/roberta-base --bf16
    python training_multi_task.py --max_rounds 100                       # a short look
    python training_multi_task.py --nli_batch_size 2048 --nli_mini_batch_size 128
    python training_multi_task.py --matryoshka_dims 768,512,256,128,64
    torchrun --nproc_per_node 4 training_multi_task.py                   # batch sizes stay global
    python training_multi_task.py --resume                               # the newest unfinished run
"""

from kf_deberta.cli import run
from kf_deberta.training.flags import parse_flags, training_arguments

# Every number is a flag. Source: model card of upskyy/kf-deberta-multitask
RECIPE = {
    "num_epochs": 10,  # an epoch ends with the shorter pass: KorSTS, 719 rounds
    "nli_batch_size": 128,  # triplets per step, no text twice
    "sts_batch_size": 8,  # pairs per step
    "max_seq_length": 128,  # tokens per sentence
    "scale": 20.0,  # factor on the cosines in MultipleNegativesRankingLoss
    "learning_rate": 2e-5,  # peak, for both objectives
    "weight_decay": 0.01,  # none on biases and LayerNorm
    "max_grad_norm": 1.0,  # clipped per step, never over both objectives
    "warmup_steps": 0.1,  # of the rounds, linear from 0
    "lr_scheduler_type": "linear",  # to 0 at the last round
    "eval_steps": 1000,  # rounds within an epoch, so the end of an epoch comes first
    "seed": 42,  # triplets, order of batches, dropout
}


def main() -> None:
    """Train by the published multi-task recipe."""
    # 1. Flags; what takes seconds to import comes after them
    args = parse_flags(__doc__, RECIPE, output_prefix="kor_multi_")
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        CosineSimilarityLoss,
        MultipleNegativesRankingLoss,
    )

    from data_util import find_kor_nli_train_files, load_kor_nli, load_kor_sts
    from kf_deberta.data.download import ensure_kor_nlu_datasets
    from kf_deberta.training.batches import ShuffledBatchSampler, TripletBatchSampler
    from kf_deberta.training.loop import kor_sts_evaluator, load_base, train_and_score, with_matryoshka
    from kf_deberta.training.trainer import MultiTaskTrainer

    training_args = training_arguments(args)

    # 2. Data: triplets from every KorNLI train file, and KorSTS pairs with their gold score / 5
    root = args.dataset_path
    with training_args.main_process_first():
        ensure_kor_nlu_datasets(root)  # cloned where it is absent
    nli = load_kor_nli(find_kor_nli_train_files(root), seed=args.seed)
    sts = load_kor_sts(root / "KorSTS" / "sts-train.tsv")
    dev_file, test_file = (root / "KorSTS" / f"sts-{split}.tsv" for split in ("dev", "test"))
    dev = kor_sts_evaluator(load_kor_sts(dev_file), dev_file, args)
    test = kor_sts_evaluator(load_kor_sts(test_file), test_file, args)

    # 3. Model: the encoder with mean pooling, in float32
    model = load_base(args)

    # 4. Losses; in-batch negatives come from all processes
    ranking = {"scale": args.scale, "gather_across_devices": training_args.world_size > 1}
    if args.nli_mini_batch_size:  # the same result in several small passes
        nli_loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=args.nli_mini_batch_size, **ranking)
    else:
        nli_loss = MultipleNegativesRankingLoss(model, **ranking)
    losses = with_matryoshka(model, {"nli": nli_loss, "sts": CosineSimilarityLoss(model)}, args.matryoshka_dims)

    # 5. Turns: NLI, STS, NLI, STS, ...; the NLI stream goes on across epochs
    trainer = MultiTaskTrainer(
        model=model,
        args=training_args,
        train_dataset={"nli": nli, "sts": sts},
        loss=losses,
        batch_samplers={
            "nli": TripletBatchSampler(nli, args.nli_batch_size, args.seed),
            "sts": ShuffledBatchSampler(sts, args.sts_batch_size, args.seed),
        },
        evaluator=dev,
    )

    # 6. Train, reload the best on dev from disk, score it on test
    train_and_score(trainer, args, test)


if __name__ == "__main__":
    run(main)
