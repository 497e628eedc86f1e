"""One test for each fact of the recipes, read off short runs of the scripts as they are.

The multi-task run: default flags but for the base, the data, 3 epochs and an evaluation every 3 rounds. 600 triplets
are 4 batches of 128 per pass, 28 pairs are 4 batches of 8 (the last of 4): 4 rounds per epoch, 12 rounds.
"""

import csv
import json
import math
import re
from itertools import chain

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import pearsonr
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

import training_multi_task
import training_nli
import training_recommended
import training_sts
from recording import record

ROUNDS = 12
EVAL = "similarity_evaluation_sts-dev_results.csv"
TEST = "similarity_evaluation_sts-test_results.csv"


@pytest.fixture(scope="module")
def flags(toy_base, toy_data):
    return ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--logging_steps", 1]


@pytest.fixture(scope="module")
def run(flags, tmp_path_factory):
    return record(training_multi_task, [*flags, "--num_epochs", 3, "--eval_steps", 3], tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def nli_run(flags, tmp_path_factory):
    return record(training_nli, flags, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def sts_run(flags, tmp_path_factory):
    return record(training_sts, flags, tmp_path_factory.mktemp("out"))


@pytest.fixture(scope="module")
def recommended(flags, tmp_path_factory):
    return record(training_recommended, [*flags, "--sts_seeds", "1", 2], tmp_path_factory.mktemp("out"))


def rows_of(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", quoting=csv.QUOTE_NONE))


def pairs_of(path):
    rows = rows_of(path)
    return [r["sentence1"] for r in rows], [r["sentence2"] for r in rows], [float(r["score"]) for r in rows]


def embed(path, sentences):
    """Mean-pooled embeddings by transformers alone, (sentences, dimensions)."""
    inputs = AutoTokenizer.from_pretrained(path)(sentences, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        tokens = AutoModel.from_pretrained(path).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    return ((tokens * mask).sum(1) / mask.sum(1)).double().numpy()


def similarities(path, file):
    *columns, gold = pairs_of(file)
    left, right = (embed(path, sentences) for sentences in columns)
    cosine = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    euclidean, manhattan = -np.linalg.norm(left - right, axis=1), -np.abs(left - right).sum(1)
    values = {"cosine": cosine, "euclidean": euclidean, "manhattan": manhattan, "dot": (left * right).sum(1)}
    return {name: pearsonr(gold, value)[0] for name, value in values.items()}


def linear(peak, rounds):
    warmup = math.ceil(0.1 * rounds)
    return [peak * (n / warmup if n < warmup else (rounds - n) / (rounds - warmup)) for n in range(rounds)]


def test_objectives_alternate_strictly_nli_first_in_batches_of_128_and_8(run):
    assert [step.objective.name for step in run.steps] == ["nli", "sts"] * ROUNDS
    assert {len(step.rows) for step in run.of("nli")} == {128}
    assert [len(step.rows) for step in run.of("sts")] == [8, 8, 8, 4] * 3


def test_nli_is_triplets_under_ranking_loss_with_scale_20_and_cosine(run):
    loss = run.of("nli")[0].objective.loss
    assert type(loss).__name__ == "MultipleNegativesRankingLoss"
    assert (loss.scale, loss.similarity_fct.__name__) == (20.0, "cos_sim")
    for one, other, negative in chain.from_iterable(step.texts for step in run.of("nli")):
        assert ("entailment" in one) != ("entailment" in other) and "contradiction" in negative


def test_sts_is_pairs_with_score_over_5_under_cosine_loss(run, toy_data):
    assert type(run.of("sts")[0].objective.loss).__name__ == "CosineSimilarityLoss"
    expected = {(a, b): gold / 5 for a, b, gold in zip(*pairs_of(toy_data / "KorSTS" / "sts-train.tsv"), strict=True)}
    for epoch in (0, 4, 8):  # every pair once per epoch
        seen = [row for step in run.of("sts")[epoch : epoch + 4] for row in step.rows]
        assert {(r["sentence1"], r["sentence2"]): r["score"] for r in seen} == pytest.approx(expected)


def test_no_text_occurs_twice_in_an_nli_batch_and_the_stream_goes_on_across_epochs(run):
    for step in run.of("nli"):
        texts = [text.strip().lower() for text in chain.from_iterable(step.texts)]
        assert len(set(texts)) == len(texts)
    first, second = (list(chain(*(step.texts for step in run.of("nli")[i : i + 4]))) for i in (0, 4))
    assert len(set(first)) == 4 * 128
    everything = {tuple(row.values()) for row in run.of("nli")[0].objective.rows}
    assert everything - set(first) <= set(second)  # what the first pass left out comes first in the second


def test_sts_has_a_new_order_each_epoch(run):
    orders = [list(chain(*(step.texts for step in run.of("sts")[i : i + 4]))) for i in (0, 4, 8)]
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize(
    ("name", "objectives", "rounds"), [("run", ["nli", "sts"], 12), ("nli_run", ["nli"], 9), ("sts_run", ["sts"], 20)]
)
def test_each_objective_has_adamw_with_the_published_numbers_and_a_linear_schedule(name, objectives, rounds, request):
    run = request.getfixturevalue(name)
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    for objective in objectives:
        steps = run.of(objective)
        optimizer = steps[0].objective.optimizer
        assert type(optimizer) is torch.optim.AdamW
        assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)
        assert {int(value["step"]) for value in optimizer.state.values()} == {rounds}  # its own steps alone
        decay = {names[id(w)]: group["weight_decay"] for group in optimizer.param_groups for w in group["params"]}
        assert decay == {n: 0.0 if n.endswith("bias") or "LayerNorm" in n else 0.01 for n in names.values()}
        rates = np.array([step.rates for step in steps])
        assert np.allclose(rates, np.array(linear(2e-5, rounds))[:, None], rtol=1e-9, atol=0)
        assert run.log(f"{objective}_learning_rate") == pytest.approx(rates[:, 0], rel=1e-9)


def test_a_step_of_one_objective_leaves_the_moments_of_the_other(run):
    assert all(step.others_untouched for step in run.steps)


@pytest.mark.parametrize(("name", "objectives"), [("run", ["nli", "sts"]), ("nli_run", ["nli"]), ("sts_run", ["sts"])])
def test_gradients_are_clipped_at_1_for_each_step_and_losses_are_logged(name, objectives, request):
    run = request.getfixturevalue(name)
    for objective in objectives:
        norms = run.log(f"{objective}_grad_norm")
        assert max(norms) > 1  # clipping had work to do
        assert [step.clipped_norm for step in run.of(objective)] == pytest.approx(np.minimum(norms, 1), rel=1e-4)
        assert len(run.log(f"{objective}_loss")) == len(norms)


def test_numbers_of_every_recipe_are_flags_with_the_published_defaults():
    shared = {
        "max_seq_length": 128,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "warmup_steps": 0.1,
        "eval_steps": 1000,
    }
    shared |= {"lr_scheduler_type": "linear", "max_rounds": None, "matryoshka_dims": None, "bf16": False}
    published = {"learning_rate": 2e-5, "normalize": False}
    multi = {"nli_batch_size": 128, "sts_batch_size": 8, "num_epochs": 10, "seed": 42, "scale": 20.0} | published
    nli = {"batch_size": 64, "num_epochs": 1, "seed": 777, "scale": 20.0} | published
    sts = {"batch_size": 8, "sts_loss": "cosine", "num_epochs": 5, "seed": 777} | published
    stages = {"nli_batch_size": 64, "nli_epochs": 1, "nli_learning_rate": 2e-5, "scale": 20.0, "sts_batch_size": 32}
    stages |= {"sts_epochs": 2, "sts_learning_rate": 4e-5, "sts_seeds": [1, 2, 3], "seed": 777, "normalize": True}
    recipes = {training_multi_task: multi, training_nli: nli, training_sts: sts, training_recommended: stages}
    for module, own in recipes.items():
        args = vars(module.get_parser().parse_args([]))
        expected = own | shared | {"model_name_or_path": "kakaobank/kf-deberta-base"}
        assert {name: args[name] for name in expected} == expected


def test_float32_with_the_dropout_of_the_base(run):
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    assert {module.p for module in run.model.modules() if isinstance(module, torch.nn.Dropout)} == {0.1}


def test_evaluates_before_training_inside_epochs_and_at_epoch_ends(run, nli_run, sts_run):
    rows = rows_of(run.directory / "eval" / EVAL)
    assert [int(row["steps"]) for row in rows] == [0, 3, 4, 7, 8, 11, 12]  # 3 rounds into an epoch, not 6
    assert [float(row["epoch"]) for row in rows] == [0, 0.75, 1, 1.75, 2, 2.75, 3]
    assert len(rows[0]) == 2 + 8
    assert [int(row["steps"]) for row in rows_of(nli_run.directory / "eval" / EVAL)] == [0, 9]
    assert [int(row["steps"]) for row in rows_of(sts_run.directory / "eval" / EVAL)] == [0, 4, 8, 12, 16, 20]


def test_baseline_and_kept_model_have_the_pearson_figures_of_plain_transformers(run, toy_base, toy_data):
    rows = rows_of(run.directory / "eval" / EVAL)
    dev, test = (toy_data / "KorSTS" / f"sts-{split}.tsv" for split in ("dev", "test"))
    (scores,) = rows_of(run.directory / TEST)
    best = max(rows[1:], key=lambda row: float(row["cosine_spearman"]))  # the first of equals: strictly better
    assert (scores["epoch"], scores["steps"]) == (best["epoch"], best["steps"])
    facts = run.json("results.json")
    assert facts["dev"]["cosine_spearman"] == pytest.approx(float(best["cosine_spearman"]))
    for model, file, figures in (
        (toy_base, dev, rows[0]),
        (toy_base, test, facts["baseline"]),
        (run.directory, dev, best),
        (run.directory, test, scores),
    ):
        for name, value in similarities(model, file).items():
            assert float(figures[f"{name}_pearson"]) == pytest.approx(value, abs=1e-5)


def test_a_run_leaves_a_model_of_mean_pooling_and_128_tokens_and_no_checkpoint(run):
    model = SentenceTransformer(str(run.directory), device="cpu")
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling"]
    assert (model.max_seq_length, model[1].pooling_mode) == (128, "mean")
    assert re.fullmatch(r"kor_multi_toy-base-\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", run.directory.name)
    assert not list(run.directory.rglob("checkpoint-*")) and not list(run.directory.glob(".*"))
    assert (run.directory / "training_curves.png").read_bytes().startswith(b"\x89PNG")


def test_single_recipes_train_on_full_triplet_batches_and_on_all_pairs(nli_run, sts_run):
    assert [len(step.rows) for step in nli_run.steps] == [64] * 9
    assert [len(step.rows) for step in sts_run.steps] == [8, 8, 8, 4] * 5


def test_cosent_loss_is_the_log_of_one_plus_the_wrongly_ordered_pairs(recommended):
    loss = recommended.of("sts")[0].objective.loss
    assert type(loss).__name__ == "CoSENTLoss"
    generator = np.random.default_rng(0)
    u, v, gold = generator.normal(size=(6, 4)), generator.normal(size=(6, 4)), np.array([0.1, 0.5, 0.5, 0.9, 0.2, 0.0])
    cosines = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    wrong = [20 * (cosines[i] - cosines[j]) for i in range(6) for j in range(6) if gold[i] < gold[j]]
    got = loss.compute_loss_from_embeddings([torch.tensor(u), torch.tensor(v)], torch.tensor(gold))
    assert got.item() == pytest.approx(np.log1p(np.exp(wrong).sum()), abs=1e-9)


def test_recommended_stages_run_in_order_at_their_own_rates(recommended):
    assert [(step.objective.name, len(step.rows)) for step in recommended.steps] == [("nli", 64)] * 9 + [
        ("sts", 28)
    ] * 4
    assert [step.rates[0] for step in recommended.steps[:9]] == pytest.approx(linear(2e-5, 9))
    assert [step.rates[0] for step in recommended.steps[9:]] == pytest.approx(linear(4e-5, 2) * 2)
    first, second = recommended.steps[9].texts, recommended.steps[11].texts
    assert sorted(first) == sorted(second) and first != second  # seeds 1 and 2


def test_recommended_keeps_the_mean_of_weights_or_the_best_single_model(flags, tmp_path, monkeypatch):
    from kf_deberta.training import run as run_module

    saved, states = {}, []
    original, mean_of_weights = run_module.Run.finish, training_recommended.mean_of_weights
    monkeypatch.setattr(training_recommended, "mean_of_weights", lambda s: states.append(s) or mean_of_weights(s))

    def finish(self, model, *rest):
        saved.update({name: weight.clone() for name, weight in model.state_dict().items()})
        return original(self, model, *rest)

    monkeypatch.setattr(run_module.Run, "finish", finish)
    run = record(training_recommended, [*flags, "--sts_seeds", "1,2,3", "--max_rounds", 3], tmp_path)
    facts = run.json("results.json")
    (three,) = states
    assert len(three) == 3 and [row["stage"] for row in facts["stages"]] == ["nli", "sts_1", "sts_2", "sts_3"]
    mean = {name: np.mean([state[name].double().numpy() for state in three], axis=0) for name in saved}
    singles = {f"sts_{n}": run.json(f"sts_{n}/log.json")["best_score"] for n in (1, 2, 3)}
    if facts["kept"].startswith("the mean"):
        expected = mean
        assert facts["dev"]["cosine_spearman"] > max(singles.values())
    else:
        expected = {name: weight.numpy() for name, weight in three[int(facts["kept"][-1]) - 1].items()}
        assert facts["dev"]["cosine_spearman"] == max(singles.values()) == singles[facts["kept"]]
    for name, weight in saved.items():
        assert np.allclose(weight.numpy(), expected[name], atol=1e-7), name
    tensors = load_file(run.directory / "model.safetensors")
    assert torch.equal(
        tensors["encoder.layer.1.output.dense.weight"], saved["0.model.encoder.layer.1.output.dense.weight"]
    )


def test_recommended_embeddings_have_length_1(recommended):
    embeddings = SentenceTransformer(str(recommended.directory), device="cpu").encode(["비가 온다.", "해가 뜬다."])
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(1, abs=1e-6)
    (scores,) = rows_of(recommended.directory / TEST)
    assert float(scores["dot_pearson"]) == pytest.approx(float(scores["cosine_pearson"]), abs=1e-6)


def test_each_recommended_sts_stage_starts_from_the_nli_model(recommended):
    base = json.loads((recommended.directory / "nli" / "log.json").read_text())
    best = next(row for row in base["log"] if row["round"] == base["best_round"] and "epoch" in row)
    for stage in ("sts_1", "sts_2"):
        start = json.loads((recommended.directory / stage / "log.json").read_text())["log"][0]
        assert start["round"] == 0
        for name in ("cosine_pearson", "euclidean_pearson"):
            assert start[name] == pytest.approx(best[name], abs=1e-6)
