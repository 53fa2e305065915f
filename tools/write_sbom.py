"""Write the software bill of materials of an installed clipcheck, as CycloneDX JSON.

``python -m tools.write_sbom ENVIRONMENT FILE`` takes the folder of a virtual environment, and needs
`cyclonedx-bom`, which validates the file by the schema. This module checks that the file has all
declared dependencies of clipcheck, with their versions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from clipcheck._version import __version__

ROOT = Path(__file__).parents[1]

EXTRAS = ("onnx", "transformers", "suite")
"""Extras of the package; the others are for developers."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the bill; return 1 if anything is missing in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", type=Path)
    parser.add_argument("file", type=Path)
    given = parser.parse_args(arguments)
    write(given.environment, given.file)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wrong = mistakes(json.loads(given.file.read_text("utf-8")), __version__, declared(project))
    for line in wrong:
        print(f"{given.file}: {line}", file=sys.stderr)
    return 1 if wrong else 0


def write(environment: Path, file: Path) -> None:
    """Let cyclonedx-bom write the packages of an environment, only if the file is valid."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder:
        # cyclonedx-bom reads the version only from here.
        project = Path(folder, "pyproject.toml")
        dynamic = 'dynamic = ["version", "readme"]'
        project.write_text(text.replace(dynamic, f'version = "{__version__}"'))
        options = ["--pyproject", str(project), "--mc-type", "library", "--output-reproducible"]
        command = [sys.executable, "-m", "cyclonedx_py", "environment", *options, "--validate"]
        subprocess.run([*command, "--output-file", str(file), str(environment)], check=True)


def declared(project: Mapping[str, Any]) -> list[Requirement]:
    """List what users install: the dependencies, and the extras of the package.

    Args:
        project: the table ``project`` of a ``pyproject.toml``.
    """
    extras = project["optional-dependencies"]
    lines = [line for extra in EXTRAS for line in extras[extra]]
    return [Requirement(line) for line in (*project["dependencies"], *lines)]


def mistakes(
    bill: Mapping[str, Any], version: str, requirements: Iterable[Requirement]
) -> list[str]:
    """List what a bill lacks or has wrong about clipcheck and its dependencies.

    Args:
        bill: the parsed JSON.
        version: of clipcheck.
        requirements: each has to be in the bill, in an allowed version.
    """
    told = bill["metadata"]["component"]
    wrong = []
    if (told["name"], told.get("version")) != ("clipcheck", version):
        wrong.append(f"it is of {told['name']} {told.get('version')}, not of clipcheck {version}")
    versions = _direct(bill)
    for requirement in requirements:
        found = versions.get(canonicalize_name(requirement.name))
        if found is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement} is expected, the bill has {found}")
    return wrong


def _direct(bill: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions of the component's dependencies in the bill, by normalized name."""
    root = bill["metadata"]["component"]["bom-ref"]
    needed = {
        ref
        for each in bill["dependencies"]
        if each["ref"] == root
        for ref in each.get("dependsOn", ())
    }
    return {
        canonicalize_name(each["name"]): each["version"]
        for each in bill["components"]
        if each["bom-ref"] in needed
    }


if __name__ == "__main__":
    sys.exit(main())
