"""What can go wrong in training: flags, models, data, numbers, disks. One line, exit 2, nothing lost."""

import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file
from transformers import DebertaV2Config, DebertaV2Model

import training_multi_task
import training_nli
import training_sts
from kf_deberta.cli import InputError, run

SCRIPTS = {"multi": training_multi_task, "nli": training_nli, "sts": training_sts}


@pytest.fixture
def attempt(monkeypatch, capsys, tmp_path):
    """Run a script's main in this process as the command line does; return its exit status and stderr lines."""

    def call(script: str, *flags: object) -> tuple[int, list[str]]:
        module = SCRIPTS[script]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, flags)])
        with pytest.raises(SystemExit) as stopped:
            run(module.main)
        lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        return stopped.value.code, lines

    return call


def broken_model(base, path, name, content):
    shutil.copytree(base, path)
    (path / name).write_bytes(content)
    return path


FLAG_CASES = [
    (["--no_such_flag"], "unknown flag --no_such_flag"),
    (["--max_seq_length", "0"], "must be 1 or more, not 0"),
    (["--num_epochs", "-1"], "must be 1 or more, not -1"),
    (["--num_epochs", "two"], "--num_epochs: must be a whole number, not two"),
    (["--learning_rate", "nan"], "must be a finite number, not nan"),
    (["--batch_size", "0"], "must be 1 or more, not 0"),
    (["--eval_steps", "1.5"], "--eval_steps: must be a whole number, not 1.5"),
    (["--seed", "-1"], "must be 0 or more, not -1"),
    (["--matryoshka_dims", "32,x"], "--matryoshka_dims: must be a whole number, not x"),
    (["--matryoshka_dims", "1"], "must be 2 or more, not 1"),
    (["--model_name_or_path", "{constant}"], "sts-test: all pairs have the same cosine similarity"),
    (["--matryoshka_dims", "9999"], "has 32 dimensions"),
    (["--per_device_train_batch_size", "4"], "use --batch_size"),
    (["--max_steps", "4"], "use --max_rounds"),
    (["--gradient_accumulation_steps", "4"], "objectives must not share a step"),
    (["--fp16"], "use --bf16"),
    (["--learning-rate", "1e-2"], "unknown flag --learning-rate; did you mean --learning_rate?"),
    (["--learning_rate", "inf"], "must be a finite number, not inf"),
    (["--warmup_ratio", "0.5"], "use --warmup_steps"),
    (["--lr_scheduler_type", "reduce_lr_on_plateau"], "must be linear, cosine or constant_with_warmup"),
    (["--weight_decay", "much"], "--weight_decay: must be a finite number, not much"),
    (["--report_to", "nothing_known"], "nothing_known"),
    (["--seed", str(2**64)], "must be 4294967295 or less"),
    (["--learning_rate", "0"], "--learning_rate: must be above 0, not 0"),
    (["--weight_decay", "-1"], "--weight_decay: must be 0 or more, not -1"),
    (["--max_grad_norm", "nan"], "--max_grad_norm: must be a finite number, not nan"),
    (["--warmup_steps", "-0.1"], "--warmup_steps: must be 0 or more"),
    (["--dataloader_num_workers", "-1"], "--dataloader_num_workers: must be 0 or more"),
    (["--num_epochs", "9" * 20], "--num_epochs: must be 2147483647 or less"),
    (["--weigth_decay", "0"], "unknown flag --weigth_decay; did you mean --weight_decay?"),
    (["--report_too=none"], "unknown flag --report_too; did you mean --report_to?"),
    (["--neftune_noise_alpha", "5"], "unknown flag --neftune_noise_alpha; training_sts.py --help lists the flags"),
    (["--greater_is_better", "False"], "--greater_is_better is set by the recipe; remove it"),
    (["--optim", "galore_adamw"], "--optim is set by the recipe; remove it"),
    (["--run_name", "a"], "--run_name has no effect without --report_to"),
    (["--hub_private_repo"], "--hub_private_repo has no effect without --push_to_hub"),
    (["--push_to_hub"], "name the repository with --hub_model_id"),
    (["--tf32"], "--tf32: --tf32 requires Ampere"),
    (["--output_prefix", "a/b"], "--output_prefix a/b: must not hold a /"),
    (["--dataset_path", "kor-nlu-dataset"], "kor-nlu-dataset: no such directory; give the folder that holds KorNLI/"),
    (["--output_dir", "{loop}"], "loop: not writable"),
    (["--output_dir", "{file}/below"], "not writable (Not a directory)"),
    (["--model_name_or_path", "\udcff"], "--model_name_or_path: must be UTF-8, not b'\\xff'"),
    (["--max_seq_length", "100000"], "exceeds its 512 positions"),
    (["--resume", "no-such-run"], "no-such-run: no training_arguments.json"),
    (["--dataset_path", "{empty}"], "{empty}"),
    (["--output_dir", "{file}"], "{file}"),
    (["--model_name_or_path", "{empty}"], "no config.json"),
    (["--model_name_or_path", "{file}"], "not a model directory"),
    (["--model_name_or_path", "no/such/place"], "not a model directory"),
    (["--model_name_or_path", "../nope"], "../nope: not a model directory"),
    (["--model_name_or_path", "owner/한글"], "owner/한글: not a model directory"),
    (["--hub_model_id", "내 모델/v1"], "--hub_model_id 내 모델/v1: not a name that the hub takes"),
    (["--model_name_or_path", "no-such-owner/no-such-model"], "not cached"),
    (["--model_name_or_path", "{bad_config}"], "cannot be loaded"),
    (["--model_name_or_path", "{bad_weights}"], "cannot be loaded"),
    (["--model_name_or_path", "{cut_weights}"], "cannot be loaded"),
    (["--model_name_or_path", "{pickled}"], "weights hold more than tensors"),
    (["--model_name_or_path", "{no_tokenizer}"], "no usable tokenizer"),
    (["--model_name_or_path", "{unfitting}"], "tokenizer has ids up to"),
    (["--model_name_or_path", "{wrong_type}"], "cannot be loaded"),
]


