from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from clipcheck.system import workers


def specs(count: int, **known: object) -> list[SimpleNamespace]:
    return [SimpleNamespace(env={}, popen=True, **known) for _ in range(count)]


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*workers.THREADS, workers.GPUS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(workers, "cores", lambda: 8)


@pytest.mark.parametrize(
    ("cores", "busy", "expected"),
    [(8, 1, 8), (8, 2, 4), (8, 3, 2), (8, 16, 1), (8, 0, 8), (1, 1, 1)],
)
def test_the_cores_are_divided_among_the_busy_workers(cores: int, busy: int, expected: int) -> None:
    assert workers.threads(cores, busy) == expected


def test_each_worker_gets_its_share_of_cores_in_every_variable_that_torch_and_blas_read() -> None:
    there = specs(4)
    workers.divide_cores(there, busy=4)
    assert [spec.env for spec in there] == 4 * [dict.fromkeys(workers.THREADS, "2")]


def test_workers_that_have_nothing_to_do_leave_their_cores_to_the_others() -> None:
    there = specs(4)
    workers.divide_cores(there, busy=1)
    assert {spec.env["OMP_NUM_THREADS"] for spec in there} == {"8"}


def test_no_more_workers_are_busy_than_there_are() -> None:
    there = specs(2)
    workers.divide_cores(there, busy=9)
    assert {spec.env["OMP_NUM_THREADS"] for spec in there} == {"4"}


@pytest.mark.parametrize("name", workers.THREADS)
def test_a_number_that_the_user_set_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "7")
    there = specs(2)
    workers.divide_cores(there, busy=2)
    assert [spec.env for spec in there] == [{}, {}]
    assert workers.own_threads(os.environ) == "7"


def test_a_number_that_was_set_for_a_worker_is_left_alone() -> None:
    there = specs(2)
    there[0].env["OMP_NUM_THREADS"] = "3"
    workers.divide_cores(there, busy=2)
    assert there[0].env == {"OMP_NUM_THREADS": "3"}
    assert there[1].env["OMP_NUM_THREADS"] == "4"


@pytest.mark.parametrize(
    ("count", "set_to", "expected"),
    [
        (2, None, ["0", "1"]),
        (2, "5,3", ["5", "3"]),
        (1, "GPU-8932f937", ["GPU-8932f937"]),
        (2, "0, 1,-1,2", ["0", "1"]),
        (0, "", []),
        (0, None, []),
    ],
)
def test_only_gpus_that_the_user_left_visible_are_assigned(
    count: int, set_to: str | None, expected: list[str]
) -> None:
    environment = {} if set_to is None else {workers.GPUS: set_to}
    assert workers.visible(count, environment) == expected


def test_gpus_are_assigned_in_turn() -> None:
    assert [workers.deal(["5", "3"], worker) for worker in range(5)] == ["5", "3", "5", "3", "5"]


def test_a_worker_sees_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(workers.GPUS, "4,7")
    there = specs(3)
    workers.deal_gpus(there, count=2)
    assert [spec.env for spec in there] == [{workers.GPUS: gpu} for gpu in ("4", "7", "4")]


def test_gpus_of_another_machine_are_not_assigned_and_a_choice_is_kept() -> None:
    there = specs(3)
    there[0].popen = None
    there[1].env[workers.GPUS] = "9"
    workers.deal_gpus(there, count=2)
    assert [spec.env for spec in there] == [{}, {workers.GPUS: "9"}, {workers.GPUS: "0"}]


def test_without_gpus_none_is_assigned() -> None:
    there = specs(2)
    workers.deal_gpus(there, count=0)
    assert [spec.env for spec in there] == [{}, {}]


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (["cuda"], True),
        (["cpu", "cuda"], True),
        (["cpu"], False),
        (["cuda:0", "cuda:1"], False),
        # The second would be one that the worker does not see.
        (["cuda", "cuda:1"], False),
    ],
)
def test_a_gpu_that_is_asked_for_by_its_number_stays_visible(
    devices: list[str], expected: bool
) -> None:
    assert workers.dealt(devices) is expected


def test_the_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 5}, raising=False)
    assert workers.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert workers.cores() == 1


@pytest.mark.parametrize(
    ("platform", "node", "visible", "expected"),
    [
        ("linux", None, None, False),
        ("linux", "nvidiactl", None, True),
        ("linux", "nvidiactl", "0", True),
        ("linux", "nvidiactl", "", False),
        ("darwin", None, None, False),
        ("win32", None, None, True),
    ],
)
def test_there_is_no_gpu_where_no_driver_is_or_none_is_to_be_seen(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    platform: str,
    node: str | None,
    visible: str | None,
    expected: bool,
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(workers, "_GPU_NODES", (str(tmp_path / "nvidiactl"),))
    if node is not None:
        (tmp_path / node).touch()
    if visible is not None:
        monkeypatch.setenv(workers.GPUS, visible)
    assert workers.may_have_cuda() is expected
