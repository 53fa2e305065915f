from __future__ import annotations

import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tools import build_dist

FILES = {"clipcheck/__init__.py", "clipcheck/py.typed", "tests/test_cli.py", "pyproject.toml"}
INFO = "clipcheck-1.0.dist-info/"
IN_WHEEL = [
    "clipcheck/__init__.py",
    "clipcheck/py.typed",
    f"{INFO}METADATA",
    f"{INFO}RECORD",
    f"{INFO}WHEEL",
    f"{INFO}entry_points.txt",
    f"{INFO}licenses/LICENSE",
]
IN_SDIST = [f"clipcheck-1.0/{name}" for name in (*FILES, "PKG-INFO")]


def wheel(folder: Path, names: list[str]) -> Path:
    path = folder / "clipcheck-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return path


def sdist(folder: Path, names: list[str]) -> Path:
    path = folder / "clipcheck-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return path


def test_a_wheel_holds_the_tracked_files_of_the_package_and_nothing_else(tmp_path: Path) -> None:
    assert build_dist.wheel_mistakes(wheel(tmp_path, IN_WHEEL), FILES) == []


@pytest.mark.parametrize("gone", IN_WHEEL)
def test_what_a_wheel_lacks_is_reported(tmp_path: Path, gone: str) -> None:
    path = wheel(tmp_path, [name for name in IN_WHEEL if name != gone])
    assert build_dist.wheel_mistakes(path, FILES) == [f"{path.name}: {gone} is missing"]


@pytest.mark.parametrize(
    "extra", ["tests/test_cli.py", "clipcheck/__pycache__/cli.cpython-311.pyc", "clipcheck/new.py"]
)
def test_what_should_not_be_in_a_wheel_is_reported(tmp_path: Path, extra: str) -> None:
    path = wheel(tmp_path, [*IN_WHEEL, extra])
    assert build_dist.wheel_mistakes(path, FILES) == [f"{path.name}: {extra} should not be in it"]


def test_an_sdist_holds_all_tracked_files(tmp_path: Path) -> None:
    assert build_dist.sdist_mistakes(sdist(tmp_path, IN_SDIST), FILES) == []
    path = sdist(tmp_path, [*IN_SDIST[1:], "clipcheck-1.0/.hypothesis/examples"])
    assert build_dist.sdist_mistakes(path, FILES) == [
        f"{path.name}: {IN_SDIST[0]} is missing",
        f"{path.name}: clipcheck-1.0/.hypothesis/examples should not be in it",
    ]


def test_two_builds_differ_where_their_bytes_do_or_one_lacks_a_file(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        wheel(folder, ["clipcheck/__init__.py"])
        (folder / "same").write_bytes(b"same")
    sdist(one, [])
    assert build_dist.differences(one, one) == []
    wheel(other, ["clipcheck/__main__.py"])
    assert build_dist.differences(one, other) == [
        "clipcheck-1.0-py3-none-any.whl: two builds of it differ",
        "clipcheck-1.0.tar.gz: two builds of it differ",
    ]


def test_tracked_files_are_those_that_git_lists_and_that_are_there(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path)]
    for name in ("kept", "with space", "gone", "new"):
        (tmp_path / name).touch()
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "kept", "with space", "gone"], check=True)
    (tmp_path / "gone").unlink()
    assert build_dist.tracked(tmp_path) == {"kept", "with space"}


def test_nothing_is_built_among_older_files(tmp_path: Path) -> None:
    (tmp_path / "clipcheck-0.9.tar.gz").touch()
    with pytest.raises(SystemExit, match="2"):
        build_dist.main([str(tmp_path)])