@pytest.fixture(scope="module")
def places(toy_base, tmp_path_factory):
    root = tmp_path_factory.mktemp("places")
    (root / "empty").mkdir()
    (root / "file").write_text("not a directory")
    (root / "loop").symlink_to(root / "loop")
    weights = (toy_base / "model.safetensors").read_bytes()
    broken_model(toy_base, root / "bad_config", "config.json", b"{")
    broken_model(toy_base, root / "bad_weights", "model.safetensors", b"\x00" * 1000)
    broken_model(toy_base, root / "cut_weights", "model.safetensors", weights[: len(weights) // 2])
    pickled = broken_model(toy_base, root / "pickled", "pytorch_model.bin", b"cos\nsystem\n")
    (pickled / "model.safetensors").unlink()
    no_tokenizer = shutil.copytree(toy_base, root / "no_tokenizer")
    for path in [*no_tokenizer.glob("*token*"), *no_tokenizer.glob("vocab*")]:
        path.unlink()
    constant = shutil.copytree(toy_base, root / "constant")
    tensors = load_file(toy_base / "model.safetensors")
    for name in tensors:
        if "layer.1.output.LayerNorm" in name:
            tensors[name].fill_(name.endswith("bias"))
    save_file(tensors, constant / "model.safetensors", {"format": "pt"})
    config = json.loads((toy_base / "config.json").read_text()) | {"model_type": "unheard-of"}
    broken_model(toy_base, root / "wrong_type", "config.json", json.dumps(config).encode())
    config = json.loads((toy_base / "config.json").read_text()) | {"vocab_size": 100}
    unfitting = broken_model(toy_base, root / "unfitting", "config.json", json.dumps(config).encode())
    DebertaV2Model(DebertaV2Config.from_pretrained(unfitting)).save_pretrained(unfitting)
    return {path.name: str(path) for path in root.iterdir()}


@pytest.mark.parametrize(("flags", "message"), FLAG_CASES, ids=[" ".join(flags) for flags, _ in FLAG_CASES])
def test_bad_flags_models_and_places(attempt, toy_base, toy_data, places, tmp_path, flags, message):
    flags = [flag.format(**places) for flag in flags]
    defaults = {"--model_name_or_path": toy_base, "--dataset_path": toy_data, "--max_rounds": 1}
    filled = [word for name, value in defaults.items() if name not in flags for word in (name, value)]
    status, lines = attempt("sts", *filled, *flags)
    assert status == 2
    assert len(lines) == 1 and message.format(**places) in lines[0]
    assert not (tmp_path / "output").exists() or not list((tmp_path / "output").iterdir())


def nli_data(toy_data, path, lines):
    shutil.copytree(toy_data, path)
    text = "\n".join(["sentence1\tsentence2\tgold_label", *lines]) + "\n"
    (path / "KorNLI" / "toy.train.ko.tsv").write_text(text, encoding="utf-8")
    return path


def test_no_nli_train_file(attempt, toy_base, toy_data, tmp_path):
    data = shutil.copytree(toy_data, tmp_path / "data")
    (data / "KorNLI" / "toy.train.ko.tsv").unlink()
    status, lines = attempt("nli", "--model_name_or_path", toy_base, "--dataset_path", data)
    assert status == 2 and "train.ko.tsv" in lines[0]


@pytest.mark.parametrize("labels", [["neutral"], ["entailment"], ["contradiction"]])
def test_only_one_label_gives_no_triplet(attempt, toy_base, toy_data, tmp_path, labels):
    rows = [f"전제 {i}\t가설 {i}\t{labels[0]}" for i in range(200)]
    data = nli_data(toy_data, tmp_path / "data", rows)
    status, lines = attempt("multi", "--model_name_or_path", toy_base, "--dataset_path", data)
    assert status == 2 and "triplet" in lines[0]


def test_fewer_triplets_than_a_batch_and_duplicate_only_data(attempt, toy_base, toy_data, tmp_path):
    rows = [f"전제 {i}\t{kind}\t{kind}" for i in range(100) for kind in ("entailment", "contradiction")]
    data = nli_data(toy_data, tmp_path / "same", rows)
    status, lines = attempt("nli", "--model_name_or_path", toy_base, "--dataset_path", data)
    assert status == 2 and "too few different texts" in lines[0]
    data = nli_data(toy_data, tmp_path / "few", rows[:2])
    status, lines = attempt("nli", "--model_name_or_path", toy_base, "--dataset_path", data)
    assert status == 2 and "2 triplets, fewer than a batch of 64" in lines[0]


def test_non_finite_loss_names_objective_round_rows_and_checkpoint(attempt, toy_base, toy_data, tmp_path, monkeypatch):
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    compute, calls = CosineSimilarityLoss.compute_loss_from_embeddings, []

    def overflow(self, embeddings, labels):
        calls.append(1)
        return compute(self, embeddings, labels) * (float("inf") if len(calls) == 3 else 1)

    monkeypatch.setattr(CosineSimilarityLoss, "compute_loss_from_embeddings", overflow)
    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--nli_batch_size", 32]
    status, lines = attempt("multi", *flags, "--save_steps", 1)
    assert status == 2
    assert "non-finite loss of objective sts in round 2, rows [" in lines[0]
    (directory,) = (tmp_path / "output").iterdir()
    assert f"last good checkpoint: {directory}/checkpoint-4" in lines[0]
    assert (directory / "checkpoint-4" / "model.safetensors").is_file()


def test_bf16_trains_within_a_point_of_float32(attempt, toy_base, toy_data, tmp_path, monkeypatch):
    figures = []
    for extra in ([], ["--bf16"]):
        monkeypatch.chdir(tmp_path)
        output = tmp_path / f"out{len(figures)}"
        flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--num_epochs", 2, *extra]
        monkeypatch.setattr(sys, "argv", ["training_sts.py", *map(str, flags), "--output_dir", str(output)])
        training_sts.main()
        (directory,) = output.iterdir()
        figures.append(json.loads((directory / "training_arguments.json").read_text())["best_dev_cosine_spearman"])
    assert figures[1] == pytest.approx(figures[0], abs=1.0)


def test_full_disk_keeps_the_checkpoints_before_and_can_go_on(repo, toy_base, toy_data, tmp_path):
    size = (toy_base / "model.safetensors").stat().st_size
    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--max_rounds", 3, "--save_steps", 1]
    command = [sys.executable, str(repo / "training_sts.py"), *map(str, flags), "--output_dir", str(tmp_path)]

    def limit():  # the weights fit, the optimizer's two moments do not
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(1.5 * size), int(1.5 * size)))

    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    assert result.returncode == 2, result.stderr[-3000:]
    assert len(errors) == 1 and "cannot be written" in errors[0] and "--resume" in errors[0]
    (directory,) = tmp_path.iterdir()
    assert not list(directory.glob("checkpoint-*")) and not (directory / "unfinished-checkpoint").exists()
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    assert (directory / "model.safetensors").is_file()


def test_unwritable_output(attempt, toy_base, toy_data, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    flags = ["--model_name_or_path", toy_base, "--dataset_path", toy_data, "--output_dir", tmp_path / "locked"]
    status, lines = attempt("sts", *flags)
    assert status == 2 and "not writable" in lines[0]


def test_input_error_is_one_line(capsys):
    def fail():
        raise InputError("file.tsv:3: wrong; mend it")

    with pytest.raises(SystemExit) as stopped:
        run(fail)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: file.tsv:3: wrong; mend it\n"
