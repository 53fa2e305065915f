"""Measure what it costs to run an archive's own code in a sandbox process.

Each round runs two commands, one directly after the other so that the load of the machine is the
same: `clipcheck check FILE --isolation none` and `--isolation process`, in alternating order. The
output has the medians of the wall time, of the ratio of each pair, and of the processor time,
child processes included.

    python -m benchmarks.isolation
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import write_archive

WAYS = ("none", "process")


@dataclass(frozen=True)
class Run:
    """Wall time and processor time of a command in seconds, and its peak memory in bytes."""

    wall: float
    cpu: float
    peak: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="an archive; by default a ViT-B/32")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.checkpoint or write_archive(Path(folder))
        check(path, "none")  # so that the file is in memory for both
        rounds = []
        for number in range(arguments.rounds):
            order = WAYS if number % 2 else WAYS[::-1]
            rounds.append({way: check(path, way) for way in order})
    report(rounds)


def check(path: Path, way: str) -> Run:
    """Check the file, as a user does."""
    command = [sys.executable, "-m", "clipcheck", "check", str(path), "--isolation", way]
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(
        [*command, "--json", "-", "-q"], stdout=subprocess.PIPE, text=True, check=True
    )
    wall, after = time.perf_counter() - began, os.times()
    (result,) = json.loads(done.stdout)["results"]
    spent = sum(after[2:4]) - sum(before[2:4])
    return Run(wall, spent, result["peak_memory"])


def report(rounds: list[dict[str, Run]]) -> None:
    print(f"{'':10}{'seconds':>10}{'cpu':>10}{'peak GB':>10}")
    for way in WAYS:
        runs = [each[way] for each in rounds]
        figures = (
            statistics.median(run.wall for run in runs),
            statistics.median(run.cpu for run in runs),
            statistics.median(run.peak for run in runs) / 1e9,
        )
        print(f"{way:10}{figures[0]:10.1f}{figures[1]:10.1f}{figures[2]:10.2f}")
    ratios = [each["process"].wall / each["none"].wall for each in rounds]
    print(
        f"process is {statistics.median(ratios):.3f} times as long "
        f"({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} pairs)"
    )


if __name__ == "__main__":
    main()
