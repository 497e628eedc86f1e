"""Fine-tune a Korean encoder on KorNLI and KorSTS in turns: the recipe of upskyy/kf-deberta-multitask.

A round is one step of MultipleNegativesRankingLoss on 128 KorNLI triplets, then one step of CosineSimilarityLoss on
8 KorSTS pairs. Each objective has its own AdamW and its own schedule; 10 epochs of 719 rounds.

    python training_multi_task.py
    python training_multi_task.py --model_name_or_path klue/roberta-base --bf16
    python training_multi_task.py --max_rounds 100                       # a short look
    python training_multi_task.py --nli_batch_size 2048 --nli_mini_batch_size 128
    python training_multi_task.py --matryoshka_dims 768,512,256,128,64
    torchrun --nproc_per_node 4 training_multi_task.py                   # batch sizes stay global
    python training_multi_task.py --resume                               # the newest unfinished run
"""

from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    CosineSimilarityLoss,
    MultipleNegativesRankingLoss,
)

from data_util import find_kor_nli_train_files, load_kor_nli, load_kor_sts
from kf_deberta.cli import run
from kf_deberta.training.batches import ShuffledBatchSampler, TripletBatchSampler
from kf_deberta.training.flags import parse_recipe, positive, recipe_parser
from kf_deberta.training.loop import train_and_score
from kf_deberta.training.setup import kor_nlu_datasets, kor_sts_evaluator, load_base, with_matryoshka
from kf_deberta.training.trainer import MultiTaskTrainer


def main() -> None:
    """Train by the published multi-task recipe; every number of it stands here or is a flag's default."""
    # 1. Flags. Epochs, seed and batch sizes: model card of upskyy/kf-deberta-multitask
    parser = recipe_parser(__doc__, num_epochs=10, default_seed=42, output_prefix="kor_multi_")
    add = parser.add_argument
    add("--nli_batch_size", metavar="N", type=positive(int), default=128, help="triplets a step (%(default)s)")
    add("--sts_batch_size", metavar="N", type=positive(int), default=8, help="pairs a step (%(default)s)")
    add("--nli_mini_batch_size", metavar="N", type=positive(int), help="triplets in memory at once")
    # AdamW, one per objective: no decay on biases and LayerNorm; warm-up over 10% of the rounds
    args, training_args = parse_recipe(
        parser,
        optim="adamw_torch_fused",
        weight_decay=0.01,
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
    )

    # 2. Data: triplets from every KorNLI train file, and KorSTS pairs with their gold score / 5
    root = kor_nlu_datasets(args, training_args)
    nli = load_kor_nli(find_kor_nli_train_files(root), seed=args.seed)
    sts = load_kor_sts(root / "KorSTS" / "sts-train.tsv")
    dev_file, test_file = (root / "KorSTS" / f"sts-{split}.tsv" for split in ("dev", "test"))
    dev = kor_sts_evaluator(load_kor_sts(dev_file), dev_file, args)
    test = kor_sts_evaluator(load_kor_sts(test_file), test_file, args)

    # 3. Model: the encoder with mean pooling, in float32
    model = load_base(args)

    # 4. Losses; in-batch negatives come from all processes
    ranking = {"scale": 20.0, "gather_across_devices": training_args.world_size > 1}
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
