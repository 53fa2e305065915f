"""Measure the suite with workers of pytest-xdist: wall time, and memory of all processes.

Each round runs the suite on two full-size checkpoints, a ViT-B/32 and an RN50: without workers,
with two workers, and with two naive workers (each with a thread for every core, and tests
distributed one by one). Then it runs on the ViT-B/32 alone, without workers and with two workers,
one of which is idle. The table has medians; ratios are between runs of the same round. Memory is
the peak sum over all processes, in which a shared page counts once (PSS, as Linux reports it).

    python -m benchmarks.suite
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables import add_option, table
from clipcheck.system.workers import THREADS, cores

ARCHITECTURES = ("ViT-B/32", "RN50")

PAUSE = 0.5
"""Seconds between two samples of the memory."""


@dataclass(frozen=True)
class Way:
    """A way to run the suite: its name, its options, whether it has only one checkpoint, whether
    the cores are not divided, and the name of the way that it is compared with."""

    name: str
    options: tuple[str, ...]
    beside: str
    alone: bool = False
    naive: bool = False


WAYS = (
    Way("two checkpoints, -n 0", ("-n0",), "two checkpoints, -n 0"),
    Way("two checkpoints, -n 2", ("-n2",), "two checkpoints, -n 0"),
    Way(
        "two checkpoints, -n 2, naive",
        ("-n2", "--dist=load"),
        "two checkpoints, -n 0",
        naive=True,
    ),
    Way("one checkpoint, -n 0", ("-n0",), "one checkpoint, -n 0", alone=True),
    Way("one checkpoint, -n 2", ("-n2",), "one checkpoint, -n 0", alone=True),
)


@dataclass(frozen=True)
class Cost:
    """Cost of one run: wall time in seconds, and peak memory in bytes."""

    seconds: float
    memory: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint",
        action="append",
        type=Path,
        help="an archive; may be repeated. By default a ViT-B/32 and an RN50 are written",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", help="images of each check; by default those of a check")
    add_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        given = arguments.checkpoint or write_archives(Path(folder))
        checkpoints = [path.absolute() for path in given]
        rounds = [
            {way.name: run(way, checkpoints, Path(folder), arguments.examples) for way in WAYS}
            for _ in range(arguments.rounds)
        ]
    report(rounds, arguments.tables)


def write_archives(folder: Path) -> list[Path]:
    from clipcheck.plugin.subjects import seeded_archive

    return [seeded_archive(name, folder) for name in ARCHITECTURES]


def run(way: Way, checkpoints: list[Path], folder: Path, examples: str | None) -> Cost:
    """Run the suite once, in a folder without a conftest.py."""
    chosen = checkpoints[:1] if way.alone else checkpoints
    models = [part for path in chosen for part in ("--clip-model", str(path))]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--pyargs", "clipcheck.suite", *way.options, *models]
    command += [] if examples is None else ["--clip-examples", examples]
    environment = {name: value for name, value in os.environ.items() if name not in THREADS}
    if way.naive:
        environment |= dict.fromkeys(THREADS, str(cores()))
    with (folder / "output").open("w+") as output:
        started = time.perf_counter()
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output
        ) as process:
            memory = peak(process)
        seconds = time.perf_counter() - started
        output.seek(0)
        if process.returncode:
            sys.exit(f"{way.name} failed:\n{output.read()}")
    print(f"{way.name}: {seconds:.0f} s, {memory / 1e9:.2f} GB", file=sys.stderr)
    return Cost(seconds, memory)


def peak(process: subprocess.Popen[bytes]) -> int:
    """Return the peak memory of a process and its descendants, in bytes."""
    found = 0
    while process.poll() is None:
        found = max(found, sum(held(pid) for pid in tree(process.pid)))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PAUSE)
    return found


def tree(root: int) -> set[int]:
    """List a process and its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            # The name in parentheses may contain spaces; the state and the parent follow it.
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def held(pid: int) -> int:
    """Return the bytes that a process holds; of shared pages, its share."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def report(rounds: list[dict[str, Cost]], folder: Path | None) -> None:
    print(f"Medians of {len(rounds)} rounds on {cores()} cores. Times as much: of the first of the")
    print("same checkpoints, round by round.\n")
    columns = ["run", "seconds", "times as much", "memory of all processes", "times as much"]
    with table("suite", columns, folder) as row:
        for way in WAYS:
            costs = [costs[way.name] for costs in rounds]
            beside = [costs[way.beside] for costs in rounds]
            row(way.name, *cells(costs, beside))


def cells(costs: list[Cost], beside: list[Cost]) -> list[str]:
    pairs = list(zip(costs, beside, strict=True))
    seconds = statistics.median(cost.seconds for cost in costs)
    memory = statistics.median(cost.memory for cost in costs) / 1e9
    slower = statistics.median(cost.seconds / other.seconds for cost, other in pairs)
    larger = statistics.median(cost.memory / other.memory for cost, other in pairs)
    return [f"{seconds:.1f}", f"{slower:.2f}", f"{memory:.2f} GB", f"{larger:.2f}"]


if __name__ == "__main__":
    main()
