"""``clipcheck check``: which gates count, and where it stops."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from clipcheck.harness import checking
from clipcheck.results.judgement import Result
from clipcheck.system.progress import Gauge, Progress
from conftest import Run
from tests.cli.test_terminal import Screen, standing_for
from tests.report import ENVIRONMENT, PASSED, failed


def test_a_gate_that_is_ignored_does_not_fail_and_the_verdict_names_it(
    run: Run, minute_archive: Path
) -> None:
    strict = ("check", minute_archive, "--examples", 14, "--atol", 0, "--rtol", 0)
    assert run(*strict).code == 1
    done = run(*strict, "--ignore", "allclose", "--json", "-")
    (found,) = json.loads(done.out)["results"]
    assert (done.code, found["ignored"]) == (0, ["allclose"])
    assert "allclose" not in {gate["name"] for gate in found["gates"]}


def test_a_gate_that_is_selected_judges_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "check_files", lambda *_, **__: Result((failed(),), ENVIRONMENT))
    done = run("check", "x.pt", "-q", "--select", "integrity")
    assert done.code == 0
    told = " ".join(done.out.split())
    assert (
        "CONSISTENT: 1 checkpoint agrees between JIT and eager; gates left out: fidelity." in told
    )
    assert run("check", "x.pt", "--select", "fidelity").code == 1
    assert run("check", "x.pt", "--select", "top1").code == 2
    assert "found 'fidelty'" in run("check", "x.pt", "--ignore", "fidelty").err


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checkpoints that are checked; those that are called bad fail."""
    names: list[str] = []

    def check(given: str | list[str], _: object, progress: Progress | None) -> Result:
        found = [given] if isinstance(given, str) else given
        names.extend(found)
        if isinstance(progress, Gauge):
            progress(f"{given}: running")
            progress.reach(0.5)
            progress.reach(None)
            with progress.apart():
                progress.reach(1.0)
        made = (failed() if "bad" in name else PASSED for name in found)
        judgements = (replace(one, checkpoint=n) for one, n in zip(made, found, strict=True))
        return Result(tuple(judgements), ENVIRONMENT)

    monkeypatch.setattr(checking, "check_files", check)
    return names


def test_fail_fast_stops_at_the_first_that_does_not_pass_and_says_what_was_not_run(
    run: Run, asked: list[str]
) -> None:
    done = run("check", "a.pt", "bad.pt", "b.pt", "c.pt", "--fail-fast")
    assert asked == ["a.pt", "bad.pt"]
    assert done.code == 1
    told = " ".join(done.out.split())
    for name in ("b.pt", "c.pt"):
        assert f"left out {name}: bad.pt did not pass, and --fail-fast stops there" in told
    assert "INCONSISTENT: 1 of 2 checkpoints differ" in told
    asked.clear()
    assert run("check", "a.pt", "bad.pt", "b.pt").code == 1
    assert asked == ["a.pt", "bad.pt", "b.pt"]


def test_fail_fast_runs_all_that_pass(run: Run, asked: list[str]) -> None:
    done = run("check", "a.pt", "b.pt", "--fail-fast")
    assert (done.code, asked) == (0, ["a.pt", "b.pt"])
    assert "left out" not in done.out


@pytest.mark.usefixtures("asked")
def test_whoever_looks_on_is_told_of_each(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    with standing_for("stderr", screen.file):
        run("check", "a.pt", "b.pt", "--fail-fast")
    shown = screen.close()
    assert "a.pt: running" in shown
    assert "b.pt: running" in shown
