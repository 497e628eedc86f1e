"""One test for each fact of the published multi-task recipe, read off a short run of the script as it stands.

The run: default flags but for the base, the data, 3 epochs and an evaluation every 3 rounds. 600 triplets are 4
batches of 128 per pass, 28 pairs are 4 batches of 8 (the last of 4): 4 rounds per epoch, 12 rounds.
"""

import csv
import json
import math
from itertools import chain

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from transformers import AutoModel, AutoTokenizer

from recording import record

ROUNDS, EPOCH_ROUNDS = 12, 4


@pytest.fixture(scope="module")
def run(toy_base, toy_data, tmp_path_factory):
    import training_multi_task

    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--num_epochs", 3, "--eval_steps", 3]
    return record(training_multi_task, [*flags, "--logging_steps", 1], tmp_path_factory.mktemp("out"))


def pairs_of(path):
    """Return sentence1, sentence2 and score of a KorSTS file as lists."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return (
        [row["sentence1"] for row in rows],
        [row["sentence2"] for row in rows],
        [float(row["score"]) for row in rows],
    )


def embed(path, sentences):
    """Mean-pooled embeddings by transformers alone, shape (sentences, dimensions)."""
    inputs = AutoTokenizer.from_pretrained(path)(sentences, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        tokens = AutoModel.from_pretrained(path).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    return ((tokens * mask).sum(1) / mask.sum(1)).double().numpy()


def cosine_pearson(path, file):
    left, right, gold = pairs_of(file)
    left, right = embed(path, left), embed(path, right)
    cosine = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    return pearsonr(gold, cosine)[0]


def steps_of(run, objective):
    return [step for step in run.steps if step.objective == objective]


def test_objectives_alternate_strictly_nli_first(run):
    assert [step.objective for step in run.steps] == ["nli", "sts"] * ROUNDS


def test_batch_sizes_are_128_and_8(run):
    assert {len(step.texts) for step in steps_of(run, "nli")} == {128}
    assert [len(step.texts) for step in steps_of(run, "sts")] == [8, 8, 8, 4] * 3


def test_epoch_is_the_shorter_pass(run):
    assert run.trainer.batches.rounds == EPOCH_ROUNDS == min(600 // 128, math.ceil(28 / 8))


def test_nli_is_triplets_under_ranking_loss_with_scale_20_and_cosine(run):
    loss = run.trainer.loss["nli"]
    assert type(loss).__name__ == "MultipleNegativesRankingLoss"
    assert (loss.scale, loss.similarity_fct.__name__) == (20.0, "cos_sim")
    assert run.trainer.train_dataset["nli"].column_names == ["anchor", "positive", "negative"]
    for one, other, negative in chain.from_iterable(step.texts for step in steps_of(run, "nli")):
        assert ("entailment" in one) != ("entailment" in other) and "contradiction" in negative


def test_sts_is_pairs_with_score_over_5_under_cosine_loss(run, toy_data):
    assert type(run.trainer.loss["sts"]).__name__ == "CosineSimilarityLoss"
    first, second, gold = pairs_of(toy_data / "KorSTS" / "sts-train.tsv")
    train = run.trainer.train_dataset["sts"].with_format(None)
    assert (train["sentence1"][:], train["sentence2"][:]) == (first, second)
    assert np.allclose(train["score"][:], np.array(gold) / 5)


def test_no_text_occurs_twice_in_an_nli_batch(run):
    for step in steps_of(run, "nli"):
        texts = [text.strip().lower() for text in chain.from_iterable(step.texts)]
        # a triplet's own texts differ from each other in this data
        assert len(set(texts)) == len(texts)


def test_nli_stream_goes_on_across_epochs(run):
    first_pass = list(chain.from_iterable(step.texts for step in steps_of(run, "nli")[:4]))
    assert len(set(first_pass)) == 4 * 128
    second = set(chain.from_iterable(step.texts for step in steps_of(run, "nli")[4:8]))
    everything = {
        tuple(row) for row in zip(*run.trainer.train_dataset["nli"].with_format(None)[:].values(), strict=True)
    }
    assert everything - set(first_pass) <= second  # what the first pass left out comes first in the second


def test_sts_covers_every_pair_each_epoch_in_a_new_order(run):
    epochs = [list(chain.from_iterable(s.texts for s in steps_of(run, "sts")[i : i + 4])) for i in (0, 4, 8)]
    assert all(len(set(epoch)) == 28 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_each_objective_has_its_own_linear_schedule_over_rounds(run):
    warmup = math.ceil(0.1 * ROUNDS)
    expected = [
        2e-5 * (number / warmup if number < warmup else (ROUNDS - number) / (ROUNDS - warmup))
        for number in range(ROUNDS)
    ]
    for objective in ("nli", "sts"):
        rates = np.array([step.learning_rates for step in steps_of(run, objective)])
        assert rates.shape == (ROUNDS, 2) and not rates[0].any()  # both groups: with and without weight decay
        assert np.allclose(rates, np.array(expected)[:, None], rtol=1e-9, atol=0)
    assert [group["lr"] for group in run.trainer.optimizer.param_groups] == pytest.approx([0, 0])


def test_a_step_of_one_objective_leaves_the_moments_of_the_other(run):
    assert all(step.others_untouched and step.mine_moved for step in run.steps)


def test_adamw_with_published_numbers(run):
    optimizer = run.trainer.optimizer.optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)
    # every objective's moments count its own steps
    steps = {name: {int(value["step"]) for value in state.values()} for name, state in optimizer.states.items()}
    assert steps == {"nli": {ROUNDS}, "sts": {ROUNDS}}


def test_weight_decay_spares_biases_and_layernorm(run):
    names = {id(parameter): name for name, parameter in run.trainer.model.named_parameters()}
    groups = run.trainer.optimizer.param_groups
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(names)
    for name, value in decay.items():
        assert value == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.01), name


def test_gradients_are_clipped_at_1_for_each_step(run):
    for name in ("nli", "sts"):
        norms = [row[f"{name}_grad_norm"] for row in run.trainer.state.log_history if "round" in row]
        assert max(norms) > 1  # clipping had work to do
        assert [step.clipped_norm for step in steps_of(run, name)] == pytest.approx(np.minimum(norms, 1), rel=1e-4)


def test_no_accumulation_no_mixed_precision_float32(run):
    args = run.trainer.args
    assert (args.gradient_accumulation_steps, args.bf16, args.fp16) == (1, False, False)
    assert {parameter.dtype for parameter in run.trainer.model.parameters()} == {torch.float32}


def test_seed_42_and_dropout_of_the_base(run):
    samplers = run.trainer.batch_samplers.values()
    assert {run.trainer.args.seed, *(sampler.seed for sampler in samplers)} == {42}
    assert {module.p for module in run.trainer.model.modules() if isinstance(module, torch.nn.Dropout)} == {0.1}


@pytest.fixture(scope="module")
def dev_rows(run):
    with (run.directory / "eval" / "similarity_evaluation_sts-dev_results.csv").open() as file:
        return list(csv.DictReader(file))


def test_evaluates_before_training_inside_epochs_and_at_epoch_ends(dev_rows):
    assert [int(row["steps"]) / 2 for row in dev_rows] == [0, 3, 4, 7, 8, 11, 12]  # 3 rounds into an epoch, not 6
    assert [float(row["epoch"]) for row in dev_rows] == [0, 0.75, 1, 1.75, 2, 2.75, 3]
    assert len(dev_rows[0]) == 2 + 8


def test_baseline_is_the_untrained_base(run, dev_rows, toy_base, toy_data):
    dev, test = (cosine_pearson(toy_base, toy_data / "KorSTS" / f"sts-{split}.tsv") for split in ("dev", "test"))
    assert float(dev_rows[0]["cosine_pearson"]) == pytest.approx(dev, abs=1e-5)
    facts = json.loads((run.directory / "training_arguments.json").read_text())
    assert facts["baseline"]["cosine_pearson"] == pytest.approx(100 * test, abs=1e-3)


def test_kept_model_is_the_best_dev_cosine_spearman(run, dev_rows, toy_data):
    best = max(dev_rows[1:], key=lambda row: float(row["cosine_spearman"]))  # the first of equals: strictly better
    assert run.trainer.state.best_global_step == int(best["steps"])
    facts = json.loads((run.directory / "training_arguments.json").read_text())
    assert facts["best_dev_cosine_spearman"] == pytest.approx(100 * float(best["cosine_spearman"]))
    with (run.directory / "similarity_evaluation_sts-test_results.csv").open() as file:
        (scores,) = csv.DictReader(file)
    assert (scores["epoch"], scores["steps"]) == (best["epoch"], best["steps"])
    saved = cosine_pearson(run.directory, toy_data / "KorSTS" / "sts-dev.tsv")
    assert saved == pytest.approx(float(best["cosine_pearson"]), abs=1e-5)


def test_reports_losses_rates_and_norms_per_objective(run):
    history = json.loads((run.directory / "trainer_state.json").read_text())["log_history"]
    rows = [row for row in history if "round" in row]
    assert len(rows) == ROUNDS
    for name in ("nli", "sts"):
        assert all({f"{name}_loss", f"{name}_learning_rate", f"{name}_grad_norm"} <= row.keys() for row in rows)
        logged = [row[f"{name}_learning_rate"] for row in rows]
        assert np.allclose(logged, [step.learning_rates[0] for step in steps_of(run, name)], atol=0)
    assert all(row["nli_loss"] > 1 > row["sts_loss"] for row in rows)  # cross-entropy over 256, squared error


def test_model_is_transformer_128_with_mean_pooling_and_plain_transformers_agree(run, toy_data):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(run.directory), device="cpu")
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling"]
    assert (model.max_seq_length, model[1].pooling_mode) == (128, "mean")

    *columns, gold = pairs_of(toy_data / "KorSTS" / "sts-test.tsv")
    left, right = (embed(run.directory, sentences) for sentences in columns)
    assert np.allclose(model.encode(columns[0]), left, atol=1e-5)
    assert np.allclose(model.encode(columns[1]), right, atol=1e-5)

    # the eight test figures, by scipy alone
    similarity = {
        "cosine": (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1),
        "euclidean": -np.linalg.norm(left - right, axis=1),
        "manhattan": -np.abs(left - right).sum(1),
        "dot": (left * right).sum(1),
    }
    with (run.directory / "similarity_evaluation_sts-test_results.csv").open() as file:
        (scores,) = csv.DictReader(file)
    for name, values in similarity.items():
        assert float(scores[f"{name}_pearson"]) == pytest.approx(pearsonr(gold, values)[0], abs=1e-5)
        # pairs of equal sentences are ties, which rounding noise breaks in any order: the worst and the best of them
        low, high = (spearmanr(gold, values.round(5) + sign * 1e-9 * np.array(gold))[0] for sign in (-1, 1))
        assert low - 0.002 <= float(scores[f"{name}_spearman"]) <= high + 0.002
