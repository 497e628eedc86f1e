"""Fine-tune a Korean encoder on KorSTS pairs alone.

Five epochs of CosineSimilarityLoss in shuffled batches of 8 pairs, gold
score / 5. CoSENTLoss ranks the pairs of a batch instead, as the recommended
recipe does.

    python training_sts.py
    python training_sts.py --model_name_or_path klue/roberta-base --bf16
    python training_sts.py --max_rounds 100                # quick trial
    python training_sts.py --sts_loss cosent --batch_size 32 --normalize
    torchrun --nproc_per_node 4 training_sts.py            # batches are totals
    python training_sts.py --resume              # the newest unfinished run
"""

from kf_deberta.errors import InputError, run
from kf_deberta.flags import Parser, Several, add_run_flags, count, not_negative, positive, seed, warmup
from kf_deberta.training.resume import parse_flags


def get_parser() -> Parser:
    """Every number of the recipe. Source: training_sts.py of the original repository; sts_loss is ours."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--num_epochs", type=count, default=5, help="passes over the pairs")
    add("--batch_size", type=count, default=8, help="pairs per step")
    add("--sts_loss", choices=["cosine", "cosent"], default="cosine", help="CosineSimilarityLoss or CoSENTLoss")
    add("--max_seq_length", type=count, default=128, help="tokens, after which a sentence is truncated")
    add("--normalize", action="store_true", help="embeddings of length 1, by a Normalize module")
    add("--learning_rate", type=positive, default=2e-5, help="peak")
    add("--lr_scheduler_type", choices=["linear", "cosine", "constant_with_warmup"], default="linear", help="schedule")
    add("--warmup_steps", type=warmup, default=0.1, help="warm-up rounds, or a fraction of all rounds if below 1")
    add("--weight_decay", type=not_negative, default=0.01, help="of AdamW; none on biases and LayerNorm")
    add("--max_grad_norm", type=positive, default=1.0, help="gradients are clipped to this norm in each step")
    add("--eval_steps", type=count, default=1000, help="rounds of an epoch between evaluations; one more at its end")
    add("--seed", type=seed, default=777, help="of the order of batches, dropout")
    add("--max_rounds", type=count, help="stop after these rounds, which the schedule then spans (default: all)")
    add("--matryoshka_dims", type=count, action=Several, help="train truncations too, as 768,256 (default: off)")
    add_run_flags(parser, output_prefix="kor_sts_")
    return parser


def main() -> None:
    """Train by the STS recipe."""
    # 1. Flags; then the libraries, which take seconds to import
    args = parse_flags(get_parser())
    if args.sts_loss == "cosent" and args.batch_size < 2:
        raise InputError("--sts_loss cosent compares the pairs of a batch; give --batch_size 2 or more")
    from sentence_transformers.sentence_transformer import losses

    from data_util import load_kor_sts, say_overlap
    from kf_deberta.data.official import ensure_kor_nlu_datasets
    from kf_deberta.evaluation.scoring import PairEvaluator, check_gold
    from kf_deberta.training.batches import ShuffledBatches
    from kf_deberta.training.loop import Objective, train
    from kf_deberta.training.run import Run, load_base

    run = Run(args)

    # 2. Data: KorSTS pairs with their gold score / 5
    run.on_first(lambda: ensure_kor_nlu_datasets(args.dataset_path, args.download))
    files = [args.dataset_path / "KorSTS" / f"sts-{split}.tsv" for split in ("train", "dev", "test")]
    sts, dev, test = map(load_kor_sts, files)
    check_gold(sts["score"][:], files[0])
    say_overlap(sts, dev, "sts-dev")
    say_overlap(sts, test, "sts-test")
    dev = PairEvaluator(dev, "sts-dev", args.eval_batch_size, args.matryoshka_dims or ())
    test = PairEvaluator(test, "sts-test", args.eval_batch_size, args.matryoshka_dims or ())

    # 3. Model: the encoder with mean pooling, in float32
    model = load_base(args, sts["sentence1"][:])
    run.begin(model, test, files)

    # 4. Objective: the squared error of the cosine, or the order of the cosines in a batch
    ranks = args.sts_loss == "cosent"
    loss = losses.CoSENTLoss(model) if ranks else losses.CosineSimilarityLoss(model)
    if args.matryoshka_dims:
        loss = losses.MatryoshkaLoss(model, loss, args.matryoshka_dims)
    objectives = [Objective("sts", sts, ShuffledBatches(sts, args.batch_size, args.seed), loss, whole=ranks)]

    # 5. Train; the model gets the weights that were best on dev
    state = train(model, objectives, dev, run.directory, args, run)

    # 6. Save it, score it on test, write the card
    run.finish(model, test, {"": (objectives, state, args)})


if __name__ == "__main__":
    run(main)
