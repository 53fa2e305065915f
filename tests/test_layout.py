"""Data flows one way: which room may import which is held here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import clipcheck

ROOT = Path(clipcheck.__file__).parent

EVERYWHERE = {"errors", "locks", "progress", "sizes", "torchscript_support", "_version"}

ALLOWED = {
    "errors": set(),
    "torchscript_support": set(),
    "_version": set(),
    "locks": set(),
    "progress": set(),
    "sizes": set(),
    "isolation": set(),
    "checkpoints": set(),
    "inputs": set(),
    "compare": set(),
    "writers": {"checkpoints", "compare", "inputs", "models"},
    "models": {"checkpoints", "inputs"},
    "backends": {"checkpoints", "compare", "inputs", "isolation", "models", "writers"},
    "frontends": {"backends", "checkpoints", "compare", "inputs"},
    "judging": {"backends", "checkpoints", "compare", "inputs", "models", "modules"},
    "modules": {"models", "backends", "inputs", "compare"},
    "localising": {"backends", "checkpoints", "compare", "inputs", "judging", "models", "modules"},
    "explaining": {"backends", "checkpoints", "compare", "inputs", "models"},
    "converting": {
        "backends",
        "checkpoints",
        "compare",
        "explaining",
        "inputs",
        "judging",
        "models",
        "report",
    },
    "search": {"backends", "compare", "inputs", "writers"},
    "judgement": {"backends", "checkpoints", "compare", "search"},
    "matrix": {
        "backends",
        "checkpoints",
        "compare",
        "explaining",
        "frontends",
        "inputs",
        "isolation",
        "judgement",
        "judging",
        "localising",
        "models",
        "search",
    },
    "checking": {
        "backends",
        "checkpoints",
        "compare",
        "inputs",
        "judgement",
        "matrix",
        "report",
    },
    "replaying": {
        "checking",
        "checkpoints",
        "judging",
        "models",
        "backends",
        "inputs",
        "compare",
        "search",
    },
    "evidence": {"checking", "judgement", "report", "search", "sweep", "writers"},
    "github": {"judgement", "report"},
    "history": set(),
    "faults": {"backends", "checkpoints", "compare", "inputs", "models", "writers"},
    "audit_ways": {
        "backends",
        "checkpoints",
        "compare",
        "faults",
        "inputs",
        "judging",
        "models",
        "writers",
    },
    "audit": {
        "audit_ways",
        "checking",
        "judging",
        "localising",
        "faults",
        "writers",
        "checkpoints",
        "models",
        "backends",
        "inputs",
        "compare",
    },
    "report": {
        "backends",
        "faults",
        "localising",
        "judgement",
        "audit",
        "history",
        "replaying",
        "sweep",
        "checkpoints",
        "inputs",
        "compare",
    },
    "session": {
        "backends",
        "checking",
        "checkpoints",
        "compare",
        "evidence",
        "judgement",
        "github",
        "models",
        "writers",
    },
    "sweep": {
        "backends",
        "checking",
        "checkpoints",
        "compare",
        "judgement",
        "matrix",
        "models",
        "report",
        "session",
    },
    "suite": {"judgement", "report"},
    "pytest_plugin": {"backends", "judgement", "session"},
    "terminal": {"checkpoints", "report"},
    "cli": {
        "backends",
        "faults",
        "localising",
        "audit",
        "checking",
        "converting",
        "judgement",
        "replaying",
        "evidence",
        "github",
        "history",
        "checkpoints",
        "models",
        "writers",
        "report",
        "sweep",
        "terminal",
    },
    "__init__": {"checking", "judgement", "checkpoints", "inputs", "models"},
    "__main__": {"cli"},
}


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imported_rooms(path: Path) -> set[str]:
    parts = [name.split(".") for name in imported_modules(path)]
    return {p[1] for p in parts if p[0] == "clipcheck" and len(p) > 1 and p[1] in ALLOWED}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_the_rooms_that_its_own_may_see(path: Path) -> None:
    room = room_of(path)
    assert imported_rooms(path) - {room} - EVERYWHERE <= ALLOWED[room]


@pytest.mark.parametrize("room", ["compare"])
def test_judging_does_not_know_torch(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        assert not {name for name in imported_modules(path) if name.split(".")[0] == "torch"}


def test_every_room_is_in_the_table() -> None:
    assert {room_of(path) for path in files()} == ALLOWED.keys()


def test_the_parser_sees_imports_inside_of_functions(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from clipcheck.models import eager\n")
    assert imported_rooms(path) == {"models"}
