"""Test an installed clipcheck as users run it, from a folder outside the checkout.

``python -m tools.try_wheel ENVIRONMENT`` takes the folder of a virtual environment with the
wheel installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; print what is wrong, and return 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", type=Path)
    programs = parser.parse_args(arguments).environment.resolve() / "bin"
    with tempfile.TemporaryDirectory() as folder:
        wrong = mistakes(programs, Path(folder))
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def mistakes(programs: Path, folder: Path) -> list[str]:
    """List what is wrong with the ``clipcheck`` and ``python`` in a folder of programs.

    Args:
        programs: the folder.
        folder: where to run them; empty, and outside the checkout.
    """
    clipcheck = str(programs / "clipcheck")
    where = [str(programs / "python"), "-c", "import clipcheck; print(clipcheck.__file__)"]
    steps = (
        where,
        [clipcheck, "--version"],
        [clipcheck, "synthesize", "tiny-vit", "-o", "tiny.pt"],
        [clipcheck, "check", "tiny.pt", "--examples", "1", "--report", "report"],
    )
    wrong = []
    for step in steps:
        done = _run(step, folder)
        if done.returncode != 0:
            wrong.append(f"{' '.join(step)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        elif step is where and Path(done.stdout.strip()).is_relative_to(ROOT / "clipcheck"):
            wrong.append(f"the checkout is tested instead of the wheel: {done.stdout.strip()}")
    return wrong


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


if __name__ == "__main__":
    sys.exit(main())
