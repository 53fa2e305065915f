"""Many checks in one process, of files that are sound, faulty and hostile in turn: nothing grows.

A few here. As many as one likes, with their figures:

    python -m tests.test_soak 500
"""

from __future__ import annotations

import gc
import itertools
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from clipcheck.audit.faults import fault_named
from clipcheck.harness.checking import check
from clipcheck.sandbox import process
from clipcheck.writers.archive import write_archive
from clipcheck.writers.synthesize import synthesize
from tests import hostile
from tests.samples import MINUTE

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc"),
]

CHECKS = 14
_GROWTH = 48 << 20
"""Bytes of this process that a run may take for good: what Python and torch keep for the next."""


@dataclass(frozen=True)
class State:
    """What is held at one time: bytes, and counts."""

    memory: int
    shared: int
    files: int
    children: int
    sandboxes: int
    threads: int
    folders: int

    @classmethod
    def now(cls) -> State:
        gc.collect()
        status = dict(
            line.split(":\t", 1)
            for line in Path("/proc/self/status").read_text().splitlines()
            if ":\t" in line
        )
        zygote = process.zygote()._process.pid
        return cls(
            memory=int(status["RssAnon"].split()[0]) << 10,
            shared=int(status["RssShmem"].split()[0]) << 10,
            files=len(os.listdir("/proc/self/fd")),  # noqa: PTH208
            children=_children(os.getpid()),
            sandboxes=_children(zygote),
            threads=threading.active_count(),
            folders=len(list(Path(tempfile.gettempdir()).glob("clipcheck-*"))),
        )


def _children(pid: int) -> int:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(len((task / "children").read_text().split()) for task in tasks)


def _written(folder: Path) -> dict[Path, int]:
    """Write files; return the exit code that each of them should get."""
    weights = synthesize(MINUTE)
    sound, faulty, damaged = (folder / name for name in ("sound.pt", "faulty.pt", "damaged.pt"))
    write_archive(MINUTE, weights, sound)
    write_archive(MINUTE, weights, faulty, alter=fault_named("residual-left-out").plant)
    damaged.write_bytes(sound.read_bytes()[:-1000])
    found = {sound: 0, faulty: 1, damaged: 2}
    found[hostile.write_crashing(folder / "crashes.pt", architecture=MINUTE)] = 2
    for act in (hostile.takes_memory, hostile.hangs):
        path = folder / f"{act.__name__}.pt"
        found[hostile.write(path, act, architecture=MINUTE)] = 2
    reads = hostile.reading(folder / "damaged.pt")
    found[hostile.write(folder / "reads.pt", reads, architecture=MINUTE)] = 1
    return found


def test_nothing_grows_however_many_files_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_again_and_again(tmp_path, monkeypatch, CHECKS)


def check_again_and_again(folder: Path, patch: pytest.MonkeyPatch, checks: int) -> None:
    patch.setenv("CLIPCHECK_TIME_LIMIT", "3")
    scratch = folder / "scratch"
    scratch.mkdir()
    patch.setattr(tempfile, "tempdir", str(scratch))  # Others write to the system's.
    files = _written(folder)
    for path in files:  # What is imported, and kept for good, is by then.
        check(path, examples=1)
    before, began = State.now(), time.perf_counter()
    for path, code in itertools.islice(itertools.cycle(files.items()), checks):
        assert check(path, examples=1).exit_code == code, path.name
    after = State.now()
    print(f"{checks} checks, {time.perf_counter() - began:.0f} s: {before} -> {after}")
    grown = after.memory - before.memory
    assert grown < _GROWTH, f"{grown / 1e6:.1f} MB"
    assert replace(before, memory=0) == replace(after, memory=0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patched:
        check_again_and_again(Path(place), patched, int(sys.argv[1]))
