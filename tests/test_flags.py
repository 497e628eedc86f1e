"""What every command owes its user: help at once, one line per fault, output on any terminal."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from in_process import run_here
from kf_deberta import errors, flags
from kf_deberta.errors import InputError, run
from kf_deberta.flags import Parser, Several

REPO = Path(__file__).resolve().parent.parent
COMMANDS = sorted(
    [*REPO.glob("training_*.py"), *REPO.glob("bin/*.py"), REPO / "data_util.py", REPO / "sample" / "build_base.py"]
)
SLOW = ("torch", "transformers", "sentence_transformers", "datasets", "scipy", "onnx", "onnxruntime", "matplotlib")
# runs each script as its user does, and prints which slow modules were imported by then
HELP = f"""
import runpy, sys
for script in sys.argv[1:]:
    sys.argv, sys.path[:0] = [script, "--help"], [script.rsplit("/", 1)[0]]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit:
        print("== end of", script, *(name for name in {SLOW} if name in sys.modules))
"""


@pytest.fixture(scope="module")
def helps():
    environment = os.environ | {"COLUMNS": "80"}
    command = [sys.executable, "-c", HELP, *map(str, COMMANDS)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    texts = re.split(r"^== end of (.*)$\n", result.stdout, flags=re.MULTILINE)
    return dict(zip(texts[1::2], texts[::2], strict=False))


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: path.name)
def test_help_comes_before_slow_imports_in_80_columns_with_examples_and_defaults(script, helps):
    assert str(script) in helps  # and no slow module behind it
    text = helps[str(script)]
    doc = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")), clean=False)
    assert doc.strip() in text and re.search(rf"^ +python (bin/|sample/)?{script.name}", doc, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80
    described = re.split(r"^  (?=--)", text[text.index("options:") :], flags=re.MULTILINE)[1:]
    undescribed = [flag.split()[0] for flag in described if len(flag.split()) < 4]
    assert described and not undescribed


def test_kinds_of_fault_are_one_line():
    parser = Parser("A command.")
    add = parser.add_argument
    for name in ("count", "seed", "positive", "not_negative", "warmup"):
        add(f"--{name}", type=getattr(flags, name))
    add("--dims", type=flags.count, action=Several)
    add("--kind", choices=["linear", "cosine"])
    for words, message in [
        ("--count 0", "--count: must be a whole number from 1, not 0"),
        ("--count 1.5", "--count: must be a whole number from 1, not 1.5"),
        ("--count 1_0", "--count: must be a whole number from 1, not 1_0"),
        ("--count ٣", "--count: must be a whole number from 1, not ٣"),
        ("--seed 4294967296", "--seed: must be a whole number from 0 to 4294967295, not 4294967296"),
        ("--positive 0", "--positive: must be a number above 0, not 0"),
        ("--positive inf", "--positive: must be a number above 0, not inf"),
        ("--not_negative nan", "--not_negative: must be a number from 0, not nan"),
        ("--warmup 1.5", "--warmup: must be a share below 1, or a whole number of rounds, not 1.5"),
        ("--dims 4,0", "--dims: must be a whole number from 1, not 0"),
        ("--kind square", "--kind: invalid choice: 'square'"),
        ("--count", "--count: expected one argument"),
        ("--cou 3", "unrecognized arguments: --cou 3"),
        ("stray", "unrecognized arguments: stray"),
    ]:
        with pytest.raises(InputError) as error:
            parser.parse_args(words.split(" "))
        assert str(error.value).startswith(message) and str(error.value).endswith("--help lists the flags")
    for words in ("--dims 4,8,4", "--dims 4 8 4", "--dims 4, 8"):
        assert parser.parse_args(words.split(" ")).dims == [4, 8]


def call(main, **environment: str) -> subprocess.CompletedProcess:
    """Run the body of a main function as a command of its own."""
    code = f"from kf_deberta.errors import *\ndef main():\n    {main}\nrun(main)"
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(REPO)} | environment, capture_output=True
    )


def test_kf_debug_shows_the_cause():
    main = "\n    try: 1 / 0\n    except ZeroDivisionError as error: raise InputError('wrong') from error"
    assert call(main).stderr == b"error: wrong\n" and call(main).returncode == 2
    shown = call(main, KF_DEBUG="1").stderr.decode()
    assert "ZeroDivisionError: division by zero" in shown and shown.endswith("InputError: wrong\nerror: wrong\n")


def test_an_error_of_a_later_process_waits_for_the_first_and_is_told_by_its_rank(monkeypatch, capsys):
    waited = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(errors.time, "sleep", waited.append)
    monkeypatch.setattr(errors.signal, "signal", lambda *_: None)

    def fail():
        raise InputError("wrong")

    with pytest.raises(SystemExit):
        run(fail)
    assert waited == [errors.OTHERS_WAIT_SECONDS]  # torchrun ends it here if the first process met the error too
    assert capsys.readouterr().err == "error: process 3: wrong\n"
    monkeypatch.delenv("LOCAL_RANK")  # a rank of a container, not of torchrun
    assert call("raise InputError('wrong')").stderr == b"error: wrong\n"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")])
def test_out_of_memory_is_one_line(error, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as stopped:
        run(fail)
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and line.startswith("error: out of memory (")


@pytest.mark.parametrize(("encoding", "shown"), [("cp949", "가".encode("cp949")), ("ascii", b"?")])
def test_what_a_terminal_cannot_show_is_replaced(encoding, shown):
    result = call("print('가 \\N{GRINNING FACE} \\udcff')", PYTHONIOENCODING=encoding)
    assert result.returncode == 0 and not result.stderr
    assert result.stdout.startswith(shown) and result.stdout.endswith(b"?\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_closed_or_piped_standard_output_is_no_traceback():
    shell = (
        f'cd "{REPO}" && "{sys.executable}" -c "from kf_deberta.errors import run; run(lambda: print(\'x\' * {{}}))"'
    )
    for command, status, message in (
        (f"{shell.format(1)} > /dev/full", 2, b"error: output: No space left on device; free space\n"),
        (f"{shell.format(1)} >&-", 0, b""),
        (f"{shell.format(10**6)} | head -c 1; exit ${{PIPESTATUS[0]}}", 141, b""),
    ):
        result = subprocess.run(command, shell=True, executable="/bin/bash", capture_output=True)
        assert (result.returncode, result.stderr) == (status, message), command


def test_files_and_directories_appear_whole_or_not_at_all(tmp_path):
    for name in ("file", "directory"):
        path = tmp_path / name
        for content in ("old", "new"):
            with errors.write_atomically(path) as temporary:
                if name == "directory":
                    temporary.mkdir()
                (temporary / "a" if name == "directory" else temporary).write_text(content)
        for error in (OSError(28, "No space left on device"), Exception("No space left on device (os error 28)")):
            refused = pytest.raises(InputError, match=f"{name}: cannot be written .*No space left")
            with refused, errors.write_atomically(path) as temporary:
                (temporary.mkdir if name == "directory" else temporary.touch)()
                raise error
        assert (path / "a" if path.is_dir() else path).read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "directory"}


def test_a_write_check_leaves_nothing_behind(tmp_path):
    errors.check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("file", "file/below", "loop", "loop/below"):
        with pytest.raises(InputError, match=f"{name}: not writable .*; choose another directory"):
            errors.check_writable(tmp_path / name)


CASES = [
    ([], ["--sts_loss", "cosent", "--batch_size", "1"], "--sts_loss cosent compares the pairs of a batch"),
    ([], ["--max_seq_length", "100000"], "--max_seq_length 100000; it takes 3 to 512 tokens"),
    ([], ["--matryoshka_dims", "9999"], "toy-base has 32 dimensions"),
    ([], ["--report_to", "wandb"], "--report_to"),
    (["--dataset_path", "no-such-directory"], [], "no-such-directory"),
    (["--dataset_path", "{empty}"], [], "{empty}"),
    ([], ["--output_dir", "{file}"], "{file}: not writable"),
    (["--model_name_or_path", "{empty}"], [], "{empty}"),
    (["--model_name_or_path", "no-such-owner/no-such-model"], [], "no-such-owner/no-such-model"),
]


@pytest.mark.parametrize(("instead", "more", "message"), CASES, ids=[" ".join(a + b) for a, b, _ in CASES])
def test_a_training_that_cannot_begin_says_why_and_leaves_nothing(
    instead, more, message, toy_base, toy_data, tmp_path, monkeypatch, capsys
):
    places = {"empty": tmp_path / "empty", "file": tmp_path / "file"}
    places["empty"].mkdir()
    places["file"].touch()
    monkeypatch.chdir(tmp_path)
    words = {"--model_name_or_path": toy_base, "--dataset_path": toy_data}
    flags = [word for name, value in words.items() if name not in instead for word in (name, value)]
    given = [word.format(**places) for word in instead + more]
    assert run_here("training_sts.py", *flags, "--max_rounds", 2, *given) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert message.format(**places) in line and "Traceback" not in captured.err
    output = tmp_path / "output"
    assert not output.exists() or not list(output.iterdir()), list(output.iterdir())
