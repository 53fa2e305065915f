from __future__ import annotations

from dataclasses import replace

import pytest

from clipcheck.errors import UsageError
from clipcheck.gates.registry import NAMES
from clipcheck.report.verdict import verdict
from clipcheck.results.judgement import Result
from clipcheck.results.selection import gates_named, only
from tests.report import ENVIRONMENT, PASSED, failed, unjudged


def test_gates_are_all_those_selected_or_all_but_those_ignored_in_their_order() -> None:
    assert gates_named([], []) == NAMES
    assert gates_named(["top1", "allclose"], []) == ("allclose", "top1")
    assert gates_named(["top1", "allclose"], ["top1"]) == ("allclose",)
    assert "modules" not in gates_named([], ["modules"])


@pytest.mark.parametrize("given", [(["fidelty"], []), ([], ["fidelty"])])
def test_a_gate_that_there_is_not_is_answered_with_the_nearest(
    given: tuple[list[str], list[str]],
) -> None:
    with pytest.raises(UsageError, match=r"found 'fidelty'\. The nearest name is 'fidelity'; all"):
        gates_named(*given)


def test_no_gate_at_all_is_no_choice() -> None:
    with pytest.raises(UsageError, match="expected at least one gate"):
        gates_named(["top1"], ["top1"])


def test_a_failure_that_is_ignored_is_named_by_the_verdict() -> None:
    result = Result((failed(),), ENVIRONMENT)
    assert not result.passed
    found = only(result, [name for name in NAMES if name != "fidelity"])
    (judgement,) = found.judgements
    assert found.passed
    assert judgement.ignored == ("fidelity",)
    assert (judgement.failing, judgement.saved, judgement.localisation) == (None, None, None)
    assert verdict(found) == (
        "CONSISTENT: 1 checkpoint agrees between JIT and eager; gates left out: fidelity."
    )


def test_what_fails_by_the_gates_that_are_left_keeps_its_evidence() -> None:
    (judgement,) = only(Result((failed(),), ENVIRONMENT), ["fidelity"]).judgements
    assert not judgement.passed
    assert judgement.failing is not None
    assert len(judgement.ignored) == 1


def test_a_run_that_no_gate_is_left_for_was_not_judged() -> None:
    found = only(Result((PASSED,), ENVIRONMENT), ["precision"])
    assert found.exit_code == 2
    (judgement,) = found.judgements
    assert judgement.error is not None
    assert judgement.error.startswith("no gate is left that judges this run. Select one of these: ")


def test_what_was_judged_by_these_gates_alone_stays_as_it_is() -> None:
    result = Result((PASSED, replace(unjudged(), gates=())), ENVIRONMENT)
    assert only(result, NAMES) == result
