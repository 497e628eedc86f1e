"""What every command owes its user: help at once, one line per fault, output on any terminal."""

import ast
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kf_deberta import cli
from kf_deberta.cli import InputError, Parser, run

REPO = Path(__file__).resolve().parent.parent
COMMANDS = sorted(
    [*REPO.glob("training_*.py"), *REPO.glob("bin/*.py"), REPO / "data_util.py", REPO / "sample" / "build_base.py"]
)
SLOW = ("torch", "transformers", "sentence_transformers", "datasets", "scipy", "sklearn", "onnx", "onnxruntime")
# runs a script as its user does and prints which slow modules were imported by then
HELP = f"""
import runpy, sys
script = sys.argv[1]
sys.argv = [script, "--help"]
sys.path.insert(0, script.rsplit("/", 1)[0])
try:
    runpy.run_path(script, run_name="__main__")
finally:
    print("imported:", *(name for name in {SLOW} if name in sys.modules))
"""


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: path.name)
def test_help_comes_before_slow_imports_with_examples_and_every_default(script):
    result = subprocess.run([sys.executable, "-c", HELP, script], capture_output=True, text=True, check=True)
    *text, imported = result.stdout.splitlines()
    assert imported.strip() == "imported:"
    text = "\n".join(text)
    doc = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")), clean=False)
    assert doc.strip() in text  # with its examples, which are indented
    assert re.search(rf"^ +python (bin/|sample/)?{script.name}", doc, re.MULTILINE)
    flags = re.split(r"^  (?=--)", text[text.index("options:") :], flags=re.MULTILINE)[1:]
    assert flags
    for flag in flags:
        assert re.search(r"\((default:|required\))", flag), flag


def test_kinds_of_fault_have_one_wording():
    parser = Parser("A command.", {"greater_is_better": "is set by the recipe; remove it"})
    add = parser.add_argument
    add("--count", type=cli.count)
    add("--seed", type=cli.seed)
    add("--rate", type=cli.positive)
    add("--decay", type=cli.not_negative)
    add("--dims", type=cli.several(cli.count))
    add("--kind", type=cli.one_of("linear", "cosine", "constant"))
    add("--output_dir", type=cli.file_path)
    for words, message in [
        ("--count 0", "--count: must be 1 or more, not 0"),
        ("--count -3", "--count: must be 1 or more, not -3"),
        ("--count 1.5", "--count: must be a whole number, not 1.5"),
        ("--count " + "9" * 5000, "--count: must be a whole number, not " + "9" * 5000),
        ("--seed 4294967296", "--seed: must be 4294967295 or less, not 4294967296"),
        ("--rate 0", "--rate: must be above 0, not 0"),
        ("--rate inf", "--rate: must be a finite number, not inf"),
        ("--decay nan", "--decay: must be a finite number, not nan"),
        ("--decay -0.5", "--decay: must be 0 or more, not -0.5"),
        ("--dims 4,0", "--dims: must be 1 or more, not 0"),
        ("--dims 4,,2", "--dims: must be a whole number, not "),
        ("--kind square", "--kind: must be linear, cosine or constant, not square"),
        ("--count", "--count: expected one argument"),
        ("--cuont 3", "unknown flag --cuont; did you mean --count?"),
        ("--output-dir=x", "unknown flag --output-dir; did you mean --output_dir?"),
        ("--zzz", f"unknown flag --zzz; {parser.prog} --help lists the flags"),
        ("stray", f"unknown flag stray; {parser.prog} --help lists the flags"),
        ("--greater_is_better 1", "--greater_is_better is set by the recipe; remove it"),
        ("--greater_is_bettr 1", "unknown flag --greater_is_bettr; did you mean --greater_is_better?"),
    ]:
        with pytest.raises(InputError) as error:
            parser.parse_args(words.split(" "))
        assert str(error.value) == message
    args = parser.parse_args(["--dims", "4,8,4", "--output_dir", "~/x"])
    assert (args.dims, args.output_dir) == ([4, 8], Path.home() / "x")


def test_a_misspelled_required_flag_is_named_as_unknown():
    parser = Parser("A command.")
    parser.add_argument("--verify", required=True)
    for words, message in [
        (["--verfy", "x"], "unknown flag --verfy; did you mean --verify?"),
        ([], "the following arguments are required: --verify"),
    ]:
        with pytest.raises(InputError) as error:
            parser.parse_args(words)
        assert str(error.value) == message


def call(main, **environment: str) -> subprocess.CompletedProcess:
    """Run the body of a main function as a command of its own."""
    code = f"from kf_deberta.cli import *\ndef main():\n    {main}\nrun(main)"
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(REPO)} | environment, capture_output=True
    )


