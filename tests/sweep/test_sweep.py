"""Whole sweeps from the command line, some of them interrupted on purpose."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from clipcheck.results.history import compare, read_results
from tests.sweep.samples import archives, rows

COUNT = 4
"""Archives that are judged."""

ENOUGH = 2
"""Verdicts after which something is ended."""

SIDE_LOG = """
import os, sys
def look(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[0].endswith(".pt"):
        with_ = os.open(os.environ["SIDE_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(with_, f"{os.path.basename(arguments[0])}\\n".encode())
        os.close(with_)
sys.addaudithook(look)
"""
"""Python's own account of which files each process opens, whatever clipcheck says of it."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A folder for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if hasattr(pytestconfig, "workerinput") else base) / "sweeps"
    shared.mkdir(exist_ok=True)
    return shared


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    """Write archives, of which the first is inconsistent. Tests must not change them."""
    folder = shared / "checkpoints"
    with FileLock(shared / "checkpoints.lock"):
        if not folder.exists():
            archives(folder, COUNT)
    return folder


def command(folder: Path, ledger: Path, *more: object) -> list[str]:
    given = ["sweep", folder, "--ledger", ledger, "--json", results_of(ledger), *more]
    return [sys.executable, "-m", "clipcheck", *map(str, given)]


def results_of(ledger: Path) -> Path:
    return ledger.with_suffix(".json")


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def until(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for the condition, and require that the process still runs."""
    for _ in range(6000):
        if condition():
            return
        assert process is None or process.poll() is None, "it has ended before"
        time.sleep(0.05)
    raise AssertionError("it has not come")


def judged(ledger: Path) -> int:
    if not ledger.exists():
        return 0
    try:
        ((count,),) = rows(ledger, "SELECT count(*) FROM verdicts")
    except sqlite3.OperationalError:  # its tables are being made
        return 0
    return int(count)


def children(pid: int) -> list[int]:
    """Return the children of a process, and theirs."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            own = int(stat.parent.name)
            found += [own, *children(own)]
    return found


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def verdicts(ledger: Path) -> Mapping[str, Any]:
    """Return all findings except their cost, by checkpoint."""
    document = json.loads(results_of(ledger).read_text())
    found = {}
    for each in document["results"]:
        for name in ("seconds", "peak_memory", "cost"):
            del each[name]
        found[Path(each["checkpoint"]).name] = each
    assert len(found) == len(document["results"])
    return found


def require_each_once(folder: Path, ledger: Path) -> None:
    """Every checkpoint has one verdict, in the ledger and in the results; the first one failed."""
    names = {path.name for path in folder.iterdir()}
    assert len(names) == COUNT
    assert rows(ledger, "SELECT count(*), count(DISTINCT content) FROM verdicts") == [
        (COUNT, COUNT)
    ]
    found = verdicts(ledger)
    assert found.keys() == names
    assert {name for name, each in found.items() if not each["passed"]} == {"model-00.pt"}
    assert all(each["error"] is None for each in found.values())


@pytest.fixture(scope="module")
def locally(folder: Path, shared: Path) -> Path:
    """Return the ledger of a sweep with two workers that was killed in the middle and resumed."""
    if sys.platform != "linux":
        pytest.skip("what runs is looked up in /proc")
    place = shared / "locally"
    with FileLock(shared / "locally.lock"):
        if not (place / "done").exists():
            place.mkdir()
            _sweep_twice(folder, place)
            (place / "done").touch()
    return place / "ledger.sqlite"


def _sweep_twice(folder: Path, place: Path) -> None:
    (place / "sitecustomize.py").write_text(SIDE_LOG)
    ledger = place / "ledger.sqlite"
    paths = os.pathsep.join([str(place), *sys.path[:1], os.environ.get("PYTHONPATH", "")])

    def start(log: str) -> subprocess.Popen[str]:
        known = environment(PYTHONPATH=paths, SIDE_LOG=str(place / log))
        asked = command(folder, ledger, "--workers", 2)
        return subprocess.Popen(asked, env=known, stderr=subprocess.PIPE, text=True)

    first = start("first")
    try:
        until(lambda: judged(ledger) >= ENOUGH, first)
        below = children(first.pid)
    finally:
        first.kill()
        first.communicate()
    assert len(below) >= 2
    until(lambda: not any(running(pid) for pid in below))
    before = {
        Path(label).name
        for (label,) in rows(
            ledger, "SELECT label FROM attempts JOIN verdicts USING (attempt) WHERE fate = 'done'"
        )
    }
    assert ENOUGH <= len(before) < COUNT
    second = start("second")
    _, told = second.communicate()
    assert second.returncode == 1, told
    opened = set((place / "second").read_text().split())
    assert not opened & before, "what was judged was judged again"
    assert opened | before == {path.name for path in folder.iterdir()}


@pytest.mark.thorough
def test_a_sweep_whose_parent_is_killed_resumes(folder: Path, locally: Path) -> None:
    require_each_once(folder, locally)
    fates = [fate for (fate,) in rows(locally, "SELECT fate FROM attempts")]
    assert fates.count("done") == COUNT
    assert set(fates) <= {"done", "interrupted"}
    assert not locally.with_name(f"{locally.name}.files").exists()


def _node_of_the_last(ledger: Path, nodes: Sequence[Any]) -> Any:
    """Return the node that has just judged a checkpoint: it now works at the next."""
    last = "SELECT worker FROM attempts WHERE fate = 'done' ORDER BY ended DESC LIMIT 1"
    ((worker,),) = rows(ledger, last)
    (node,) = (node for node in nodes if worker.startswith(f"node {node.node_id[:8]},"))
    return node


def _lose(cluster: Any, node: Any) -> None:
    """Kill a node in the middle of a job. It is stopped first, so that it cannot finish
    meanwhile."""
    (raylet,) = node.all_processes["raylet"]
    workers = children(raylet.process.pid)
    try:
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(1)  # if it was between two jobs, it is given the next
        cluster.remove_node(node, allow_graceful=False)
    finally:
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.thorough
def test_a_sweep_on_a_cluster_that_loses_a_node_finds_the_same(
    folder: Path, locally: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = {"object_store_memory": 80_000_000}
    head = {"num_cpus": 0, "include_dashboard": False, **small}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    ledger = tmp_path / "ledger.sqlite"
    try:
        nodes = [cluster.add_node(num_cpus=1, memory=4 * 10**9, **small) for _ in range(2)]
        asked = command(folder, ledger, "--engine", "ray", "--address", cluster.address)
        leader = subprocess.Popen(asked, env=environment(), stderr=subprocess.PIPE, text=True)
        try:
            until(lambda: judged(ledger) >= ENOUGH, leader)
            _lose(cluster, _node_of_the_last(ledger, nodes))
            _, told = leader.communicate()
        finally:
            leader.kill()
    finally:
        cluster.shutdown()
    assert leader.returncode == 1, told
    require_each_once(folder, ledger)
    fates = [fate for (fate,) in rows(ledger, "SELECT fate FROM attempts")]
    assert fates.count("done") == COUNT
    assert fates.count("lost") >= 1, "no job was on the node that was lost"
    workers = {worker[:13] for (worker,) in rows(ledger, "SELECT worker FROM attempts") if worker}
    assert len(workers) == 2, "only one node has judged anything"
    assert verdicts(ledger) == verdicts(locally)
    found = compare(read_results(results_of(locally)), read_results(results_of(ledger)))
    assert not found.worse


@pytest.mark.thorough
def test_ctrl_c_leaves_a_ledger_to_go_on_from(folder: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.sqlite"
    asked = command(folder, ledger, "--workers", 1)
    process = subprocess.Popen(
        asked,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Else it ignores it where the tests are run in the background of a script.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    until(lambda: judged(ledger) >= 1, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to all of them
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes the sweep" in told
    assert "Traceback" not in told
    assert judged(ledger) >= 1
    assert not children(process.pid)
