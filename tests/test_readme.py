"""Every command, code block, table and link of the documents holds; small stand-ins answer to the real names."""

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

from kf_deberta.evaluation.report import COMPARABLE_ROWS, PUBLISHED_ROWS

REPO = Path(__file__).resolve().parent.parent
ENGLISH, KOREAN = ((REPO / name).read_text(encoding="utf-8") for name in ("README.md", "README.ko.md"))
DOCUMENTS = sorted(path for folder in (".", "docs", "dev", "sample") for path in (REPO / folder).glob("*.md"))
SMALL = {"768,512,256,128,64": "32,16,8", "768,256": "32,16"}  # sizes that the stand-ins have
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PUBLISHED = "upskyy/kf-deberta-multitask"
NAMES = [PUBLISHED, "jhgan/ko-sroberta-multitask", "kakaobank/kf-deberta-base", "klue/roberta-base"]
# a python that runs `-c` and prints what else it would run; its training scripts leave a finished run
STUB = f"""#!/bin/sh
[ "$1" = -c ] && exec "{sys.executable}" "$@"
echo "ran $*"
case $1 in *training_*) ;; *) exit ;; esac
while [ "$1" ] && [ "$1" != --output_dir ]; do shift; done; run=$2/kor_x
[ "$1" ] && mkdir -p "$run" && touch "$run/results.json"
[ "$1" ] && echo '{{"args": {{"dataset_path": "my data"}}}}' >"$run/args.json"
exit ${{STUB_STATUS:-0}}
"""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands(first: str) -> list[list[str]]:
    """Return the words of the README's commands that start with `first`, in small."""
    text = "".join(blocks(ENGLISH, "bash")).replace("\\\n", " ")
    for full, small in SMALL.items():
        text = text.replace(full, small)
    lines = [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]
    assert all(words[0].startswith(("python", "torchrun", "git", "./bin/")) for words in lines)
    return [w + ["--max_rounds", "2"] * ("training_" in str(w)) for w in lines if w[0].startswith(first)]


def slug(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.fixture(scope="module")
def place(toy_base, toy_data, tmp_path_factory):
    """A directory that looks like a clone with the data in it, a hub cache with the stand-ins, and the stub."""
    root = tmp_path_factory.mktemp("clone")
    for path in [*REPO.glob("*.py"), *(REPO / name for name in ("bin", "kf_deberta", "sample", "requirements.txt"))]:
        (root / path.name).symlink_to(path)
    (root / "kor-nlu-datasets").symlink_to(toy_data)
    for name in NAMES:
        folder = root / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(toy_base, folder / "snapshots" / COMMIT)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)
    stub = root / ".venv" / "bin" / "python"
    stub.parent.mkdir(parents=True)
    stub.write_text(STUB)
    stub.chmod(0o755)
    return root


@pytest.fixture(scope="module")
def environment(place):
    hub = {"HF_HUB_CACHE": str(place / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"} | hub


@pytest.fixture
def shell(place, environment, tmp_path):
    """Run a shell script of bin/ with the stub; returns its status, what it ran, and stderr."""

    def run(script: str, *flags: str, status: int = 0) -> tuple[int, list[str], str]:
        command, variables = [place / "bin" / script, *flags], environment | {"STUB_STATUS": str(status)}
        result = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        return result.returncode, re.findall(rf"^ran (?:{place}/)?([\w/]+\.py.*)", result.stdout, re.M), result.stderr

    return run


def test_both_readmes_have_the_same_code_but_for_comments_and_as_many_sections():
    fences = [re.findall(r"^```.*?^```", text, re.M | re.S) for text in (ENGLISH, KOREAN)]
    code = [[re.sub(r"\s*#.*", "", line) for block in found for line in block.splitlines()] for found in fences]
    assert len(code[0]) > 70 and code[0] == code[1]
    assert ENGLISH.count("\n## ") == KOREAN.count("\n## ")
    assert max(len(text.splitlines()) for text in (ENGLISH, KOREAN)) <= 240


def test_the_tables_of_both_readmes_are_the_published_rows_of_the_benchmark():
    best = np.max([row.figures for row in COMPARABLE_ROWS], axis=0)
    urls = [*dict.fromkeys(row.url for row in PUBLISHED_ROWS)]
    lines = [f"[{number}] {url}" for number, url in enumerate(urls, start=1)]
    for row in PUBLISHED_ROWS:
        tops = [row in COMPARABLE_ROWS and value == top for value, top in zip(row.figures, best, strict=True)]
        cells = [f"**{v:.2f}**" if top else f"{v:.2f}" for v, top in zip(row.figures, tops, strict=True)]
        name = f"[{row.model}](https://huggingface.co/{row.hub_name}){' †' * bool(row.altered_text)}"
        lines.append(f"| {name} | {' | '.join(cells)} | [{urls.index(row.url) + 1}] |")
    for readme in (ENGLISH, KOREAN):
        assert not {*lines} - {*readme.splitlines()} and readme.count("\n| [") == len(PUBLISHED_ROWS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPO)))
