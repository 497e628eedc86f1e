"""Where an export is delivered: one export at a time, killed at any moment, and the user's own files."""

import errno
import fcntl
import os
import resource
import shutil
from pathlib import Path

import pytest

from kf_deberta.cli import InputError
from kf_deberta.export.folder import LOCK, SUMS, WORK, check_free, deliver, reserved


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the product handles it."""


def write(folder: Path, model: str, kinds=("m", "m-int8")):
    """An export of `model`: each file says whose it is."""
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "1_Pooling/config.json", *(f"{kind}.onnx" for kind in kinds)):
        (folder / name).write_text(f"{model} {name}")
    return folder


def export(folder: Path, model: str, kinds=("m", "m-int8")):
    with reserved(folder) as work:
        return deliver(write(work, model, kinds), folder)


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != SUMS and WORK not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_an_export_replaces_an_export_and_removes_what_it_no_longer_has(tmp_path):
    export(tmp_path, "A")
    (tmp_path / "notes.txt").write_text("mine")
    assert export(tmp_path, "B", kinds=["m"]) == [tmp_path / "m-int8.onnx"]
    names = ("tokenizer.json", "1_Pooling/config.json", "m.onnx")
    assert contents(tmp_path) == {name: f"B {name}" for name in names} | {"notes.txt": "mine"}
    assert not (tmp_path / WORK).exists() and not (tmp_path / LOCK).exists()


def test_killed_at_any_moment_no_graph_lies_beside_the_tokenizer_of_another(tmp_path, monkeypatch):
    """Every file-system change of a delivery in turn is the last one: what is left is consistent and can go on."""
    changes = {}
    for name in ("replace", "unlink", "mkdir", "rmdir", "write_text"):
        changes[name] = getattr(Path, name)

    def counted(name, allowed):
        def change(self, *arguments, **options):
            if self.suffix != ".lock":
                allowed.append(name)
                if len(allowed) > limit:
                    raise Killed
            return changes[name](self, *arguments, **options)

        return change

    complete = None
    for limit in range(60):
        folder = tmp_path / str(limit)
        export(folder, "A")
        (folder / WORK).mkdir()
        write(folder / WORK, "B", kinds=["m", "m-fp16"])
        allowed = []
        with monkeypatch.context() as patch:
            for name in changes:
                patch.setattr(Path, name, counted(name, allowed))
            try:
                deliver(folder / WORK, folder)
                complete = limit
            except Killed:
                pass
        left = contents(folder)
        assert {text[0] for name, text in left.items() if name.endswith((".onnx", ".json"))} <= {"A", "B"}
        for name in left:
            if name.endswith(".onnx"):
                assert left[name][0] == left["tokenizer.json"][0] == left["1_Pooling/config.json"][0], (limit, name)
        export(folder, "C")  # what a killed export left is an export's own
        assert {text[0] for text in contents(folder).values()} == {"C"}
        if complete is not None:
            break
    assert complete and complete > 8


def test_a_second_export_into_the_same_folder_is_refused(tmp_path):
    with reserved(tmp_path) as work:
        (work / "m.onnx").write_text("of the first")
        with pytest.raises(InputError, match="another export is writing there"), reserved(tmp_path):
            pass
        assert (work / "m.onnx").exists()
    with reserved(tmp_path) as work:
        assert list(work.iterdir()) == []


def test_a_file_system_without_locks_is_said_and_exported_to(tmp_path, monkeypatch, capsys):
    def no_locks(*args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    export(tmp_path, "A")
    assert f"{tmp_path}: no locks on this file system" in capsys.readouterr().out
    assert (tmp_path / "m.onnx").exists() and not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "m.onnx"])
def test_an_edited_file_of_an_export_is_the_users(tmp_path, name):
    export(tmp_path, "A")
    (tmp_path / name).write_text("edited by hand")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=f"{name}: no export wrote it"):
        export(tmp_path, "B")
    assert contents(tmp_path) == before
    if name == "m.onnx":  # no longer asked for: not removed either
        assert export(tmp_path, "B", kinds=["m-int8"]) == []
        assert contents(tmp_path)[name] == "edited by hand"


def test_a_link_is_the_users(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "m.onnx").symlink_to("target")
    with pytest.raises(InputError, match="no export wrote it"):
        check_free(tmp_path, ["m.onnx"])


@pytest.mark.parametrize("line", ["not a sum", f"{'0' * 64}  ../victim", f"{'0' * 64}  /etc/passwd", "\udcff"])
def test_a_hostile_record_is_refused(tmp_path, line):
    (tmp_path / SUMS).write_bytes(line.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(InputError, match=SUMS):
        export(tmp_path, "A")


def test_a_full_disk_is_one_line_whatever_a_library_makes_of_it(tmp_path):
    text = os.strerror(errno.ENOSPC)
    for error in (Exception(f"{text} (os error 28)"), OSError(errno.ENOSPC, text)):
        with pytest.raises(InputError, match=f"{tmp_path}: {text}; free space"), reserved(tmp_path):
            try:
                raise error
            except Exception as inner:
                raise RuntimeError("a library's own words") from inner
    with pytest.raises(RuntimeError, match="another"), reserved(tmp_path):
        raise RuntimeError("another fault")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_export_leaves_no_directory_that_it_made(tmp_path):
    (tmp_path / "mine").mkdir()
    for folder in ("mine", "mine/a/b", "c"):
        with pytest.raises(InputError), reserved(tmp_path / folder):
            raise InputError("refused")
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [Path("mine")]


@pytest.mark.parametrize("limit", [2_000, 250_000])
def test_no_room_for_a_file(run_export, toy_base, tmp_path, capsys, limit):
    """2,000 bytes: no tokenizer.json; 250,000: a float32 graph, but not its folded copy."""
    assert 3_000 < (toy_base / "tokenizer.json").stat().st_size < 250_000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        status = run_export("--model_name_or_path", toy_base, "--output_dir", tmp_path / "out", "--quantize")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err.splitlines()[-1]
    assert status == 2 and f"{tmp_path / 'out'}: File too large; free space" in error
    assert not (tmp_path / "out").exists()


def test_hub_layout_and_a_name_of_pattern_characters(run_export, toy_base, repo, tmp_path, capsys):
    model = shutil.copytree(toy_base, tmp_path / "a [b]*'\"가|`")
    folder = tmp_path / "out [1]"
    flags = ["--quantize", "--sts_dataset_path", repo / "sample" / "KorSTS", "--output_dir", folder]
    assert run_export("--model_name_or_path", model, "--hub_layout", *flags) == 0
    out = capsys.readouterr().out
    assert {path.name for path in (folder / "onnx").iterdir()} == {"model.onnx", "model_quantized.onnx"}
    assert " 0.0 MB" not in out and not list(folder.rglob("*folded*"))
    assert run_export("--model_name_or_path", model, *flags) == 2  # the other layout, beside this one's tokenizer
    assert "would need its own tokenizer.json" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["torch.onnx.export", "kf_deberta.export.check.OnnxEncoder"])
def test_out_of_memory_is_no_fault_of_the_graph(run_export, toy_base, tmp_path, capsys, monkeypatch, place):
    def run_out(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 bytes")

    monkeypatch.setattr(place, run_out)
    assert run_export("--model_name_or_path", toy_base, "--output_dir", tmp_path / "out") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: out of memory (DefaultCPUAllocator")
    assert not (tmp_path / "out").exists()
