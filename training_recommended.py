"""Fine-tune a Korean encoder on KorNLI, then on KorSTS: the recommended recipe.

Stage 1 is one epoch of MultipleNegativesRankingLoss on KorNLI triplets. Stage
2 goes on from its model with two epochs of CoSENTLoss on KorSTS pairs, which
trains on their order, once for each seed. The final model is the mean of these
models' weights if it is better on dev than each of them, else the best of them.
With --teacher, stage 1 learns a stronger model's embeddings of all sentences of
KorNLI and KorSTS train instead; --keep_layers makes a smaller, faster model.

    python training_recommended.py
    python training_recommended.py --model_name_or_path klue/roberta-base
    python training_recommended.py --max_rounds 100      # quick trial
    python training_recommended.py --matryoshka_dims 768,512,256,128,64
    python training_recommended.py --teacher BAAI/bge-m3 --keep_layers 0,3,7,11
    torchrun --nproc_per_node 4 training_recommended.py  # batches are totals
    python training_recommended.py --resume    # the newest unfinished run
"""

import argparse

from kf_deberta.errors import run
from kf_deberta.flags import Parser, Several, add_run_flags, count, not_negative, number, positive, seed, warmup
from kf_deberta.training.resume import parse_flags


def get_parser() -> Parser:
    """Every number of the recipe."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--nli_epochs", type=count, default=1, help="passes over the triplets")
    add("--nli_batch_size", type=count, default=64, help="triplets per step, no text twice")
    add("--nli_learning_rate", type=positive, default=2e-5, help="peak of the NLI stage")
    add("--scale", type=positive, default=20.0, help="scale (inverse temperature) of the cosines in the loss")
    add("--teacher", metavar="MODEL", help="stage 1 learns this model's embeddings (default: KorNLI triplets)")
    add("--teacher_dims", type=count, help="dimensions to which they are truncated (default: all)")
    add("--teacher_epochs", type=count, default=1, help="passes over the sentences")
    add("--teacher_batch_size", type=count, default=64, help="sentences per step")
    add("--teacher_learning_rate", type=positive, default=1e-4, help="peak of the teacher stage")
    add("--keep_layers", type=number(int, least=0), action=Several, help="of the base, as 0,3,7,11 (default: all)")
    add("--sts_epochs", type=count, default=2, help="passes over the pairs")
    add("--sts_batch_size", type=number(int, least=2), default=32, help="pairs per step, ranked against each other")
    add("--sts_learning_rate", type=positive, default=4e-5, help="peak of the STS stages")
    add("--sts_seeds", type=seed, action=Several, default=[1, 2, 3], help="a stage and a model for each")
    add("--max_seq_length", type=count, default=128, help="tokens, after which a sentence is truncated")
    add("--normalize", action=argparse.BooleanOptionalAction, default=True, help="embeddings of length 1")
    add("--lr_scheduler_type", choices=["linear", "cosine", "constant_with_warmup"], default="linear", help="schedule")
    add("--warmup_steps", type=warmup, default=0.1, help="warm-up rounds, or a fraction of all rounds if below 1")
    add("--weight_decay", type=not_negative, default=0.01, help="of AdamW; none on biases and LayerNorm")
    add("--max_grad_norm", type=positive, default=1.0, help="gradients are clipped to this norm in each step")
    add("--eval_steps", type=count, default=1000, help="rounds of an epoch between evaluations; one more at its end")
    add("--seed", type=seed, default=777, help="of triplets, order and dropout of the NLI stage")
    add("--max_rounds", type=count, help="stop each stage after these rounds (default: all)")
    add("--nli_mini_batch_size", type=count, help="triplets per forward pass: less memory, same result (default: all)")
    add("--matryoshka_dims", type=count, action=Several, help="train truncations too, as 768,256 (default: off)")
    add_run_flags(parser, output_prefix="kor_recommended_")
    return parser


def mean_of_weights(states: list[dict]) -> dict:
    """Return the mean of models' weights, summed in float64 (Model soups, arXiv 2203.05482)."""
    means = {name: sum(state[name].double() for state in states) / len(states) for name in states[0]}
    return {name: mean.to(states[0][name].dtype) for name, mean in means.items()}


