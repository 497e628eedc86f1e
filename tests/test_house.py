"""Everything is where CONTRIBUTING.md says, in no more lines than it says, and imports go one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "kf_deberta"
# a room may import itself and the rooms after its colon, which are those below it
BELOW = {
    "errors": set(),
    "flags": {"errors"},
    "data": {"errors"},
    "model": {"errors"},
    "evaluation": {"data", "model", "errors"},
    "export": {"evaluation", "data", "model", "errors"},
    "training": {"evaluation", "data", "model", "errors"},
}
ROOT_SCRIPTS = {"data_util", "training_multi_task", "training_nli", "training_sts", "training_recommended"}
LINES = {"all but the tests": 5000, PACKAGE: 3600, "tests": 5000}  # Python, shell, HTML and JavaScript


def imported_modules(tree: ast.AST) -> set[str]:
    """Return the dotted names that a module imports, inside functions too; `from a import b` gives a and a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def sources(folder: Path) -> dict[str, ast.AST]:
    """Return every module below `folder` by its dotted name."""
    modules = {}
    for path in folder.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        modules[name] = ast.parse(path.read_text(encoding="utf-8"))
    return modules


MODULES = sources(ROOT / PACKAGE)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_import_goes_up_or_out_of_the_package(name):
    room = (name.split(".") + [""])[1]
    for imported in imported_modules(MODULES[name]):
        top, *rest = imported.split(".")
        assert top not in ROOT_SCRIPTS | {"bin", "dev", "sample", "tests"}, f"{name} imports {imported}"
        if top == PACKAGE and rest and room:
            assert rest[0] == room or rest[0] in BELOW[room], f"{name} imports {imported}"


def test_no_circle():
    graph = {name: imported_modules(tree) & MODULES.keys() - {name, PACKAGE} for name, tree in MODULES.items()}
    while leaves := {name for name, imported in graph.items() if not imported & graph.keys()}:
        graph = {name: imported for name, imported in graph.items() if name not in leaves}
    assert not graph, f"these import each other: {sorted(graph)}"


def test_rooms_and_root_hold_what_they_are_for():
    assert {path.stem for path in ROOT.glob("*.py")} == ROOT_SCRIPTS
    assert {name.split(".")[1] for name in MODULES if "." in name} == BELOW.keys()
    for path in (ROOT / "bin").iterdir():
        if path.suffix == ".py":  # a command: nothing imports it, and it runs from any directory
            assert 'if __name__ == "__main__":\n    run(main)' in path.read_text(encoding="utf-8"), path
        elif path.name != "__pycache__":
            assert path.suffix == ".sh" and path.read_bytes().startswith(b"#!" if path.stem != "setup" else b"# ")


def test_no_script_imports_another():
    for folder in ("bin", "dev", "sample"):
        stems = {path.stem for path in (ROOT / "bin").glob("*.py")}
        for name, tree in sources(ROOT / folder).items():
            assert not imported_modules(tree) & stems, name
    for name in ROOT_SCRIPTS:
        imported = imported_modules(ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8")))
        assert not imported & (ROOT_SCRIPTS - {"data_util"}), name


def test_it_stays_small():
    found = dict.fromkeys(LINES, 0)
    folders = [ROOT / name for name in (PACKAGE, "bin", "dev", "sample", "tests", ".ci")]
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*"))]
    for path in paths:
        if path.suffix in (".py", ".sh", ".html", ".mjs") or path.name == "run":
            lines = len(path.read_text(encoding="utf-8").splitlines())
            top = path.relative_to(ROOT).parts[0]
            found["tests" if top == "tests" else "all but the tests"] += lines
            found[PACKAGE] += lines * (top == PACKAGE)
    assert all(found[name] <= most for name, most in LINES.items()), found
