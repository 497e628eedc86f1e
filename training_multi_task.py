"""Fine-tune a Korean encoder on KorNLI and KorSTS in turns.

This is the published recipe of upskyy/kf-deberta-multitask: a round is one
step of MultipleNegativesRankingLoss on 128 KorNLI triplets, then one step of
CosineSimilarityLoss on 8 KorSTS pairs. Each has an AdamW of its own.

    python training_multi_task.py
    python training_multi_task.py --model_name_or_path klue/roberta-base --bf16
    python training_multi_task.py --max_rounds 100         # quick trial
    python training_multi_task.py --nli_mini_batch_size 32   # with less memory
    python training_multi_task.py --matryoshka_dims 768,512,256,128,64
    torchrun --nproc_per_node 4 training_multi_task.py     # batches are totals
    python training_multi_task.py --resume       # the newest unfinished run
"""

from kf_deberta.errors import run
from kf_deberta.flags import Parser, Several, add_run_flags, count, not_negative, positive, seed, warmup
from kf_deberta.training.resume import parse_flags


def get_parser() -> Parser:
    """Every number of the recipe. Source: model card of upskyy/kf-deberta-multitask."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--num_epochs", type=count, default=10, help="an epoch ends with the shorter pass: KorSTS, 719 rounds")
    add("--nli_batch_size", type=count, default=128, help="triplets per step, no text twice")
    add("--sts_batch_size", type=count, default=8, help="pairs per step")
    add("--max_seq_length", type=count, default=128, help="tokens, after which a sentence is truncated")
    add("--normalize", action="store_true", help="embeddings of length 1, by a Normalize module")
    add("--scale", type=positive, default=20.0, help="scale (inverse temperature) of the cosines in the loss")
    add("--learning_rate", type=positive, default=2e-5, help="peak, for both objectives")
    add("--lr_scheduler_type", choices=["linear", "cosine", "constant_with_warmup"], default="linear", help="schedule")
    add("--warmup_steps", type=warmup, default=0.1, help="warm-up rounds, or a fraction of all rounds if below 1")
    add("--weight_decay", type=not_negative, default=0.01, help="of AdamW; none on biases and LayerNorm")
    add("--max_grad_norm", type=positive, default=1.0, help="gradients are clipped to this norm in each step")
    add("--eval_steps", type=count, default=1000, help="rounds of an epoch between evaluations; one more at its end")
    add("--seed", type=seed, default=42, help="of triplets, order of batches, dropout")
    add("--max_rounds", type=count, help="stop after these rounds, which the schedule then spans (default: all)")
    add("--nli_mini_batch_size", type=count, help="triplets per forward pass: less memory, same result (default: all)")
    add("--matryoshka_dims", type=count, action=Several, help="train truncations too, as 768,256 (default: off)")
    add_run_flags(parser, output_prefix="kor_multi_")
    return parser


def main() -> None:
    """Train by the published multi-task recipe."""
    # 1. Flags; then the libraries, which take seconds to import
    args = parse_flags(get_parser())
    from sentence_transformers.sentence_transformer import losses

    from data_util import find_kor_nli_train_files, load_kor_nli, load_kor_sts, say_overlap
    from kf_deberta.data.official import ensure_kor_nlu_datasets
    from kf_deberta.evaluation.scoring import PairEvaluator
    from kf_deberta.training.batches import ShuffledBatches, TripletBatches
    from kf_deberta.training.loop import Objective, train
    from kf_deberta.training.run import Run, load_base

    run = Run(args)

    # 2. Data: triplets of every KorNLI train file, and KorSTS pairs with their gold score / 5
    run.on_first(lambda: ensure_kor_nlu_datasets(args.dataset_path, args.download))
    nli_files = find_kor_nli_train_files(args.dataset_path)
    sts_files = [args.dataset_path / "KorSTS" / f"sts-{split}.tsv" for split in ("train", "dev", "test")]
    nli = load_kor_nli(nli_files, args.seed)
    sts, dev, test = map(load_kor_sts, sts_files)
    say_overlap(sts, dev, "sts-dev")
    say_overlap(sts, test, "sts-test")
    dev = PairEvaluator(dev, "sts-dev", args.eval_batch_size, args.matryoshka_dims or ())
    test = PairEvaluator(test, "sts-test", args.eval_batch_size, args.matryoshka_dims or ())

    # 3. Model: the encoder with mean pooling, in float32
    model = load_base(args, sts["sentence1"][:])
    run.begin(model, test, [*nli_files, *sts_files])

    # 4. Objectives; the negatives of a triplet are all other texts of its batch, over all processes
    ranking = {"scale": args.scale, "gather_across_devices": run.world > 1}
    if args.nli_mini_batch_size:
        ranking |= {"mini_batch_size": args.nli_mini_batch_size}
        nli_loss = losses.CachedMultipleNegativesRankingLoss(model, **ranking)
    else:
        nli_loss = losses.MultipleNegativesRankingLoss(model, **ranking)
    sts_loss = losses.CosineSimilarityLoss(model)
    objectives = [
        Objective("nli", nli, TripletBatches(nli, args.nli_batch_size, args.seed), nli_loss),
        Objective("sts", sts, ShuffledBatches(sts, args.sts_batch_size, args.seed), sts_loss),
    ]
    if args.matryoshka_dims:
        for objective in objectives:
            objective.loss = losses.MatryoshkaLoss(model, objective.loss, args.matryoshka_dims)

    # 5. Train: NLI, STS, NLI, STS, ...; the model gets the weights that were best on dev
    state = train(model, objectives, dev, run.directory, args, run)

    # 6. Save it, score it on test, write the card
    run.finish(model, test, {"": (objectives, state, args)})


if __name__ == "__main__":
    run(main)
