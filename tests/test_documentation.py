"""The README, SECURITY.md and the documentation name only things that exist."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.test_layout import ROOMS

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def prose(page: Path) -> str:
    """Return the text without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("page", "most"), [("README.md", 8192), ("SECURITY.md", 3072)])
def test_the_pages_that_are_read_first_are_short(page: str, most: int) -> None:
    assert len((ROOT / page).read_bytes()) <= most


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    links = [link for link in LINK.findall(prose(page)) if "://" not in link]
    files = [link.partition("#")[0] for link in links]
    assert [file for file in files if file and not (page.parent / file).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_and_files_that_a_page_names_are_there(page: Path) -> None:
    code = re.findall(r"`([^`\n]+)`", prose(page))
    # Of `tests/test_x.py[case]` and `tests/test_x.py::test_y` the file.
    files = {found[0] for each in code if (found := re.match(r"(tests|docs|tools)/[\w/.]+", each))}
    names = {name for each in code for name in re.findall(r"(?<![\w.])test_\w+(?!\w*\.py)", each)}
    tests = [*(ROOT / "tests").rglob("test_*.py"), ROOT / "clipcheck" / "suite.py"]
    defined = "\n".join(path.read_text("utf-8") for path in tests)
    assert [file for file in sorted(files) if not (ROOT / file).exists()] == []
    assert [name for name in sorted(names) if f"def {name}(" not in defined] == []


def test_every_page_of_the_site_is_in_a_table_of_contents() -> None:
    docs = ROOT / "docs"
    listed = {"index"}
    for page in docs.rglob("*.md"):
        for tree in re.findall(r"^```\{toctree\}(.*?)^```", page.read_text("utf-8"), re.M | re.S):
            folder = page.parent.relative_to(docs)
            entries = [line for line in tree.splitlines() if line and not line.startswith(":")]
            listed |= {str(folder / entry) for entry in entries}
    pages = {str(page.relative_to(docs).with_suffix("")) for page in docs.rglob("*.md")}
    assert {page for page in pages if not page.startswith("evidence/tables/")} == listed


def test_the_architecture_lists_the_rooms_in_the_order_in_which_they_import() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    listed = [
        name.removesuffix("/").removesuffix(".py")
        for row in re.findall(r"^\| (`.*?) \|", text, re.M)
        for name in re.findall(r"`([^`]+)`", row)
    ]
    assert listed == [room for room in ROOMS if room not in ("__init__", "__main__")]


def test_the_files_that_the_architecture_names_are_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    paths = re.findall(r"`(\w+/[\w/.]*)`", text)
    assert len(paths) > 20
    assert [
        path
        for path in paths
        if not (ROOT / "clipcheck" / path).exists() and not (ROOT / path).exists()
    ] == []


def test_the_readme_shows_the_demo_as_it_was_printed() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    printed = (ROOT / "docs" / "samples" / "demo.txt").read_text("utf-8")
    (shown,) = (block for block in re.findall(r"```\n(.*?)```", readme, re.S) if "pass  " in block)
    parts = [part.strip("\n") for part in shown.split("...\n")]
    assert [part for part in parts if part not in printed] == []


def test_a_package_index_gets_no_link_that_leads_nowhere() -> None:
    hook = pyproject()["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    readme = (ROOT / "README.md").read_text("utf-8")
    text = readme
    for each in hook["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    assert [link for link in LINK.findall(text) if "://" not in link] == []
    assert not re.search("^!", text, re.M)  # of a picture nothing is left
    # All else is as it was.
    assert "See CONTRIBUTING and the changelog." in text
    assert len(text) > len(readme) / 2


def test_each_dependency_has_a_line_that_says_why() -> None:
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    given = [*project["dependencies"], *(line for extra in extras.values() for line in extra)]
    names = {Requirement(line).name for line in given} - {"clipcheck"}
    rows = re.findall(r"^\| ([^|]+) \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M)
    told = {re.split("[<>=]", name.strip())[0] for row in rows for name in row.split(",")}
    assert sorted(names - told) == []


def docstrings(path: Path) -> list[ast.Constant]:
    """Return those of modules, classes and functions, and those below attributes and constants."""
    tree = ast.parse(path.read_text("utf-8"))
    values = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    return [
        value
        for value in values
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    ]


def test_no_docstring_of_the_package_begins_with_what() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{each.lineno}"
        for path in sorted((ROOT / "clipcheck").rglob("*.py"))
        for each in docstrings(path)
        if re.match(r"\s*What\b", str(each.value))
    ]
    assert found == []
