from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clipcheck.system import memory
from tests.locking import refuse_locks

GB = 10**9

HOLDS = """
import sys, time
from pathlib import Path
from clipcheck.system.memory import reserved
with reserved(Path(sys.argv[1]), 3 * 10**9, lambda: 4 * 10**9):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("wanted", "reserved", "available", "expected"),
    [
        (3, [], 8, True),
        (3, [3], 8, True),
        (3, [5], 8, True),
        (3, [3, 3], 8, False),
        (4, [5], 8, False),
        # The first always goes: nothing that it could wait for would make more room.
        (9, [], 8, True),
        (9, [1], 8, False),
        (9, [9, 9], None, True),
    ],
)
def test_another_job_starts_if_all_fit_together(
    wanted: int, reserved: list[int], available: int | None, expected: bool
) -> None:
    assert memory.fits(wanted, reserved, available) is expected


@pytest.mark.parametrize(("millions", "peak"), [(151, 2.3 * GB), (102, 1.9 * GB)])
def test_the_estimate_is_what_was_measured_and_a_little_more(millions: int, peak: float) -> None:
    assert peak <= memory.estimate(2 * millions * 10**6) <= 1.25 * peak


def test_the_available_memory_is_known_on_this_system() -> None:
    left = memory.available()
    assert left is not None
    assert left > 100_000_000


def test_a_container_may_use_less(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("90000000\n")
    (tmp_path / "memory.current").write_text("50000000\n")
    (tmp_path / "memory.stat").write_text("anon 40000000\ninactive_file 10000000\n")
    assert memory.available() == 50_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() != 50_000_000


def test_a_job_that_does_not_fit_waits_for_another(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with memory.reserved(tmp_path, 3 * GB, lambda: 4 * GB, pause=0.01):
            order.append("second")

    with memory.reserved(tmp_path, 3 * GB, lambda: 4 * GB):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_job_that_fits_does_not_wait(tmp_path: Path) -> None:
    with (
        memory.reserved(tmp_path, 3 * GB, lambda: 8 * GB),
        memory.reserved(tmp_path, 3 * GB, lambda: pytest.fail("what is used is gone from it")),
    ):
        assert len(list(tmp_path.glob("*.reserved"))) == 2
    assert not list(tmp_path.glob("*.reserved"))


def test_what_a_dead_process_had_reserved_does_not_count(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert memory._living(tmp_path) == [3 * GB]
        process.kill()
        # It is not waited for before: pytest-xdist does not reap its workers at once, either.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert memory._living(tmp_path) == []
        with memory.reserved(tmp_path, 3 * GB, lambda: 4 * GB):
            assert len(list(tmp_path.glob("*.reserved"))) == 1


def test_a_reservation_that_a_killed_process_had_only_begun_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "dead.reserved").touch()
    assert memory._living(tmp_path) == []
    assert not (tmp_path / "dead.reserved").exists()


def test_without_locks_no_process_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_locks(monkeypatch)
    with (
        memory.reserved(tmp_path, 3 * GB, lambda: 4 * GB),
        memory.reserved(tmp_path, 3 * GB, lambda: 4 * GB),
    ):
        pass
