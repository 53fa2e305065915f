"""Measure the overhead of a sweep: small archives are checked, swept, and swept again.

A check of a small archive takes about a second, so that the overhead of a sweep (starting processes
and reading files) is visible. The rounds alternate.

    python -m benchmarks.sweep_start
    python -m benchmarks.sweep_start --archives 2 --rounds 1     # small
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.sweep import synthesized
from benchmarks.tables import add_option, table

COMMANDS = ("check", "sweep", "sweep, all known", "sweep --plan, all known")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archives", type=int, default=6, help="number of archives")
    parser.add_argument("--rounds", type=int, default=3)
    add_option(parser)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {command: [] for command in COMMANDS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "archives")
        folder.mkdir()
        paths = [
            synthesized("tiny-vit", folder / f"{seed}.pt", seed)
            for seed in range(arguments.archives)
        ]
        for number in range(arguments.rounds):
            ledger = ("--ledger", str(Path(name, f"{number}.sqlite")))
            seconds["check"].append(timed("check", "-q", *map(str, paths)))
            for command, plan in zip(COMMANDS[1:], ([], [], ["--plan"]), strict=True):
                seconds[command].append(timed("sweep", "-q", str(folder), *ledger, *plan))
    columns = [f"command, {arguments.archives} archives of tiny-vit", "seconds", "of check"]
    with table("sweep-start", columns, arguments.tables) as row:
        for command, found in seconds.items():
            ratios = [one / other for one, other in zip(found, seconds["check"], strict=True)]
            median, ratio = statistics.median(found), statistics.median(ratios)
            row(f"`clipcheck {command}`", f"{median:.1f}", f"{ratio:.2f}")


def timed(*arguments: str) -> float:
    """Run a command; return its wall time. All checkpoints have to be consistent."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    started = time.perf_counter()
    command = [sys.executable, "-m", "clipcheck", *arguments]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
