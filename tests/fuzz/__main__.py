"""The command ``python -m tests.fuzz``: search all targets, each in a process of its own."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_STUCK = 60.0
"""Seconds without a sign after which a process is taken to hang where no alarm reaches it."""

# As in `tests.fuzz.targets.TARGETS`, which would have this process import torch.
NAMES = (
    *("zip", "archive-pickle", "archive", "state-dict", "legacy", "code", "safetensors"),
    *("architecture", "folder", "replay", "results", "program", "onnx", "kept"),
)


def main() -> None:
    """Search, and print a line for each finished target, then all findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, required=True, help="in all")
    parser.add_argument("--target", action="append", choices=NAMES, help="one of them alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--finds", type=Path, default=Path("finds"), help="where finds are put")
    options = parser.parse_args()
    names = options.target or NAMES
    seconds = 60 * options.minutes * options.jobs / len(names)
    guided = importlib.util.find_spec("atheris") is not None
    print(f"{'guided by coverage (atheris)' if guided else 'unguided'}, seed {options.seed}, "
          f"{seconds:.0f} s a target", flush=True)  # fmt: skip
    print(
        f"{'target':<16}{'runs':>10}{'per s':>8}{'accepted':>10}{'edges':>8}{'peak MB':>9}  finds"
    )

    def searched(name: str) -> tuple[int, dict[str, int]]:
        return _search(name, seconds, options.seed, options.finds)

    with ThreadPoolExecutor(options.jobs) as pool:
        done = list(pool.map(searched, names))
    finds = sum(len(found) for _, found in done)
    print(f"{'all':<16}{sum(runs for runs, _ in done):>10}  finds: {finds}", flush=True)
    sys.exit(1 if finds else 0)


def _search(name: str, seconds: float, seed: int, folder: Path) -> tuple[int, dict[str, int]]:
    """Search one target. A process that ends early or hangs is a finding, and another one
    follows."""
    began = time.monotonic()
    runs = accepted = peak = edges = 0
    finds: dict[str, int] = {}
    while (left := seconds - (time.monotonic() - began)) > 1:
        with _scratch_folder() as scratch:
            out = Path(scratch) / "tally.json"
            ended, told = _process(name, left, seed, folder, out)
            tally = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
            if ended:
                folder.mkdir(parents=True, exist_ok=True)
                current = Path(scratch) / "current"
                if current.exists():  # it had begun
                    shutil.copy(current, folder / f"{name}-ended-{seed}")
                tally.setdefault("finds", {})[f"{name}: {ended}"] = 1
        runs += tally.get("runs", 0)
        accepted += tally.get("accepted", 0)
        peak = max(peak, tally.get("peak", 0))
        edges = max([edges, *(int(each) for each in re.findall(r"cov: (\d+)", told))])
        for outcome, count in tally.get("finds", {}).items():
            finds[outcome] = finds.get(outcome, 0) + count
        seed += 1
    per_second = runs / (time.monotonic() - began)
    print(
        f"{name:<16}{runs:>10}{per_second:>8.0f}{accepted:>10}{edges or '':>8}{peak >> 20:>9}"
        f"  {len(finds)}",
        flush=True,
    )
    for outcome, count in finds.items():
        print(f"    {count} times {outcome}", flush=True)
    return runs, finds


def _process(name: str, seconds: float, seed: int, folder: Path, out: Path) -> tuple[str, str]:
    """Return how the process ended, if not by itself, and its output."""
    arguments = [name, str(seconds), str(seed), str(folder), str(out)]
    log = out.with_name("log")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.child", *arguments], stdout=file, stderr=file
        )
        current = out.with_name("current")
        while process.poll() is None:
            time.sleep(0.5)
            seen = current if current.exists() else log
            if time.time() - seen.stat().st_mtime > _STUCK:
                process.kill()
                process.wait()
                return "no sign of life for a minute", log.read_text(errors="replace")
    told = log.read_text(errors="replace")
    if process.returncode:
        tail = " | ".join(told.splitlines()[-3:])
        return f"the process ended with {process.returncode} ({tail[:300]})", told
    return "", told


def _scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder in memory, if the system has one."""
    shared = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None, prefix="fuzz-")


if __name__ == "__main__":
    main()
