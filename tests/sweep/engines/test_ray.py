"""A cluster of one node on this machine; sweeps on several are in test_sweep.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipcheck.errors import UnavailableError
from clipcheck.sweep.engines.ray import RayEngine, connected
from clipcheck.sweep.jobs import Source
from clipcheck.system.processes import Outcome
from tests.sweep.engines.doing import on_a_node
from tests.sweep.samples import job

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        small = {"object_store_memory": 80_000_000, "include_dashboard": False}
        known = {"num_cpus": 2, "memory": 4 * 10**9, **small}
        cluster = Cluster(initialize_head=True, head_node_args=known)
        yield cluster.address
        cluster.shutdown()


@pytest.fixture
def engine(address: str) -> Iterator[RayEngine]:
    connected(address, None)
    made = RayEngine(None, on_a_node)
    yield made
    made.close()
    assert not ray.is_initialized()


def one(engine: RayEngine) -> Outcome:
    (outcome,) = engine.wait()
    return outcome


def test_a_job_is_done_on_a_node(engine: RayEngine) -> None:
    engine.submit(job(5, "model.pt", memory=10**9))
    outcome = one(engine)
    assert (outcome.job, outcome.fate, outcome.found) == (5, "done", "model.pt")
    assert outcome.worker


def test_a_worker_that_dies_is_reported_and_not_retried_by_ray(
    engine: RayEngine, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    engine.submit(job(0, "ended", source=Source("path", str(log))))
    outcome = one(engine)
    assert log.read_text() == "begun\n"
    assert (outcome.job, outcome.fate) == (0, "died")
    assert "WorkerCrashedError" in outcome.reason


def test_as_many_are_begun_as_there_are_cpus(engine: RayEngine, address: str) -> None:
    assert engine.workers() == 2
    assert engine.threads() == 1
    assert engine.default_device() == "cpu"
    for number in range(2):
        assert engine.has_room(job(number))
        engine.submit(job(number, "long"))
    assert not engine.has_room(job(2))
    assert RayEngine(7).workers() == 7


@pytest.mark.parametrize(
    ("needs", "told"),
    [({"memory": 10**12}, "memory 1e+12"), ({"device": "cuda"}, "GPU 1")],
)
def test_resources_that_no_node_has_are_refused_at_once(
    engine: RayEngine, needs: dict[str, object], told: str
) -> None:
    assert engine.refusal(job()) == ""
    assert told in engine.refusal(job(**needs))


def test_closing_ends_what_runs(address: str) -> None:
    connected(address, None)
    engine = RayEngine(None, on_a_node)
    engine.submit(job(0, "long"))
    started = time.monotonic()
    engine.close()
    connected(address, None)
    engine = RayEngine(1, on_a_node)
    for number in range(2):
        engine.submit(job(number, "short"))
    found = [one(engine), one(engine)]
    engine.close()
    assert [outcome.fate for outcome in found] == ["done", "done"]
    assert time.monotonic() - started < 50


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "127.0.0.1:x"])
def test_an_address_that_does_not_answer_is_reported(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="expected a Ray cluster at"):
        connected(address, None)
    assert time.monotonic() - started < 30
