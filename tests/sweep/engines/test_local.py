from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipcheck.sweep.engines.local import LocalEngine, engine_for
from tests.sweep.engines.doing import ended, long, told
from tests.sweep.samples import job


def engine(tmp_path: Path, count: int = 1, **other: object) -> LocalEngine:
    return LocalEngine(count, tmp_path, **{"perform": told, **other})  # type: ignore[arg-type]


def test_a_worker_does_one_job_after_another(tmp_path: Path) -> None:
    local = engine(tmp_path)
    try:
        found = []
        for number in range(2):
            assert local.has_room(job(number))
            local.submit(job(number))
            assert not local.has_room(job(number))
            found += local.wait()
    finally:
        local.close()
    assert [(outcome.job, outcome.fate) for outcome in found] == [(0, "done"), (1, "done")]
    assert found[0].found == found[1].found
    assert found[0].found.split()[0] != str(os.getpid())


def test_a_worker_with_nothing_to_do_ends_by_itself_and_releases_what_it_holds(
    tmp_path: Path,
) -> None:
    """One that is killed leaves its semaphores, of which Python warns."""
    local = engine(tmp_path)
    local.submit(job(0))
    local.wait()
    (worker,) = local._workers
    local.close()
    assert worker.process.exitcode == 0


def test_threads_gpus_and_temporary_folders_are_assigned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("clipcheck.system.processes.cores", lambda: 8)
    local = engine(tmp_path, 2, gpus=["4", "7"])
    assert local.threads() == 4
    try:
        for number in range(2):
            local.submit(job(number))
        found = []
        while len(found) < 2:
            found += local.wait()
    finally:
        local.close()
    shares = {tuple(outcome.found.split()[1:]) for outcome in found}
    assert shares == {
        ("4", "4", str(tmp_path / "worker-0")),
        ("4", "7", str(tmp_path / "worker-1")),
    }
    assert "OMP_NUM_THREADS" not in os.environ
    assert list(tmp_path.iterdir()) == []


def test_threads_that_the_user_set_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipcheck.system.processes.cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    local = engine(tmp_path, 2)
    assert local.threads() == 3
    try:
        local.submit(job(0))
        (outcome,) = local.wait()
    finally:
        local.close()
    assert outcome.found.split()[1] == "3,1"
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert local.threads() == 4


def test_a_worker_that_dies_is_reported_and_replaced(tmp_path: Path) -> None:
    local = engine(tmp_path, perform=ended)
    try:
        local.submit(job(3))
        (outcome,) = local.wait()
        assert (outcome.job, outcome.fate) == (3, "died")
        assert outcome.reason == "it was ended by SIGKILL"
        assert local.has_room(job(4))
        local.submit(job(4))
        (outcome,) = local.wait()
        assert outcome.job == 4
    finally:
        local.close()


def test_a_worker_that_died_while_it_was_idle_takes_no_job_with_it(tmp_path: Path) -> None:
    local = engine(tmp_path)
    try:
        local.submit(job(0))
        (outcome,) = local.wait()
        pid = int(outcome.found.split()[0])
        os.kill(pid, signal.SIGKILL)
        local._workers[0].process.join()
        local.submit(job(1))
        (outcome,) = local.wait()
    finally:
        local.close()
    assert outcome.fate == "done"
    assert int(outcome.found.split()[0]) != pid


def test_closing_ends_what_runs(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    local = engine(tmp_path / "scratch", perform=long)
    local.submit(job(0, str(mark)))
    while not mark.exists() or not mark.read_text():
        time.sleep(0.05)
    local.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="what runs is looked up in /proc")
def test_a_worker_ends_with_the_process_that_started_it_whatever_it_does(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = (
        "import sys, pathlib\n"
        "from clipcheck.sweep.engines.local import LocalEngine\n"
        "from tests.sweep.engines.doing import long\n"
        "from tests.sweep.samples import job\n"
        "engine = LocalEngine(1, pathlib.Path(sys.argv[1]), perform=long)\n"
        "engine.submit(job(0, sys.argv[2]))\n"
        "engine.wait()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "scratch"), str(mark)]
    parent = subprocess.Popen(command, cwd=Path(__file__).parents[3])
    while not mark.exists() or not mark.read_text():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    for _ in range(400):  # it would sleep for longer
        if not running(int(mark.read_text())):
            return
        time.sleep(0.05)
    pytest.fail("it is still there")


def running(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_jobs_that_do_not_fit_into_memory_together_wait(tmp_path: Path) -> None:
    local = engine(tmp_path, 3, available=lambda: 100)
    try:
        assert local.has_room(job(0, memory=1000))  # alone it may always
        local.submit(job(0, memory=60))
        assert local.has_room(job(1, memory=40))
        assert not local.has_room(job(1, memory=41))
    finally:
        local.close()


def test_there_are_no_more_workers_than_cores_or_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipcheck.sweep.engines.local.cores", lambda: 8)
    assert engine_for(None, 100, ["cpu"], tmp_path).workers() == 8
    assert engine_for(None, 3, [], tmp_path).workers() == 3
    assert engine_for(16, 3, [], tmp_path).workers() == 16
    monkeypatch.setattr("clipcheck.sweep.engines.local.wanted_gpus", lambda devices: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert engine_for(None, 100, ["cuda"], tmp_path).workers() == 2
    assert engine_for(None, 100, ["cuda", "cpu"], tmp_path).workers() == 8


def test_that_there_is_no_gpu_is_known_without_torch() -> None:
    code = """
import sys
from clipcheck.sweep.engines import local
local.may_have_cuda = lambda: False
assert local.default_device() == "cpu"
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
