"""Imports of benchmarks exist: no other test runs them, or the programs in their strings."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


def programs(tree: ast.Module) -> Iterator[ast.Module]:
    """Return the file, and each string in it that is a program."""
    yield tree
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines = node.value.strip().splitlines()
            if len(lines) > 1 and any(line.startswith(("import ", "from ")) for line in lines):
                yield ast.parse(node.value)


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Return modules of clipcheck, with each name that is imported from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("clipcheck"):
            yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_all_that_a_benchmark_imports_is_there(file: Path) -> None:
    found = {
        name for program in programs(ast.parse(file.read_text())) for name in imported(program)
    }
    missing = [f"{module}.{name}" for module, name in sorted(found) if not there(module, name)]
    assert not missing


def there(module: str, name: str) -> bool:
    if hasattr(importlib.import_module(module), name):
        return True
    try:
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


def test_programs_in_strings_are_read() -> None:
    """Otherwise the test above would not check them."""
    tree = ast.parse((FOLDER / "check.py").read_text())
    assert len(list(programs(tree))) == 4