def main() -> None:
    """Train by the recommended recipe."""
    # 1. Flags; then the libraries, which take seconds to import
    args = parse_flags(get_parser())
    import torch
    from sentence_transformers.sentence_transformer import losses

    from data_util import find_kor_nli_train_files, load_kor_nli, load_kor_sts, load_sentences, say_overlap
    from kf_deberta.data.official import ensure_kor_nlu_datasets
    from kf_deberta.evaluation.scoring import PairEvaluator, check_gold
    from kf_deberta.training.batches import ShuffledBatches, TripletBatches
    from kf_deberta.training.distill import TaughtSentences, keep_layers
    from kf_deberta.training.loop import SELECTED_BY, Objective, train
    from kf_deberta.training.run import Run, load_base

    run = Run(args)

    # 2. Data: triplets of every KorNLI train file, and KorSTS pairs with their gold score / 5
    run.on_first(lambda: ensure_kor_nlu_datasets(args.dataset_path, args.download))
    nli_files = find_kor_nli_train_files(args.dataset_path)
    sts_files = [args.dataset_path / "KorSTS" / f"sts-{split}.tsv" for split in ("train", "dev", "test")]
    nli = load_kor_nli(nli_files, args.seed)
    sts, dev, test = map(load_kor_sts, sts_files)
    check_gold(sts["score"][:], sts_files[0])
    say_overlap(sts, dev, "sts-dev")
    say_overlap(sts, test, "sts-test")
    dev = PairEvaluator(dev, "sts-dev", args.eval_batch_size, args.matryoshka_dims or ())
    test = PairEvaluator(test, "sts-test", args.eval_batch_size, args.matryoshka_dims or ())

    # 3. Model: the encoder with mean pooling and embeddings of length 1, in float32
    model = load_base(args, sts["sentence1"][:])
    if args.keep_layers:
        keep_layers(model, args.keep_layers)
    taught = TaughtSentences(args, run) if args.teacher else None
    run.begin(model, test, [*nli_files, *sts_files], taught.name if args.teacher else "")
    stages = {}

    def stage(name: str, objective: Objective, **recipe: float) -> dict:
        """Train a stage in a folder of its own; returns the weights that were best on dev, which the model has too."""
        if args.matryoshka_dims and name != "teacher":
            objective.loss = losses.MatryoshkaLoss(model, objective.loss, args.matryoshka_dims)
        stage_args = argparse.Namespace(**vars(args) | recipe)
        run.print(f"== {name}")
        stages[name] = [objective], train(model, [objective], dev, run.directory / name, stage_args, run), stage_args
        return {name: weight.detach().cpu().clone() for name, weight in model.state_dict().items()}

    # 4. Stage 1: a teacher's embeddings, or NLI with all other texts of the batch, of all processes, as negatives
    if args.teacher:
        taught.embed(load_sentences([*nli_files, sts_files[0]]), run)
        torch.manual_seed(args.seed)  # of the projection, which teachers of other dimensions need
        projection = None if taught.dimensions == model.get_embedding_dimension() else taught.dimensions
        loss = losses.EmbedDistillLoss(model, "cosine", projection)
        batches = ShuffledBatches(taught, args.teacher_batch_size, args.seed)
        recipe = {"num_epochs": args.teacher_epochs, "learning_rate": args.teacher_learning_rate}
        start = stage("teacher", Objective("teacher", taught, batches, loss), **recipe)
    else:
        ranking = {"scale": args.scale, "gather_across_devices": run.world > 1}
        if args.nli_mini_batch_size:
            ranking["mini_batch_size"] = args.nli_mini_batch_size
            loss = losses.CachedMultipleNegativesRankingLoss(model, **ranking)
        else:
            loss = losses.MultipleNegativesRankingLoss(model, **ranking)
        objective = Objective("nli", nli, TripletBatches(nli, args.nli_batch_size, args.seed), loss)
        start = stage("nli", objective, num_epochs=args.nli_epochs, learning_rate=args.nli_learning_rate)

    # 5. Stage 2, STS from the model of stage 1, by each seed
    weights, recipe = {}, {"num_epochs": args.sts_epochs, "learning_rate": args.sts_learning_rate}
    for sts_seed in args.sts_seeds:
        model.load_state_dict(start)
        batches = ShuffledBatches(sts, args.sts_batch_size, sts_seed)
        objective = Objective("sts", sts, batches, losses.CoSENTLoss(model), whole=True)
        weights[f"sts_{sts_seed}"] = stage(f"sts_{sts_seed}", objective, **recipe, seed=sts_seed)

    # 6. The mean of their weights, if it is better on dev than each of them
    model.load_state_dict(mean_of_weights(list(weights.values())))
    mean = {"round": -1, "epoch": -1} | run.on_first(lambda: dev(model))
    best = max(weights, key=lambda name: stages[name][1].best_score)
    kept, figures = f"the mean of the weights of {', '.join(weights)}", mean
    run.print(f"{kept}: {dev.name} cosine Spearman {100 * mean[SELECTED_BY]:.2f}")
    if mean[SELECTED_BY] <= stages[best][1].best_score:
        model.load_state_dict(weights[best])
        kept, figures = best, stages[best][1].best_row

    # 7. Save it, score it on test, write the card
    run.finish(model, test, stages, kept, figures)


if __name__ == "__main__":
    run(main)
