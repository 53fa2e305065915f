"""Build the sdist and the wheel as they are released, and check them.

``python -m tools.build_dist FOLDER`` needs `build`, `hatchling` and `twine`. Both files are built
twice, and their bytes are compared. Their contents are compared with the files that git tracks, and
twine checks their metadata.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]

_DIST_INFO = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")


def main(arguments: Sequence[str] | None = None) -> int:
    """Build into a new or empty folder; return 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"expected an empty folder, found files in {folder}")
    with tempfile.TemporaryDirectory() as again:
        for into in (folder, Path(again)):
            _run("build", "--no-isolation", "--outdir", str(into), str(ROOT))
        wrong = differences(folder, Path(again))
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    files = tracked(ROOT)
    wrong += wheel_mistakes(wheel, files) + sdist_mistakes(sdist, files)
    _run("twine", "check", "--strict", str(wheel), str(sdist))
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        for path in (sdist, wheel):
            print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")
    return 1 if wrong else 0


def tracked(root: Path) -> set[str]:
    """List the files that git tracks, as paths from ``root``, without deleted files."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"],  # noqa: S607  # the user's git
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in listed.stdout.split("\0") if name and (root / name).exists()}


def differences(one: Path, other: Path) -> list[str]:
    """List the differences between two builds."""
    names = {path.name for folder in (one, other) for path in folder.iterdir()}
    return [
        f"{name}: two builds of it differ"
        for name in sorted(names)
        if _bytes(one / name) != _bytes(other / name)
    ]


def wheel_mistakes(wheel: Path, files: Iterable[str]) -> list[str]:
    """List files that a wheel lacks or should not contain (it has the package and metadata)."""
    name, version, *_ = wheel.name.split("-")
    expected = {file for file in files if file.startswith(f"{name}/")}
    expected |= {f"{name}-{version}.dist-info/{file}" for file in _DIST_INFO}
    with zipfile.ZipFile(wheel) as archive:
        return _mistakes(wheel.name, expected, archive.namelist())


def sdist_mistakes(sdist: Path, files: Iterable[str]) -> list[str]:
    """List files that an sdist lacks or should not contain (it has tracked files and metadata)."""
    folder = sdist.name.removesuffix(".tar.gz")
    expected = {f"{folder}/{file}" for file in (*files, "PKG-INFO")}
    with tarfile.open(sdist) as archive:
        return _mistakes(sdist.name, expected, archive.getnames())


def _mistakes(name: str, expected: set[str], found: Sequence[str]) -> list[str]:
    return [f"{name}: {file} is missing" for file in sorted(expected - set(found))] + [
        f"{name}: {file} should not be in it" for file in sorted(set(found) - expected)
    ]


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _run(module: str, *arguments: str) -> None:
    # Without the user's SOURCE_DATE_EPOCH, so that all builds are the same.
    environment = {k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"}
    subprocess.run([sys.executable, "-m", module, *arguments], env=environment, check=True)


if __name__ == "__main__":
    sys.exit(main())
