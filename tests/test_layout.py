"""Data flows one way: a room imports the rooms below it, and no two files import each other."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

import clipcheck
from clipcheck.backends.names import CLASSES

ROOT = Path(clipcheck.__file__).parent

ROOMS = (
    "errors",
    "_version",
    "system",
    "gates",
    "inputs",
    "sandbox",
    "checkpoints",
    "families",
    "models",
    "writers",
    "backends",
    "results",
    "harness",
    "audit",
    "sweep",
    "report",
    "plugin",
    "testing",
    "suite",
    "cli",
    "__init__",
    "__main__",
)
"""The lowest first."""

AT_THE_ROOT = {"__init__", "__main__", "_version", "errors", "suite", "testing"}


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    parts = ("clipcheck", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in files()}


@functools.cache
def imported_modules(path: Path) -> set[str]:
    """Return everything that a file imports, also inside of functions and for types."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & MODULES.keys()
            if not inside <= MODULES.keys():  # Else it names files of a package, not what is in it.
                found.add(node.module)
    return found


def imported_rooms(path: Path) -> set[str]:
    parts = [name.split(".") for name in imported_modules(path)]
    return {p[1] for p in parts if p[0] == "clipcheck" and len(p) > 1 and p[1] in ROOMS}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_the_rooms_below_its_own_alone(path: Path) -> None:
    room = room_of(path)
    above = ROOMS[ROOMS.index(room) + 1 :]
    assert imported_rooms(path).isdisjoint(above)


def test_no_two_files_import_each_other() -> None:
    imports = {name: imported_modules(path) & MODULES.keys() for name, path in MODULES.items()}
    both = [(a, b) for a, found in imports.items() for b in found if a < b and a in imports[b]]
    assert both == []


def test_gates_do_not_import_torch() -> None:
    for path in (ROOT / "gates").rglob("*.py"):
        assert not {name for name in imported_modules(path) if name.split(".")[0] == "torch"}


def inner(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the operands of an expression, and what is in a tuple among them."""
    for each in ast.iter_child_nodes(node):
        yield from inner(each) if isinstance(each, ast.Tuple | ast.List | ast.Set) else [each]


def asked_for_backends(path: Path) -> list[str]:
    """Return where a file asks for a backend's class or name, in place of a capability."""
    classes = {*CLASSES.values(), "ProgramBackend", "ModuleBackend", "ByName", "InsideProgram"}
    backends = set(CLASSES) - {"open_clip", "transformers", "clip"}  # names of libraries as well
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            named = classes & set(re.findall(r"\w+", ast.unparse(node.args[1])))
        elif isinstance(node, ast.Compare | ast.BoolOp | ast.Call):
            function = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            given = node.args if function == "Choice" else () if function else [*inner(node)]
            named = {each.value for each in given if isinstance(each, ast.Constant)} & backends
        else:
            continue
        found += [f"{path.name}:{node.lineno}: {name}" for name in named]
    return found


def test_callers_ask_a_backend_for_a_capability_and_not_for_its_class_or_name() -> None:
    callers = [path for path in files() if room_of(path) != "backends"]
    assert [each for path in callers for each in asked_for_backends(path)] == []


def positional_arguments(node: ast.ClassDef) -> int:
    """Return how many arguments the constructor takes by position, as far as the class says."""
    decorators = [
        ast.unparse(each) for each in node.decorator_list if "dataclass" in ast.unparse(each)
    ]
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            return len(each.args.args) - 1
    if not decorators or any("kw_only=True" in each for each in decorators):
        return 0
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
    types = [
        ast.unparse(each.annotation) for each in fields if "init=False" not in ast.unparse(each)
    ]
    by_position = takewhile(lambda each: "KW_ONLY" not in each, types)
    return sum("ClassVar" not in each for each in by_position)


def test_constructors_of_more_than_five_arguments_take_them_by_name() -> None:
    assert [
        f"{path.name}:{node.lineno}: {node.name}"
        for path in files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and positional_arguments(node) > 5
    ] == []


def test_every_room_is_in_the_list_and_few_files_stand_beside_them() -> None:
    assert {room_of(path) for path in files()} == set(ROOMS)
    assert {path.stem for path in ROOT.glob("*.py")} == AT_THE_ROOT


def test_the_parser_sees_imports_inside_of_functions(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from clipcheck.models import loader\n")
    assert imported_rooms(path) == {"models"}
