from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from clipcheck.plugin.choices import Choices
from clipcheck.plugin.scheduling import CheckpointScheduling, group_of, groups

GIVEN = {"--clip-model": ["b.pt", "a@x.pt"], "--clip-device": ["cpu", "cuda"]}


def choices(**given: object) -> Choices:
    return Choices.of({**GIVEN, **given}.get, Path("/nowhere"))


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("fidelity-b.pt-jit-cuda-float16", "b.pt on cuda"),
        ("fidelity-a@x.pt-jit-cpu-float32", "a@x.pt on cpu"),
        ("b.pt-jit-cpu-float32", "b.pt on cpu"),
        ("b.pt-cuda", "b.pt on cuda"),
        ("b.pt", "b.pt on cpu"),
        ("3-b.pt-cuda", "b.pt on cuda"),
        ("b.pt-cuda-x", "b.pt on cuda"),
        ("c.pt-cuda", None),
        ("bb.pt", None),
        ("jit-cpu", None),
        ("", None),
    ],
)
def test_the_id_of_a_test_gives_its_group(label: str, expected: str | None) -> None:
    assert group_of(f"test_x.py::test_it[{label}]", groups(choices())) == expected


def test_the_longer_of_two_matching_names_counts() -> None:
    found = groups(choices(**{"--clip-model": ["a.pt", "Z-a.pt"]}))
    assert group_of("x.py::test[Z-a.pt-cpu]", found) == "Z-a.pt on cpu"


def test_a_test_without_parameters_has_no_group() -> None:
    assert group_of("test_x.py::test_it", groups(choices())) is None


def test_an_id_is_found_as_pytest_writes_it() -> None:
    found = groups(choices(**{"--clip-model": ["é.pt"]}))
    assert group_of("x.py::test[\\xe9.pt-cpu]", found) == "é.pt on cpu"


class Node:
    """The part of a worker that a scheduler uses."""

    def __init__(self) -> None:
        self.gateway = SimpleNamespace(id="gw")
        self.shutting_down = False
        self.ran: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.ran += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def start(count: int) -> tuple[CheckpointScheduling, list[Node]]:
    """Start a scheduler with so many workers, and the tests below."""
    option = SimpleNamespace(loadscopereorder=False)
    config = SimpleNamespace(option=option, getvalue={"tx": count * ["popen"]}.get)
    scheduling = CheckpointScheduling(config, None, choices())
    nodes = [Node() for _ in range(count)]
    for node in nodes:
        join(scheduling, node)
    scheduling.schedule()
    return scheduling, nodes


TESTS = [
    *(f"suite.py::test_gate[{gate}-b.pt-jit-cpu-float32]" for gate in ("x", "y", "z")),
    *(f"suite.py::test_gate[{gate}-a@x.pt-jit-cpu-float32]" for gate in ("x", "y", "z")),
    "test_other.py::test_it",
]


def join(scheduling: CheckpointScheduling, node: Node) -> None:
    scheduling.add_node(node)
    scheduling.add_node_collection(node, TESTS)


def test_all_tests_of_a_checkpoint_go_to_one_worker() -> None:
    _, nodes = start(2)
    assert nodes[0].ran[:3] == [0, 1, 2]
    assert nodes[1].ran[:3] == [3, 4, 5]


def replace_by_another(scheduling: CheckpointScheduling) -> list[int]:
    """Return the tests that a new worker runs, in order, as pytest-xdist makes it."""
    new = Node()
    join(scheduling, new)
    scheduling.schedule()
    for done, test in enumerate(new.ran):  # which grows meanwhile
        scheduling.mark_test_complete(new, test)
        assert done < len(TESTS)
    return new.ran


def test_the_test_that_killed_a_worker_is_not_run_again_and_the_others_are() -> None:
    scheduling, (one, other) = start(2)
    assert scheduling.remove_node(one) == TESTS[0]
    left = {1, 2, 6} - set(other.ran)
    assert sorted(replace_by_another(scheduling)) == sorted(left)


def test_finished_tests_of_a_dead_worker_are_not_run_again() -> None:
    scheduling, (one,) = start(1)
    for test in (0, 1, 2):
        scheduling.mark_test_complete(one, test)
    assert scheduling.remove_node(one) == TESTS[3]
    assert sorted(replace_by_another(scheduling)) == [4, 5, 6]


def test_a_worker_that_dies_after_its_tests_fails_none() -> None:
    scheduling, (one,) = start(1)
    for test in range(len(TESTS)):
        scheduling.mark_test_complete(one, test)
    assert scheduling.remove_node(one) is None