def test_links_anchors_and_named_scripts_exist(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)", file.read_text(encoding="utf-8"), re.M) if anchor else []
        assert not anchor or anchor in map(slug, headings), target
    for script in re.findall(r"(?:python |\./)((?:\w+/)?\w+\.(?:py|sh))\b", text):
        file = REPO / script
        assert file.is_file() and (file.suffix == ".py" or os.access(file, os.X_OK)), script


def test_every_python_command_and_both_python_blocks_run_and_print_the_same(place, environment):
    batch = [words[1:] for words in commands("python") if "--resume" not in words]
    resumed = [words[1:] for words in commands("python") if "--resume" in words]
    assert len(batch) > 12 and resumed
    code = "import pathlib\nfor path in pathlib.Path('output').glob('kor_*/[lr]*.json'): path.unlink()"
    (place / "kill.py").write_text(code)  # leaves what a run killed before its first checkpoint leaves
    left, right = (re.sub(r"^print\((.*)\)  #.*", r"it = \1", code, flags=re.M) for code in blocks(ENGLISH, "python"))
    code = f"{left}\nleft = it\n{right}\nimport numpy\nnumpy.save('both.npy', [left, it])"
    (place / "both.py").write_text(code, encoding="utf-8")
    batch += [["kill.py"], *resumed, ["both.py"]]
    command = [sys.executable, str(REPO / "tests" / "helpers" / "readme_driver.py"), json.dumps(batch)]
    result = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    statuses = json.loads(re.search(r"^STATUS (.*)$", result.stdout, re.M).group(1))
    assert statuses == [0] * len(batch), result.stdout[-3000:] + result.stderr[-6000:]
    assert result.stdout.count("(Score: ") == 3 and "| upskyy/kf-deberta-multitask |" in result.stdout
    for name in ("models/kf-deberta-multitask.onnx", "models/kf-deberta-multitask-int8.onnx", "scatter.png"):
        assert (place / name).is_file()
    left, right = np.load(place / "both.npy")
    assert left.shape == (2, 32) and np.allclose(left, right, atol=1e-5)


def test_the_torchrun_command_runs(place, environment):
    ((_, *words),) = commands("torchrun")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words, "--output_dir", "ddp"]
    result = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and len(list((place / "ddp").iterdir())) == 1, result.stderr[-4000:]


def test_train_sh_passes_flags_and_refuses_one_that_a_script_lacks(shell):
    scripts = ["training_sts.py", "training_nli.py", "training_multi_task.py"]
    assert shell("train.sh") == (0, scripts, "")
    assert shell("train.sh", "--seed", "1")[1] == [f"{script} --seed 1" for script in scripts]
    status, ran, error = shell("train.sh", "--nli_batch_size", "8")
    assert (status, ran) == (2, []) and "unrecognized arguments: --nli_batch_size" in error
    assert shell("train.sh", status=3)[:2] == (3, scripts[:1])


def test_reproduce_sh_trains_scores_exports_and_goes_on_with_its_runs(shell):
    run, best = (f"output/reproduce/{recipe}/kor_x" for recipe in ("multi_task", "recommended"))
    train = "training_multi_task.py --bf16 --output_dir output/reproduce/multi_task"
    recommended = "training_recommended.py --bf16 --output_dir output/reproduce/recommended"
    score = "bin/benchmark.py --model_name_or_path {} upskyy/kf-deberta-multitask --sts_dataset_path my data/KorSTS"
    score += " --reproduces upskyy/kf-deberta-multitask --output output/reproduce/results.json"
    export = "bin/export_onnx.py --model_name_or_path {} --output_dir output/reproduce/onnx --quantize"
    export += " --sts_dataset_path my data/KorSTS"
    assert shell("reproduce.sh", "--bf16") == (0, [train, score.format(run), export.format(run)], "")
    ran = [f"{train} --resume {run}", recommended, score.format(f"{best} {run}"), export.format(best)]
    assert shell("reproduce.sh", "--recommended", "--bf16") == (0, ran, "")
    assert shell("reproduce.sh", status=3)[0] == 3
