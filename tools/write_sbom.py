"""Write the software bill of materials of an installed clipcheck, as CycloneDX JSON.

``python -m tools.write_sbom ENVIRONMENT FILE`` takes the folder of a virtual environment, and needs
`cyclonedx-bom`, which holds what it writes against the schema. That everything that clipcheck
declares is told of, with its version, is checked here.
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
"""Of the package; the others are for those who change it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write it; 1 where it doesn't tell of all that it has to."""
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
    """Let cyclonedx-bom write what is installed in an environment: valid, or not at all."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder:
        # It takes the version from nowhere else.
        project = Path(folder, "pyproject.toml")
        dynamic = 'dynamic = ["version", "readme"]'
        project.write_text(text.replace(dynamic, f'version = "{__version__}"'))
        options = ["--pyproject", str(project), "--mc-type", "library", "--output-reproducible"]
        command = [sys.executable, "-m", "cyclonedx_py", "environment", *options, "--validate"]
        subprocess.run([*command, "--output-file", str(file), str(environment)], check=True)


def declared(project: Mapping[str, Any]) -> list[Requirement]:
    """What users install: the dependencies, and the extras that the package itself uses.

    Args:
        project: the table ``project`` of a ``pyproject.toml``.
    """
    extras = project["optional-dependencies"]
    lines = [line for extra in EXTRAS for line in extras[extra]]
    return [Requirement(line) for line in (*project["dependencies"], *lines)]


def mistakes(
    bill: Mapping[str, Any], version: str, requirements: Iterable[Requirement]
) -> list[str]:
    """Where a bill doesn't tell of clipcheck and of what it depends on.

    Args:
        bill: as read from its JSON.
        version: of clipcheck.
        requirements: each has to be there, in a version that it allows.
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
            wrong.append(f"{requirement} is expected, {found} is told")
    return wrong


def _direct(bill: Mapping[str, Any]) -> dict[str, str]:
    """The versions of what the bill says that its component depends on, by normalized name."""
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
