"""A rehearsal of the real hub on loopback: what it serves, what goes wrong there, what is asked and what is pushed."""

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

import hub_models
from hub import TOKEN, serve

BASE, PUBLISHED = "kakaobank/kf-deberta-base", "upskyy/kf-deberta-multitask"
NAMES = {
    "klue/roberta-base": hub_models.klue_roberta_base,
    "jhgan/ko-sroberta-multitask": hub_models.ko_sroberta_multitask,
    "BM-K/KoSimCSE-roberta-multitask": hub_models.kosimcse_roberta_multitask,
    "owner/vocab-txt": hub_models.vocab_txt_only,
}
PIECES = 48_000  # of the base: 12 MB of weights, more than the client takes at once
SMALL = ["--max_rounds", 2, "--max_seq_length", 32]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The hub with the models that this project names, and their commits by name."""
    folder = tmp_path_factory.mktemp("hub")
    with serve() as server:
        server.commits = {
            BASE: server.add(BASE, hub_models.kf_deberta_base(folder / "base", PIECES)),
            "bin": server.add(PUBLISHED, hub_models.kf_deberta_multitask(folder / "bin", "bin"), "bin"),
            PUBLISHED: server.add(PUBLISHED, hub_models.kf_deberta_multitask(folder / "safetensors")),
            "gated": server.add("owner/gated", {"config.json": b"{}"}, gated=True),
        }
        for name, build in NAMES.items():
            server.commits[name] = server.add(name, build(folder / name))
        yield server


@pytest.fixture(scope="module")
def clone(repo, toy_data, tmp_path_factory):
    """A directory that looks like a clone with the data in it."""
    root = tmp_path_factory.mktemp("clone")
    for path in [*repo.glob("*.py"), repo / "bin", repo / "requirements.txt"]:
        (root / path.name).symlink_to(path)
    (root / "kor-nlu-datasets").symlink_to(toy_data)
    return root


@pytest.fixture(scope="module")
def online(hub, tmp_path_factory) -> dict[str, str]:
    """The environment of a machine that reaches this hub, logged in, with nothing cached yet.

    hf_xet would upload to Xet's own servers, which this hub does not have: without it uploads are those of Git LFS.
    """
    home = {"HF_HOME": str(tmp_path_factory.mktemp("home")), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SENTENCE_"))}
    return plain | home | {"HF_ENDPOINT": hub.url, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(scope="module")
def run(repo, clone):
    """Run commands in one process, each as `python ...` would; return their statuses, the output and the errors."""

    def run(environment: dict[str, str], *commands: list[object]):
        words = json.dumps([[str(word) for word in command] for command in commands])
        driver = [sys.executable, str(repo / "tests" / "helpers" / "readme_driver.py"), words]
        result = subprocess.run(driver, cwd=clone, env=environment, capture_output=True, text=True, input="물음\n")
        found = re.search(r"^STATUS (.*)$", result.stdout, re.M)
        assert found, result.stdout[-3000:] + result.stderr[-6000:]
        errors = [line.removeprefix("error: ") for line in result.stderr.splitlines() if line.startswith("error: ")]
        return json.loads(found.group(1)), result.stdout, errors, result.stderr

    return run


@pytest.fixture(scope="module")
def rehearsed(hub, online, run):
    """Every command once without --model_name_or_path, on an empty cache, over a busy line that is cut once."""
    hub.cut, hub.busy = {"pytorch_model.bin"}, {BASE, "config.json"}
    statuses, output, _, stderr = run(
        online,
        ["training_multi_task.py", *SMALL, "--nli_batch_size", 16],
        ["training_nli.py", *SMALL, "--batch_size", 16, "--revision", hub.commits[BASE]],
        ["training_sts.py", *SMALL, "--push_to_hub", "--hub_model_id", "rehearsal/kor-sts"],
        ["bin/benchmark.py", "--output", "results.json"],
        ["bin/benchmark.py", "--output", "bin.json", "--revision", "bin"],
        ["bin/export_onnx.py", "--output_dir", "models"],
        ["bin/search.py", "--revision", "main", "한 투자자가 비트코인을 매수한다."],
    )
    assert statuses == [0] * 7, output[-3000:] + stderr[-6000:]
    signs = ["loading libraries", f"loading {BASE}", "model: ", "before training: scoring KorSTS test, 20 pairs"]
    signs += ["writing the best model to ", f"loading {PUBLISHED}", "writing kf-deberta-multitask.onnx"]
    for sign in [*signs, "writing checkpoint-4", "scoring the best model on KorSTS test, 20 pairs"]:
        assert f"\n{sign}" in "\n" + stderr, f"no sign of life: {sign}"
    assert "FutureWarning" not in stderr and stderr.count("Trying to resume download") == 1
    return output


def facts_of(clone, recipe: str) -> tuple[dict, object]:
    (path,) = clone.glob(f"output/kor_{recipe}_*/training_arguments.json")
    return json.loads(path.read_text()), path.parent


def test_a_cut_download_is_resumed_and_no_token_leaves_the_hub(hub, rehearsed):
    assert not hub.cut and not hub.busy
    whole, rest = hub.asked("/pytorch_model.bin?", "GET")[:2]
    assert whole.range is None and rest.range.startswith("bytes=1048") and rest.status == 206
    assert {request.token for request in hub.asked("/cdn/")} == {None}
    assert {request.token for request in hub.asked("/resolve/")} == {TOKEN}


def test_nothing_asks_the_hub_to_convert_a_model(hub, rehearsed):
    assert hub.asked("/resolve/")
    assert not [r for r in hub.log if "/discussions" in r.path or "/commits/" in r.path or "/pr/" in r.path]


def test_what_was_loaded_is_pinned(hub, clone, rehearsed):
    for recipe in ("multi", "nli", "sts"):
        facts, _ = facts_of(clone, recipe)
        assert facts["base_revision"] == hub.commits[BASE]
    (row,) = json.loads((clone / "results.json").read_text())
    (other,) = json.loads((clone / "bin.json").read_text())
    assert (row["revision"], other["revision"]) == (hub.commits[PUBLISHED], hub.commits["bin"])
    assert hub.asked(f"/{PUBLISHED}/resolve/{hub.commits['bin']}/pytorch_model.bin")
    assert row["cosine_spearman"] == other["cosine_spearman"], "the same weights in either format"
    assert hub.commits[PUBLISHED] in (clone / "models" / "README.md").read_text()


def test_what_is_pushed(hub, clone, rehearsed):
    files = hub.repositories["rehearsal/kor-sts"].commits[hub.repositories["rehearsal/kor-sts"].branches["main"]]
    _, directory = facts_of(clone, "sts")
    expected = {"README.md", "model.safetensors", "config.json", "tokenizer.json", "modules.json"}
    expected |= {"1_Pooling/config.json", "eval/similarity_evaluation_sts-dev_results.csv"}
    expected |= {"similarity_evaluation_sts-test_results.csv", "training_curves.png"}
    assert expected <= files.keys()
    assert files["model.safetensors"] == (directory / "model.safetensors").read_bytes()
    unwanted = r"checkpoint|optimizer|scheduler|rng_state|trainer_state|training_arg|\.lock|\.pt$|\.bin$|runs/"
    assert not [path for path in files if re.search(unwanted, path)]
    places = [str(clone), str(clone.resolve()), os.path.expanduser("~") + "/", "/home/", "/tmp/"]
    assert not [(path, place) for path, data in files.items() for place in places if place.encode() in data]
    assert TOKEN.encode() not in b"".join(files.values())


@pytest.fixture(scope="module")
def as_a_stranger(online, run, rehearsed):
    """What the hub answers to a token without rights, and the models of the table by their names."""
    statuses, _, errors, stderr = run(
        online | {"HF_TOKEN": "hf_of_a_stranger"},
        ["bin/search.py", "--model_name_or_path", "owner/none", "물음"],
        ["bin/export_onnx.py", "--model_name_or_path", "owner/gated", "--output_dir", "never"],
        ["bin/benchmark.py", "--revision", "no-such-branch"],
        ["training_sts.py", "--model_name_or_path", "owner/none"],
        ["training_sts.py", *SMALL, "--push_to_hub", "--hub_model_id", "rehearsal/other", "--output_dir", "never"],
        ["bin/benchmark.py", "--model_name_or_path", "rehearsal/kor-sts", "--output", "pushed.json"],
        ["bin/benchmark.py", "--model_name_or_path", *NAMES, "--output", "all.json"],
    )
    assert statuses == [2, 2, 2, 2, 2, 0, 0], stderr[-5000:]
    assert "UNEXPECTED" not in stderr and "MISSING" not in stderr
    return errors


def test_errors_of_the_hub_are_lines_of_their_own(hub, as_a_stranger):
    none, gated, revision, training, push = as_a_stranger
    assert none.startswith("owner/none: no such model") and training == none
    assert gated.startswith("owner/gated: gated; accept its terms")
    assert revision.startswith(f"{PUBLISHED}: no revision no-such-branch; give a branch")
    assert push.startswith("--push_to_hub: rehearsal/other cannot be created") and "hf auth login" in push
    assert "rehearsal/other" not in hub.repositories


def test_every_layout_loads_by_its_name(hub, clone, as_a_stranger):
    rows = json.loads((clone / "all.json").read_text())
    assert [row["revision"] for row in rows] == [hub.commits[name] for name in NAMES]


def test_a_pushed_model_scores_as_its_folder(clone, as_a_stranger):
    (row,) = json.loads((clone / "pushed.json").read_text())
    facts, _ = facts_of(clone, "sts")
    for name, value in facts["test"].items():
        assert row[name] * 100 == pytest.approx(value, abs=0.02)


def test_without_a_hub_what_is_cached_works_and_the_rest_is_one_line(hub, online, run, rehearsed):
    asked = len(hub.log)
    unreachable = online | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    statuses, output, errors, _ = run(
        unreachable,
        ["bin/search.py", "한 투자자가 비트코인을 매수한다."],
        ["bin/search.py", "--model_name_or_path", "owner/none", "물음"],
    )
    assert statuses == [0, 2] and output.count("(Score: ") == 5
    (line,) = errors
    assert line.startswith("owner/none: not cached, and the hub cannot be reached")
    assert len(hub.log) == asked


def test_reproduce_sh_runs_offline_from_the_cache(hub, repo, clone, online, rehearsed):
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    stamp = hashlib.sha256((repo / "requirements.txt").read_bytes()).hexdigest()
    (clone / ".venv" / "installed-requirements.txt").write_text(stamp + "\n")
    asked = len(hub.log)
    command = [str(clone / "bin" / "reproduce.sh"), *map(str, SMALL), "--nli_batch_size", "16"]
    result = subprocess.run(
        command, cwd="/", env=online | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert len(hub.log) == asked
    ours, published = json.loads((clone / "output" / "reproduce" / "results.json").read_text())
    assert published["revision"] == hub.commits[PUBLISHED] and not ours["error"]
    readme = (clone / "output" / "reproduce" / "onnx" / "README.md").read_text()
    assert readme.startswith("# ONNX export of ")
