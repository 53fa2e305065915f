"""Run the commands whose output the README and the guide show, and save their output.

``python -m tools.samples`` takes some minutes, in a temporary folder; each output goes to
``docs/samples/NAME.txt``. chromium takes the screenshot of a report, ``docs/report.png``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
SAMPLES = DOCS / "samples"

_FAULTY = "clipcheck-demo/ViT-B-32.pt"

COMMANDS = {
    "demo": "demo",
    "fault": "demo --fault gelu-for-quickgelu",
    "localize": f"localize {_FAULTY}",
    "replay": "replay clipcheck-demo/failing-inputs/INPUT",
    "sweep": "sweep release",
}
"""Arguments of `clipcheck`, by name; a command may use files that earlier ones wrote."""


def main() -> None:
    """Write all samples."""
    SAMPLES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in COMMANDS.items():
            if name == "sweep":
                _prepare_release(Path(folder))
            found = next(Path(folder).glob("clipcheck-demo/failing-inputs/*"), None)
            given = arguments.replace("INPUT", found.name if found else "")
            told = f"$ clipcheck {given}\n{_run(given, folder)}"
            (SAMPLES / f"{name}.txt").write_text(told, encoding="utf-8")
        _photograph(Path(folder) / "clipcheck-demo" / "report.html")


def _photograph(page: Path) -> None:
    """Take a screenshot of the top of a report: the verdict and the table of gates."""
    options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=900,735"]
    where = f"--screenshot={DOCS / 'report.png'}"
    command = ["chromium", *options, where, page.as_uri()]  # the user's chromium
    subprocess.run(command, check=True, capture_output=True)


def _prepare_release(folder: Path) -> None:
    """Make a folder of two sound archives, a faulty one and a truncated one."""
    release = folder / "release"
    release.mkdir()
    for architecture in ("tiny-vit", "tiny-resnet"):
        _run(f"synthesize {architecture} -o release/{architecture}.pt", str(folder))
    shutil.copy(folder / _FAULTY, release / "faulty.pt")
    whole = (release / "tiny-vit.pt").read_bytes()
    (release / "cut-off.pt").write_bytes(whole[: len(whole) // 2])


def _run(arguments: str, folder: str) -> str:
    command = [sys.executable, "-m", "clipcheck", *arguments.split()]
    told = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if told.returncode not in (0, 1, 2):
        raise RuntimeError(f"clipcheck {arguments}: exit {told.returncode}")
    return told.stdout


if __name__ == "__main__":
    main()
