"""One test for each fact of the published multi-task recipe, read off a short run of the script as it stands.

The run: default flags but for the base, the data, 3 epochs and an evaluation every 2 rounds. 600 triplets are 4
batches of 128 a pass, 28 pairs are 4 batches of 8 (the last of 4): 4 rounds an epoch, 12 rounds.
"""

import csv
import json
import math
from itertools import chain

import numpy as np
import pytest
import torch
from recording import record
from scipy.stats import pearsonr, spearmanr

ROUNDS, EPOCH_ROUNDS = 12, 4


@pytest.fixture(scope="module")
def run(toy_base, toy_data, tmp_path_factory):
    import training_multi_task

    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--num_epochs", 3, "--eval_steps", 2]
    return record(training_multi_task, [*flags, "--logging_steps", 1], tmp_path_factory.mktemp("out"))


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
    assert all(len(texts) == 3 for texts in steps_of(run, "nli")[0].texts)


def test_sts_is_pairs_with_score_over_5_under_cosine_loss(run, toy_data):
    assert type(run.trainer.loss["sts"]).__name__ == "CosineSimilarityLoss"
    with (toy_data / "KorSTS" / "sts-train.tsv").open(encoding="utf-8") as file:
        gold = [float(row["score"]) / 5 for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    assert np.allclose(run.trainer.train_dataset["sts"].with_format(None)["score"][:], gold)


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
        rates = [step.learning_rates[0] for step in steps_of(run, objective)]
        assert rates[0] == 0
        assert np.allclose(rates, expected, rtol=1e-9)
        assert run.trainer.objective_optimizer.optimizers[objective].param_groups[0]["lr"] == pytest.approx(0)


def test_a_step_of_one_objective_leaves_the_moments_of_the_other(run):
    assert all(step.others_untouched and step.mine_moved for step in run.steps)


def test_adamw_with_published_numbers(run):
    for optimizer in run.trainer.objective_optimizer.optimizers.values():
        assert type(optimizer) is torch.optim.AdamW
        assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)


def test_weight_decay_spares_biases_and_layernorm(run):
    names = {id(parameter): name for name, parameter in run.trainer.model.named_parameters()}
    for optimizer in run.trainer.objective_optimizer.optimizers.values():
        decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert len(decay) == len(names)
        for name, value in decay.items():
            assert value == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.01), name


def test_gradients_are_clipped_at_1_for_each_step(run):
    assert max(step.clipped_norm for step in run.steps) <= 1 + 1e-4
    history = [row for row in run.trainer.state.log_history if "nli_grad_norm" in row]
    assert max(row["nli_grad_norm"] for row in history) > 1  # clipping had work to do


def test_no_accumulation_no_mixed_precision_float32(run):
    args = run.trainer.args
    assert (args.gradient_accumulation_steps, args.bf16, args.fp16) == (1, False, False)
    assert {parameter.dtype for parameter in run.trainer.model.parameters()} == {torch.float32}


def test_evaluates_before_training_inside_epochs_and_at_epoch_ends(run):
    with (run.directory / "eval" / "similarity_evaluation_sts-dev_results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["steps"]) // 2 for row in rows] == [0, 2, 4, 6, 8, 10, 12]
    assert [float(row["epoch"]) for row in rows] == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert len(rows[0]) == 2 + 8


def test_kept_model_is_the_best_dev_cosine_spearman(run):
    rows = [row for row in run.trainer.state.log_history if "eval_sts-dev_spearman_cosine" in row and row["step"]]
    best = max(rows, key=lambda row: row["eval_sts-dev_spearman_cosine"])  # the first of equals: strictly better
    assert run.trainer.state.best_global_step == best["step"]


def test_reports_losses_rates_and_norms_per_objective(run):
    history = json.loads((run.directory / "trainer_state.json").read_text())["log_history"]
    rows = [row for row in history if "round" in row]
    assert len(rows) == ROUNDS
    for name in ("nli", "sts"):
        assert all({f"{name}_loss", f"{name}_learning_rate", f"{name}_grad_norm"} <= row.keys() for row in rows)
        logged = [row[f"{name}_learning_rate"] for row in rows]
        assert np.allclose(logged, [step.learning_rates[0] for step in steps_of(run, name)])


def test_model_is_transformer_128_with_mean_pooling_and_plain_transformers_agree(run, toy_data):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    model = SentenceTransformer(str(run.directory), device="cpu")
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling"]
    assert (model.max_seq_length, model[1].pooling_mode) == (128, "mean")

    with (toy_data / "KorSTS" / "sts-test.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    tokenizer = AutoTokenizer.from_pretrained(run.directory)
    encoder = AutoModel.from_pretrained(run.directory).eval()
    embeddings = []
    for column in ("sentence1", "sentence2"):
        inputs = tokenizer([row[column] for row in rows], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            tokens = encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        embeddings.append(((tokens * mask).sum(1) / mask.sum(1)).double().numpy())
        assert np.allclose(model.encode([row[column] for row in rows]), embeddings[-1], atol=1e-5)

    # the eight test figures, by scipy alone
    left, right = embeddings
    similarity = {
        "cosine": (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1),
        "euclidean": -np.linalg.norm(left - right, axis=1),
        "manhattan": -np.abs(left - right).sum(1),
        "dot": (left * right).sum(1),
    }
    gold = [float(row["score"]) for row in rows]
    with (run.directory / "eval" / "similarity_evaluation_sts-test_results.csv").open() as file:
        (scores,) = csv.DictReader(file)
    for name, values in similarity.items():
        assert float(scores[f"{name}_pearson"]) == pytest.approx(pearsonr(gold, values)[0], abs=1e-5)
        assert float(scores[f"{name}_spearman"]) == pytest.approx(spearmanr(gold, values)[0], abs=0.002)
