"""``clipcheck check``: which gates judge, and when it stops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipcheck.harness.modules import judge
from conftest import Run


def test_a_gate_that_is_ignored_does_not_fail_and_the_verdict_names_it(
    run: Run, minute_archive: Path
) -> None:
    strict = ("check", minute_archive, "--examples", 14, "--atol", 0, "--rtol", 0)
    assert run(*strict).code == 1
    done = run(*strict, "--ignore", "allclose", "--json", "-")
    (found,) = json.loads(done.out)["results"]
    assert (done.code, found["ignored"]) == (0, ["allclose"])
    assert "allclose" not in {gate["name"] for gate in found["gates"]}
    assert "search" not in found["seconds"]  # Nothing failed that would have to be explained.


def test_a_gate_that_is_selected_judges_alone_and_no_other_is_run(
    run: Run, minute_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "judge_modules", None)
    done = run("check", minute_archive, "-q", "--examples", 14, "--select", "integrity")
    assert "Against float64: least cosine over 0.99999; top-1 agrees in " in done.out
    assert done.code == 0
    assert " ".join(done.out.split()).endswith(
        "CONSISTENT: 1 checkpoint agrees between JIT and eager; gates left out: allclose, "
        "fidelity, modules, top1, repeatability."
    )


def test_a_run_without_a_gate_was_not_judged(run: Run, minute_archive: Path) -> None:
    done = run("check", minute_archive, "--examples", 14, "--select", "precision")
    assert done.code == 2
    told = " ".join(done.out.split())
    assert "none of the selected gates can fail in this run, so nothing is judged" in told
    assert "Next: Select one of these: integrity, allclose, fidelity, modules, " in told


def test_an_unknown_gate_is_refused(run: Run) -> None:
    assert "found 'fidelty'" in run("check", "x.pt", "--ignore", "fidelty").err
