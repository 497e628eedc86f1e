"""Every command and code block of the READMEs runs; small stand-ins answer to the real names in a local hub cache."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmark_script import run_benchmark

SMALL = {  # sizes that the stand-ins have
    "768,512,256,128,64": "32,16,8",
    "768,256": "32,16",
    "--nli_batch_size 2048 --nli_mini_batch_size 128": "--nli_batch_size 64 --nli_mini_batch_size 16",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = (
    "kakaobank/kf-deberta-base",
    "upskyy/kf-deberta-multitask",
    "jhgan/ko-sroberta-multitask",
    "klue/roberta-base",
)
SET_UP = {"./bin/demo.sh", "./bin/test.sh", "./bin/reproduce.sh"}  # make .venv, or need a GPU


def blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", readme.read_text(encoding="utf-8"), re.M | re.S)


def commands(readme: Path) -> list[list[str]]:
    whole = [block.replace("\\\n", " ") for block in blocks(readme, "bash")]
    lines = [line for block in whole for line in block.splitlines() if line.split("#")[0].strip()]
    for text, small in SMALL.items():
        lines = [line.replace(text, small) for line in lines]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture(scope="module")
def place(repo, toy_base, toy_data, tmp_path_factory):
    """A directory that looks like a clone with the data in it, and a hub cache with the stand-ins."""
    root = tmp_path_factory.mktemp("clone")
    for path in [*repo.glob("*.py"), repo / "bin", repo / "sample"]:
        (root / path.name).symlink_to(path)
    (root / "kor-nlu-datasets").symlink_to(toy_data)
    for name in NAMES:
        folder = root / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(toy_base, folder / "snapshots" / COMMIT)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)
    return root


@pytest.fixture(scope="module")
def environment(place):
    # a python that only says what it would run, for the shell scripts
    (place / "stub").mkdir()
    (place / "stub" / "python").write_text('#!/bin/sh\necho "ran $*"\n')
    (place / "stub" / "python").chmod(0o755)
    return os.environ | {
        "HF_HUB_CACHE": str(place / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VIRTUAL_ENV": "any",
    }


def short(command: list[str]) -> list[str]:
    return [*command, "--max_rounds", "2"] if "--max_rounds" not in command else command


def test_both_readmes_have_the_same_code_blocks_but_for_their_comments(repo):
    english, korean = ((repo / name).read_text(encoding="utf-8") for name in ("README.md", "README.ko.md"))
    fences = [re.findall(r"^```.*?^```", text, re.M | re.S) for text in (english, korean)]
    code = [[re.sub(r"\s*#.*", "", line) for block in found for line in block.splitlines()] for found in fences]
    assert len(code[0]) > 100 and code[0] == code[1]
    assert english.count("\n## ") == korean.count("\n## ")


def test_the_table_of_both_readmes_is_the_benchmarks(repo, capsys):
    assert run_benchmark("--published") == 0
    printed = capsys.readouterr().out.strip()
    english, korean = ((repo / name).read_text(encoding="utf-8") for name in ("README.md", "README.ko.md"))
    translated = printed.replace("| model |", "| 모델 |").replace("| source |", "| 출처 |")
    for text, readme in ((printed, english), (translated, korean)):
        assert all(f"\n\n{part}\n\n" in readme for part in text.split("\n\n"))
        assert readme.count("| [") == text.count("| [") == 11


def test_every_python_command_runs(repo, place, environment):
    todo = [command for command in commands(repo / "README.md") if command[0] == "python"]
    assert len(todo) > 8
    todo = [short(command[1:]) if command[1].startswith("training") else command[1:] for command in todo]
    resumed = [command for command in todo if "--resume" in command]
    first = [command for command in todo if command not in resumed]
    driver = [sys.executable, str(repo / "tests" / "helpers" / "readme_driver.py")]

    def run(batch):
        result = subprocess.run(
            [*driver, json.dumps(batch)], cwd=place, env=environment, capture_output=True, text=True, input="물음\n"
        )
        statuses = json.loads(re.search(r"^STATUS (.*)$", result.stdout, re.M).group(1))
        assert statuses == [0] * len(batch), result.stdout[-3000:] + result.stderr[-6000:]
        return result.stdout

    output = run(first)
    assert output.count("(Score: ") == 6  # two queries, three sentences each
    assert "| upskyy/kf-deberta-multitask |" in output
    assert (place / "models" / "kf-deberta-multitask.onnx").is_file() and (place / "scatter.png").is_file()
    # what a kill before the first checkpoint leaves: a run without a result, which still knows its directories
    for path in place.glob("output/kor_multi_*/training_arguments.json"):
        facts = json.loads(path.read_text())
        facts["status"] = "unfinished"
        facts["arguments"]["dataset_path"] = str((place / "kor-nlu-datasets").resolve())
        path.write_text(json.dumps(facts))
    assert resumed
    run(resumed)


def test_torchrun_command_runs(repo, place, environment):
    (command,) = [command for command in commands(repo / "README.md") if command[0] == "torchrun"]
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", *short(command[1:])]
    result = subprocess.run(
        [*words, "--output_dir", "ddp"], cwd=place, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert len(list((place / "ddp").iterdir())) == 1


def test_shell_commands_run(repo, place, environment):
    stubbed = environment | {"PATH": f"{place / 'stub'}:{environment['PATH']}"}
    for command in [command for command in commands(repo / "README.md") if command[0].startswith("./")]:
        script = repo / command[0]
        assert os.access(script, os.X_OK)
        subprocess.run(["bash", "-n", script], check=True)
        if command[0] not in SET_UP:
            words = [str(script), *command[1:]]  # elsewhere: the checkout may hold runs of its user
            result = subprocess.run(words, cwd=place, env=stubbed, check=True, capture_output=True, text=True)
            assert "ran " in result.stdout


def test_reproduce_sh_trains_exports_and_scores_and_goes_on_with_its_run(repo, environment, tmp_path):
    (tmp_path / "bin").symlink_to(repo / "bin")
    for name in ("requirements.txt", "training_multi_task.py"):
        (tmp_path / name).symlink_to(repo / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    run = "output/reproduce/kor_multi_x"
    python.write_text(
        f'#!/bin/sh\ncase $1 in training*) mkdir -p {run}; touch {run}/training_arguments.json;; esac\necho "ran $*"\n'
    )
    python.chmod(0o755)

    def reproduce(*flags):
        script = [tmp_path / "bin" / "reproduce.sh", *flags]
        return subprocess.run(script, cwd="/", env=environment, capture_output=True, text=True)

    flags = ["--bf16", "--dataset_path", "my data", "--trust_remote_code"]
    results = [reproduce(*flags) for _ in range(2)]
    assert [result.returncode for result in results] == [0, 0], results
    first, second = (result.stdout for result in results)
    order = [first.index(text) for text in ("ran training_multi_task", "ran bin/benchmark", "ran bin/export_onnx")]
    assert order == sorted(order) and "--bf16" in first and "--reproduces upskyy/kf-deberta-multitask" in first
    assert first.count("--trust_remote_code --sts_dataset_path my data/KorSTS") == 2
    assert "--resume" not in first and f"--output_dir output/reproduce --resume {run}\n" in second
    more = reproduce(*flags, "--nli_mini_batch_size", "32")  # whether the run may have it, the training script knows
    assert more.returncode == 0 and "--nli_mini_batch_size 32 --output_dir output/reproduce --resume" in more.stdout
    for others, message in (
        (["--dataset_path", "my data"], "output/reproduce was begun with: --bf16 --dataset_path"),
        (["--output_dir", "x"], "--output_dir is set by this script"),
        (["--bf16", "--best", "--nli_batch_size", "8"], "--nli_batch_size is no flag of all stages"),
    ):
        result = reproduce(*others)
        assert result.returncode == 2 and result.stderr.startswith(f"error: {message}"), result.stderr
        assert "ran training" not in result.stdout


def test_reproduce_sh_best_trains_both_recipes_and_scores_them_beside_the_published_model(repo, environment, tmp_path):
    (tmp_path / "bin").symlink_to(repo / "bin")
    (tmp_path / "requirements.txt").symlink_to(repo / "requirements.txt")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    folder = (
        'while [ "$1" != --output_dir ]; do shift; done; mkdir -p "$2/kor_x"; touch "$2"/kor_x/training_arguments.json'
    )
    python.write_text(f'#!/bin/sh\necho "ran $*"\ncase $1 in *training*) {folder};; esac\n')
    python.chmod(0o755)
    small = ["--nli_mini_batch_size", "32"]
    script = [str(tmp_path / "bin" / "reproduce.sh"), "--bf16", *small, "--best", "--dataset_path=a b"]
    output = subprocess.run(script, cwd="/", env=environment, check=True, capture_output=True, text=True).stdout
    ran = [re.sub(r"ran (/\S+/)?", "", line) for line in output.splitlines() if line.startswith("ran ")]
    multi_task, nli, *sts, average, benchmark, export = (line for line in ran if not line.startswith(("-m pip", "-c")))
    flags = "--bf16 --nli_mini_batch_size 32 --dataset_path=a b"
    assert multi_task == f"training_multi_task.py {flags} --output_dir output/reproduce"
    assert nli == f"training_nli.py {flags} --output_dir output/best/nli"
    for seed, line in zip("123", sts, strict=True):
        ours = f"--model_name_or_path output/best/nli/kor_x --seed {seed} --bf16 --dataset_path=a b"
        assert f"--normalize {ours} --output_dir output/best/sts_{seed}" in line
    runs = " ".join(f"output/best/sts_{seed}/kor_x" for seed in "123")
    assert average == f"average.py --dataset_path a b --model_name_or_path {runs} --output_dir output/best/model"
    assert "--model_name_or_path output/best/model --output_dir output/reproduce/onnx_best" in export
    models = "output/best/model output/reproduce/kor_x upskyy/kf-deberta-multitask"
    assert f"--model_name_or_path {models} --sts_dataset_path a b/KorSTS --output" in benchmark


def test_no_command_is_left_out(repo):
    known = {"python", "torchrun", "git", "pip"}
    assert all(command[0] in known or command[0].startswith("./bin/") for command in commands(repo / "README.md"))


def test_sentence_transformers_and_plain_transformers_print_the_same(repo, place, environment):
    first, second = blocks(repo / "README.md", "python")
    code = (
        f"{first}\nleft = model.encode(sentences)\n{second}\nright = ((tokens * mask).sum(1) / mask.sum(1)).numpy()\n"
    )
    code += "import numpy as np\nnp.save('left.npy', left)\nnp.save('right.npy', right)\n"
    subprocess.run([sys.executable, "-c", code], cwd=place, env=environment, check=True, capture_output=True)
    left, right = np.load(place / "left.npy"), np.load(place / "right.npy")
    assert left.shape == (2, 32) and np.allclose(left, right, atol=1e-5)


def test_train_sh_passes_flags_and_stops_at_the_first_failure(repo, place, environment, tmp_path):
    stubbed = environment | {"PATH": f"{place / 'stub'}:{environment['PATH']}"}
    script = str(repo / "bin" / "train.sh")

    def ran(*arguments):
        result = subprocess.run([script, *arguments], cwd=tmp_path, env=stubbed, capture_output=True, text=True)
        return result.returncode, re.findall(r"ran .*/(training_\w+\.py.*)", result.stdout), result.stderr

    assert ran() == (0, ["training_sts.py", "training_nli.py", "training_multi_task.py"], "")
    assert ran("all", "--bf16")[1][2] == "training_multi_task.py --bf16"
    assert ran("--seed", "1")[1][0] == "training_sts.py --seed 1"
    assert ran("nli", "--batch_size", "8")[1] == ["training_nli.py --batch_size 8"]
    for flag, message in (("--output_dir", "is set by this script"), ("--sts_loss", "is no flag of all stages")):
        status, scripts, error = ran("best", flag, "x")
        assert (status, scripts) == (2, []) and error.startswith(f"error: {flag} {message}")
    # no run came of it, so that nothing follows; the stages after it are tested with reproduce.sh --best
    assert ran("best", "--bf16", "--help")[:2] == (0, ["training_nli.py --bf16 --help --output_dir output/best/nli"])
    status, _, error = ran("everything")
    assert status == 2 and error.startswith("error: unknown recipe everything")

    (place / "stub" / "python").write_text('#!/bin/sh\necho "ran $*"\nexit 3\n')
    status, scripts, _ = ran()
    assert status == 3 and scripts == ["training_sts.py"]
    assert ran("best")[:2] == (3, ["training_nli.py --output_dir output/best/nli"])
