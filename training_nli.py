"""Fine-tune a Korean encoder on KorNLI triplets alone.

One epoch of MultipleNegativesRankingLoss in batches of 64 triplets without
duplicate texts; the best round is chosen and scored on KorSTS.

    python training_nli.py
    python training_nli.py --model_name_or_path klue/roberta-base --bf16
    python training_nli.py --max_rounds 100                # quick trial
    python training_nli.py --batch_size 2048 --nli_mini_batch_size 128
    torchrun --nproc_per_node 4 training_nli.py            # batches are totals
    python training_nli.py --resume              # the newest unfinished run
"""

from kf_deberta.errors import run
from kf_deberta.flags import Parser, Several, add_run_flags, count, not_negative, positive, seed, warmup
from kf_deberta.training.resume import parse_flags


def get_parser() -> Parser:
    """Every number of the recipe. Source: training_nli.py of the original repository."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--num_epochs", type=count, default=1, help="passes over the triplets")
    add("--batch_size", type=count, default=64, help="triplets per step, no text twice")
    add("--max_seq_length", type=count, default=128, help="tokens, after which a sentence is truncated")
    add("--normalize", action="store_true", help="embeddings of length 1, by a Normalize module")
    add("--scale", type=positive, default=20.0, help="scale (inverse temperature) of the cosines in the loss")
    add("--learning_rate", type=positive, default=2e-5, help="peak")
    add("--lr_scheduler_type", choices=["linear", "cosine", "constant_with_warmup"], default="linear", help="schedule")
    add("--warmup_steps", type=warmup, default=0.1, help="warm-up rounds, or a fraction of all rounds if below 1")
    add("--weight_decay", type=not_negative, default=0.01, help="of AdamW; none on biases and LayerNorm")
    add("--max_grad_norm", type=positive, default=1.0, help="gradients are clipped to this norm in each step")
    add("--eval_steps", type=count, default=1000, help="rounds of an epoch between evaluations; one more at its end")
    add("--seed", type=seed, default=777, help="of triplets, order of batches, dropout")
    add("--max_rounds", type=count, help="stop after these rounds, which the schedule then spans (default: all)")
    add("--nli_mini_batch_size", type=count, help="triplets per forward pass: less memory, same result (default: all)")
    add("--matryoshka_dims", type=count, action=Several, help="train truncations too, as 768,256 (default: off)")
    add_run_flags(parser, output_prefix="kor_nli_")
    return parser


def main() -> None:
    """Train by the NLI recipe."""
    # 1. Flags; then the libraries, which take seconds to import
    args = parse_flags(get_parser())
    from sentence_transformers.sentence_transformer import losses

    from data_util import find_kor_nli_train_files, load_kor_nli, load_kor_sts
    from kf_deberta.data.official import ensure_kor_nlu_datasets
    from kf_deberta.evaluation.scoring import PairEvaluator
    from kf_deberta.training.batches import TripletBatches
    from kf_deberta.training.loop import Objective, train
    from kf_deberta.training.run import Run, load_base

    run = Run(args)

    # 2. Data: triplets of every KorNLI train file; KorSTS dev and test
    run.on_first(lambda: ensure_kor_nlu_datasets(args.dataset_path, args.download))
    nli_files = find_kor_nli_train_files(args.dataset_path)
    sts_files = [args.dataset_path / "KorSTS" / f"sts-{split}.tsv" for split in ("dev", "test")]
    nli = load_kor_nli(nli_files, args.seed)
    scoring = {"batch_size": args.eval_batch_size, "dimensions": args.matryoshka_dims or ()}
    dev, test = (PairEvaluator(load_kor_sts(file), file.stem, **scoring) for file in sts_files)

    # 3. Model: the encoder with mean pooling, in float32
    model = load_base(args, dev.sentences[0])
    run.begin(model, test, [*nli_files, *sts_files])

    # 4. Objective; the negatives of a triplet are all other texts of its batch, over all processes
    ranking = {"scale": args.scale, "gather_across_devices": run.world > 1}
    if args.nli_mini_batch_size:
        loss = losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=args.nli_mini_batch_size, **ranking)
    else:
        loss = losses.MultipleNegativesRankingLoss(model, **ranking)
    if args.matryoshka_dims:
        loss = losses.MatryoshkaLoss(model, loss, args.matryoshka_dims)
    objectives = [Objective("nli", nli, TripletBatches(nli, args.batch_size, args.seed), loss)]

    # 5. Train; the model gets the weights that were best on dev
    state = train(model, objectives, dev, run.directory, args, run)

    # 6. Save it, score it on test, write the card
    run.finish(model, test, {"": (objectives, state, args)})


if __name__ == "__main__":
    run(main)
