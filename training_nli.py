"""Fine-tune a Korean encoder on KorNLI triplets alone.

One epoch of MultipleNegativesRankingLoss in batches of 64 triplets without duplicate texts, scored on KorSTS.

    python training_nli.py
    python training_nli.py --model_name_or_path klue/roberta-base --bf16
    python training_nli.py --max_rounds 100                              # a short look
    python training_nli.py --batch_size 2048 --nli_mini_batch_size 128
    torchrun --nproc_per_node 4 training_nli.py                          # the batch size stays global
    python training_nli.py --resume                                      # the newest unfinished run
"""

from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)

from data_util import find_kor_nli_train_files, load_kor_nli, load_kor_sts
from kf_deberta.cli import run
from kf_deberta.training.batches import TripletBatchSampler
from kf_deberta.training.flags import parse_recipe, positive, recipe_parser
from kf_deberta.training.loop import train_and_score
from kf_deberta.training.setup import kor_nlu_datasets, kor_sts_evaluator, load_base, with_matryoshka
from kf_deberta.training.trainer import MultiTaskTrainer


def main() -> None:
    """Train by the NLI recipe; every number of it stands here or is a flag's default."""
    # 1. Flags. Epochs, seed and batch size: training_nli.py of the original repository
    parser = recipe_parser(__doc__, num_epochs=1, default_seed=777, output_prefix="kor_nli_")
    add = parser.add_argument
    add("--batch_size", metavar="N", type=positive(int), default=64, help="triplets a step (%(default)s)")
    add("--nli_mini_batch_size", metavar="N", type=positive(int), help="triplets in memory at once")
    # AdamW: no decay on biases and LayerNorm; warm-up over 10% of the steps
    args, training_args = parse_recipe(
        parser,
        optim="adamw_torch_fused",
        weight_decay=0.01,
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
    )

    # 2. Data: triplets from every KorNLI train file
    root = kor_nlu_datasets(args, training_args)
    nli = load_kor_nli(find_kor_nli_train_files(root), seed=args.seed)
    dev_file, test_file = (root / "KorSTS" / f"sts-{split}.tsv" for split in ("dev", "test"))
    dev = kor_sts_evaluator(load_kor_sts(dev_file), dev_file, args)
    test = kor_sts_evaluator(load_kor_sts(test_file), test_file, args)

    # 3. Model: the encoder with mean pooling, in float32
    model = load_base(args)

    # 4. Loss; in-batch negatives come from all processes
    ranking = {"scale": 20.0, "gather_across_devices": training_args.world_size > 1}
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
