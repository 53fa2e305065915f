"""Compare the estimated and the measured time of a sweep, and measure the figures of the estimate.

First it measures the figures of the cost model (`clipcheck.sweep.cost`): a check of a model that
has almost nothing to compute, reading and hashing a file, and the rest of a check of one
architecture, with one thread and with two. ``--write`` saves them, with the machine.

Then it sweeps a catalogue with one worker and with two, each time with a new ledger, and compares
the wall time of the command with the estimate. Only one architecture of the catalogue was measured.

Last it prints the estimate for 400 checkpoints of the nine released architectures in turn, without
running them.

    python -m benchmarks.sweep
    python -m benchmarks.sweep --arch tiny-resnet --full tiny-vit:4 tiny-resnet:4     # small
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.tables import add_option, table
from clipcheck.checkpoints.architecture import ARCHITECTURES
from clipcheck.checkpoints.registry import RELEASED
from clipcheck.sweep.cost import (
    Rates,
    flops,
    gigaflops_of_check,
    makespan,
    rates,
    seconds_of_check,
)
from clipcheck.system.workers import cores, threads

EXAMPLES = 30
WORKERS = (1, 2)
MANY, OF_MANY = 400, (1, 8, 64)

JOBS = """
import json, sys, time
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.sweep.identity import versions_for
from clipcheck.harness.options import CheckOptions
from clipcheck.sweep.jobs import Job, Source
from clipcheck.sweep.worker import perform
options = CheckOptions(device="cpu", dtype="float32")
versions = versions_for([""])
seconds = []
for path in sys.argv[1:]:
    source = Source("path", path)
    job = Job(task="", label=path, source=source, options=options, versions=versions)
    seconds.append(json.loads(perform(job))["cost"]["seconds"])
