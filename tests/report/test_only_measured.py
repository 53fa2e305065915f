"""Every format distinguishes a gate that cannot fail from one that passed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from clipcheck.gates.registry import aside
from clipcheck.gates.result import GateResult
from clipcheck.report import gate_table, history, html, junit, markdown, notebook, text
from clipcheck.report.failure import failure, reason_left_out
from clipcheck.results import document
from clipcheck.results.history import Run, compare
from clipcheck.results.judgement import Judgement, Result
from tests.report import ENVIRONMENT, PASSED

FAR = aside(GateResult(name="fidelity", passed=False, message="57k times as far", margin=57_000.0))
LOSSY = replace(
    PASSED,
    budget="int8",
    gates=(
        PASSED.gates[0],
        FAR,
        GateResult(name="budget", passed=True, message="near", margin=0.4),
    ),
    ignored=("top1",),
)
LOST = replace(
    LOSSY,
    gates=(*LOSSY.gates[:2], GateResult(name="budget", passed=False, message="far", margin=3.0)),
)

RENDER: dict[str, Callable[[Result], str]] = {
    "text": text.render,
    "page": html.render,
    "markdown": markdown.render,
    "notebook": notebook.render,
}


@pytest.mark.parametrize("form", RENDER)
def test_the_verdict_names_the_budget_and_the_gate_is_shown_as_measured(form: str) -> None:
    passing = RENDER[form](Result((LOSSY,), ENVIRONMENT))
    within = "CONSISTENT within the budget int8: 1 checkpoint agrees"
    assert within in passing
    assert "gates left out: top1" in " ".join(passing.split())
    assert "measured" in passing
    assert "57k" in passing
    failing = RENDER[form](Result((LOST,), ENVIRONMENT))
    assert "INCONSISTENT with the budget int8: 1 checkpoint differs" in failing
    assert "measured" in failing


def test_the_verdict_names_no_budget_whose_gate_was_left_out() -> None:
    said = text.verdict(Result((replace(LOSSY, ignored=("budget",)),), ENVIRONMENT))
    assert said.startswith("CONSISTENT: 1 checkpoint agrees")
    assert said.endswith("gates left out: budget.")


def test_the_verdict_counts_what_has_a_budget() -> None:
    other = replace(LOSSY, budget="cosine=0.9", dtype="float16")
    said = text.verdict(Result((PASSED, LOSSY, other), ENVIRONMENT))
    assert said.startswith("CONSISTENT within the budgets int8 and cosine=0.9 (2 of 3): 3 runs ")


def test_a_cell_of_the_table_shows_the_margin_as_measured() -> None:
    assert gate_table.cell(FAR) == "measured 57k x"
    assert gate_table.cell(replace(FAR, margin=0.3)) == "measured 30%"


def test_a_gate_that_only_measures_is_skipped_in_ci() -> None:
    suite = junit.render(Result((LOSSY,), ENVIRONMENT))
    assert 'tests="4" failures="0" errors="0" skipped="2"' in suite
    measured = "only measured: cannot fail with a budget; 57k times as far"
    assert f'<skipped message="{measured}"' in suite
    assert '<skipped message="left out by --select or --ignore"' in suite
    assert '<property name="budget" value="int8" />' in suite
    reason = "fidelity is only measured: cannot fail with a budget; 57k times as far"
    assert reason_left_out(LOSSY, "fidelity").endswith(reason)
    assert reason_left_out(LOSSY, "budget") == failure(LOSSY, "budget") == ""


def test_the_document_marks_it_as_not_judged_and_such_a_gate_cannot_fail() -> None:
    gates = json.loads(document.render(Result((LOSSY,), ENVIRONMENT)))["results"][0]["gates"]
    assert [(gate["judged"], gate["margin"]) for gate in gates] == [
        (True, 0.0), (False, 57_000.0), (True, 0.4)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="fidelity failed, but judged is false"):
        replace(FAR, passed=False)


def test_nothing_passes_if_no_gate_judged() -> None:
    assert not replace(LOSSY, gates=(FAR,)).passed


def test_the_comparison_of_runs_says_that_a_gate_is_no_longer_judged() -> None:
    def run(judged: Judgement) -> Run:
        return Run("a.json", ENVIRONMENT, (judged,))

    told = history.render(compare(run(PASSED), run(LOSSY)))
    assert "  budget changed: none -> int8\n" in told
    assert "  fidelity: no longer judged: measured 57k x the limit\n" in told
    back = history.render(compare(run(LOSSY), run(PASSED)))
    assert "  fidelity: not judged before\n" in back
    assert "fidelity" not in history.render(compare(run(LOSSY), run(LOST)))