def test_rank_in_the_environment_silences_no_error():
    result = call("raise InputError('wrong')", RANK="3", WORLD_SIZE="8")  # a container's, not torchrun's
    assert (result.returncode, result.stderr) == (2, b"error: wrong\n")


def test_an_error_of_one_process_of_several_is_told_by_that_process(monkeypatch, capsys):
    waited = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)

    def fail():
        raise InputError("wrong")

    with pytest.raises(SystemExit):
        run(fail)
    assert waited == [cli.OTHERS_WAIT_SECONDS]  # torchrun ends it here where the first process met the error too
    assert capsys.readouterr().err == "error: process 3: wrong\n"


def test_kf_debug_shows_the_cause():
    main = "\n    try: 1 / 0\n    except ZeroDivisionError as error: raise InputError('wrong') from error"
    assert call(main).stderr == b"error: wrong\n"
    shown = call(main, KF_DEBUG="1").stderr.decode()
    assert "ZeroDivisionError: division by zero" in shown and shown.endswith("InputError: wrong\nerror: wrong\n")


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "cp949"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}]
)
def test_what_a_terminal_cannot_show_is_replaced(environment):
    result = call("print('가 \\N{GRINNING FACE} \\udcff')", **environment)
    assert result.returncode == 0 and not result.stderr
    assert result.stdout.endswith(b"?\n")
    assert result.stdout.startswith({"cp949": "가".encode("cp949"), "ascii": b"?"}.get(*environment.values(), b""))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_standard_output_is_one_line():
    for text in ("'x'", "'x' * 100_000"):
        code = f"from kf_deberta.cli import run\nrun(lambda: print({text}))"
        with open("/dev/full", "w") as full:
            result = subprocess.run([sys.executable, "-c", code], cwd=REPO, stdout=full, stderr=subprocess.PIPE)
        message = b"error: standard output: No space left on device; free space or choose another directory\n"
        assert (result.returncode, result.stderr) == (2, message)


def test_a_closed_pipe_ends_a_command_quietly():
    code = "from kf_deberta.cli import run\nrun(lambda: [print('x' * 1000) for _ in range(1000)] and None)"
    result = subprocess.run(
        f'"{sys.executable}" -c "$CODE" | head -n 1; exit "${{PIPESTATUS[0]}}"',
        shell=True,
        executable="/bin/bash",
        cwd=REPO,
        env=os.environ | {"CODE": code},
        capture_output=True,
    )
    assert (result.returncode, result.stderr) == (141, b"")


def test_a_write_check_leaves_nothing_behind(tmp_path):
    cli.check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    for name in ("file", "file/below", "loop", "loop/below", "nowhere"):
        with pytest.raises(InputError, match=f"{name}: not writable .*; choose another directory"):
            cli.check_writable(tmp_path / name)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_out_of_memory_is_one_line_in_every_command(error, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as stopped:
        cli.run(fail)
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: out of memory (")


# What Windows lacks is hidden once the libraries are in, and every module of ours is imported, scripts too.
HIDDEN = """
import builtins, importlib, importlib.util, io, pathlib, sys
import accelerate, datasets, filelock, huggingface_hub, matplotlib.pyplot, onnx, onnxruntime, pyarrow.parquet
import scipy.stats, sentence_transformers, tokenizers, torch, transformers
from sentence_transformers.sentence_transformer import evaluation, losses
from transformers import DebertaV2Model, trainer_utils
root = pathlib.Path(sys.argv[1])
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
original = builtins.open
def hide(file, *args, **kwargs):
    if str(file).startswith("/proc"):
        raise FileNotFoundError(2, "hidden", str(file))
    return original(file, *args, **kwargs)
builtins.open = io.open = hide
folders = ("bin", "dev", "sample")
sys.path[:0] = [str(root), *(str(root / folder) for folder in folders)]
count = 0
paths = [path for folder in folders for path in root.glob(f"{folder}/*.py")]
for path in [*root.glob("*.py"), *root.glob("kf_deberta/**/*.py"), *paths]:
    if path.stem == "mteb_check":  # needs a package that is not among ours
        continue
    parts = path.relative_to(root).with_suffix("").parts
    importlib.import_module(".".join(parts[1:] if parts[0] in folders else parts).removesuffix(".__init__"))
    count += 1
print(count)
"""


def test_everything_imports_without_what_windows_lacks():
    result = subprocess.run([sys.executable, "-c", HIDDEN, REPO], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout.splitlines()[-1]) > 40