started = time.perf_counter()
checkpoint = open_checkpoint(sys.argv[-1])
checkpoint.verify()
checkpoint.sha256
print(json.dumps({"seconds": seconds, "read": time.perf_counter() - started}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="ViT-B/32", help="architecture to measure")
    parser.add_argument(
        "--full",
        nargs="+",
        default=["tiny-vit:6", "tiny-resnet:6", "ViT-B/32:1", "RN50:1"],
        help="the catalogue to sweep, as ARCHITECTURE:COUNT",
    )
    parser.add_argument("--write", action="store_true", help="save the measured figures")
    add_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured = measure(folder, arguments.arch)
        report_rates(measured)
        if arguments.write:
            write(measured)
        compare(folder, arguments.full, measured, arguments.tables)
    foretell(measured, arguments.tables)


def synthesized(architecture: str, path: Path, seed: int) -> Path:
    command = ["synthesize", architecture, "-o", str(path), "--seed", str(seed)]
    subprocess.run([sys.executable, "-m", "clipcheck", *command], check=True, capture_output=True)
    return path


def measure(folder: Path, architecture: str) -> Rates:
    """Measure the figures of the cost model, except those of backends and of downloads."""
    least = synthesized("tiny-vit", folder / "least.pt", 0)
    other = synthesized(architecture, folder / "other.pt", 0)
    size = other.stat().st_size
    gigaflop, fixed, read = {}, {}, 0.0
    for count in WORKERS:
        found = jobs([least] * 4 + [other], count)
        fixed[count] = statistics.median(found["seconds"][1:4])
        # The fixed part includes a check of tiny-vit, whose operations take almost no time.
        per_gigabyte = found["read"] / (size / 1e9)
        gigaflops = gigaflops_of_check(flops(ARCHITECTURES[architecture]), [""], "", EXAMPLES)
        rest = found["seconds"][-1] - fixed[count] - found["read"]
        gigaflop[count] = max(rest, 0.0) / gigaflops
        read = per_gigabyte
    started = time.perf_counter()
    taken = swept(folder, [least], 1, "start")
    start = time.perf_counter() - started - fixed[1]
    assert taken > 0
    machine = f"{cores()} cores of {processor()}, torch {version('torch')}"
    known = replace(rates(), machine=machine, fixed=fixed[1], start=start, per_gigabyte=read)
    return replace(known, per_gigaflop=gigaflop)


def jobs(paths: list[Path], count: int) -> dict[str, list[float]]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(count)}
    command = [sys.executable, "-W", "ignore", "-c", JOBS, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def swept(folder: Path, paths: list[Path], workers: int, name: str) -> float:
    """Run a sweep; return its wall time. All checkpoints have to be consistent."""
    catalogue = folder / f"{name}.toml"
    catalogue.write_text("".join(f"[[checkpoint]]\npath = {str(path)!r}\n" for path in paths))
    asked = [str(catalogue), "--workers", str(workers), "--ledger", str(folder / f"{name}.sqlite")]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    started = time.perf_counter()
    command = [sys.executable, "-m", "clipcheck", "sweep", *asked]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def compare(folder: Path, wanted: list[str], measured: Rates, tables: Path | None) -> None:
    paths, seconds = [], {count: [] for count in WORKERS}
    for each in wanted:
        architecture, _, count = each.rpartition(":")
        for seed in range(int(count)):
            name = f"{architecture.replace('/', '-')}-{seed}.pt"
            paths.append(synthesized(architecture, folder / name, seed))
            for workers in WORKERS:
                seconds[workers].append(
                    predicted(architecture, paths[-1].stat().st_size, workers, measured)
                )
    print(f"\nA catalogue of {len(paths)}: {', '.join(wanted)}.\n")
    columns = ["workers", "threads of each", "estimated, s", "measured, s"]
    with table("sweep-measured", [*columns, "measured over estimated"], tables) as row:
        for workers in WORKERS:
            estimated = makespan(seconds[workers], workers, measured=measured)
            took = swept(folder, paths, workers, f"with-{workers}")
            share = f"{took / estimated:.2f}"
            row(workers, threads(cores(), workers), f"{estimated:.0f}", f"{took:.0f}", share)


def predicted(architecture: str, size: int, workers: int, measured: Rates) -> float:
    return seconds_of_check(
        flops(ARCHITECTURES[architecture]),
        size,
        [""],
        "",
        EXAMPLES,
        threads(cores(), workers),
        measured,
    )


def foretell(measured: Rates, tables: Path | None) -> None:
    names = [list(RELEASED)[number % len(RELEASED)] for number in range(MANY)]
    sizes = [RELEASED[name].size for name in names]
    seconds = [
        seconds_of_check(flops(ARCHITECTURES[name]), size, [""], "", EXAMPLES, 1, measured)
        for name, size in zip(names, sizes, strict=True)
    ]
    total = sum(sizes)
    print(f"\n{MANY} checkpoints, the nine released architectures in turn: {total / 1e9:,.0f} GB,")
    print(f"{sum(seconds) / 3600:,.1f} hours of one worker with one thread.\n")
    columns = ["workers of one thread", "files that are there", "fetched at 50 MB/s in all"]
    with table("sweep-estimated", columns, tables) as row:
        for workers in OF_MANY:
            there = makespan(seconds, workers, measured=measured) / 3600
            fetched = makespan(seconds, workers, total, measured) / 3600
            row(workers, f"{there:.1f} h", f"{fetched:.1f} h")


def report_rates(measured: Rates) -> None:
    print(f"{measured.machine}\n")
    print("| part of a check | seconds |")
    print("|---|---|")
    print(f"| until a worker that starts can judge | {measured.start:.1f} |")
    print(f"| fixed | {measured.fixed:.2f} |")
    print(f"| for each GB, to read and hash | {measured.per_gigabyte:.2f} |")
    for count, seconds in measured.per_gigaflop.items():
        print(f"| for each GFLOP, {count} threads | {seconds:.4f} |")


def write(measured: Rates) -> None:
    if not all(measured.per_gigaflop.values()):
        raise SystemExit("Nothing to write: --arch is too small to time its operations.")
    path = Path(__file__).parent.parent / "clipcheck" / "sweep" / "cost.toml"
    head = path.read_text().splitlines()[:2]
    lines = [
        *head,
        f'machine = "{measured.machine}"',
        f"fixed = {measured.fixed:.2f}",
        f"start = {measured.start:.1f}",
        f"per_gigabyte = {measured.per_gigabyte:.2f}",
        f"fetch = {measured.fetch:.0e}",
        "\n[per_gigaflop]",
        *(f"{count} = {seconds:.5f}" for count, seconds in measured.per_gigaflop.items()),
        "\n[build]",
        *(f"{name} = {seconds}" for name, seconds in measured.build.items()),
    ]
    path.write_text("\n".join(lines) + "\n")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def version(name: str) -> str:
    from importlib.metadata import version as version_of

    return version_of(name).partition("+")[0]


if __name__ == "__main__":
    main()
