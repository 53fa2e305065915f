"""A plain run deselects thorough tests, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.thorough import parametrize, quick_first, thorough

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).parents[1] / "conftest.py"

TESTS = """
    import hypothesis
    import pytest

    @pytest.mark.thorough
    def test_left_out():
        pass

    @pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.thorough)])
    def test_once(n, thorough):
        print("examples", hypothesis.settings.default.max_examples, thorough)
"""


@pytest.fixture
def here(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST.read_text(encoding="utf-8"))
    pytester.makeini("[pytest]\nmarkers = thorough: repeats others")
    pytester.makepyfile(test_it=TESTS)
    return pytester


@parametrize("workers", ["-n1", "-n0"])
def test_a_plain_run_says_how_many_it_left_out(here: pytest.Pytester, workers: str) -> None:
    result = here.runpytest_subprocess(workers, "-p", "no:anyio", "-rP")
    result.assert_outcomes(passed=1, deselected=2 if workers == "-n0" else 0)
    told = result.stdout.str()
    assert told.count("2 thorough tests deselected; --thorough runs them as well\n") == 1
    assert "examples 25 False" in told


def test_a_thorough_run_leaves_nothing_out(here: pytest.Pytester) -> None:
    result = here.runpytest_subprocess("-n0", "-p", "no:anyio", "-rP", "--thorough")
    result.assert_outcomes(passed=3)
    assert "examples 50 True" in result.stdout.str()
    assert "deselected" not in result.stdout.str()


@pytest.mark.thorough
def test_a_test_that_is_requested_by_name_is_run(here: pytest.Pytester) -> None:
    result = here.runpytest_subprocess("-n0", "-p", "no:anyio", "test_it.py::test_left_out")
    result.assert_outcomes(passed=1)


def marked(mark: pytest.MarkDecorator) -> list[bool]:
    _, cases = mark.args
    return [case.marks != () for case in cases]


def test_the_first_cases_are_for_a_plain_run() -> None:
    assert marked(parametrize("n", [1, 2, 3])) == [False, True, True]
    found = parametrize(("a", "b"), [(1, 2), pytest.param(3, 4, id="x"), (5, 6)], quick=2)
    assert marked(found) == [False, False, True]
    assert [case.values for case in found.args[1]] == [(1, 2), (3, 4), (5, 6)]


def test_a_case_keeps_its_name_and_its_marks() -> None:
    skip = pytest.mark.skip(reason="no")
    (first, other) = quick_first([1, pytest.param(2, id="two", marks=skip)])
    assert (first.values, first.marks) == ((1,), ())
    assert (other.values, other.id) == ((2,), "two")
    assert [mark.name for mark in other.marks] == ["skip", "thorough"]
    assert thorough(1, 2, id="x") == pytest.param(1, 2, id="x", marks=pytest.mark.thorough)
