"""Several checkpoints at a time. Only the first test starts processes, with --thorough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipcheck.errors import Notice
from clipcheck.harness import parallel
from clipcheck.harness.checking import check_files
from clipcheck.harness.options import CheckOptions
from clipcheck.harness.parallel import check_in_processes
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.results.judgement import Judgement, Result
from clipcheck.system.processes import Outcome
from tests.audit.test_bench import Here
from tests.report import ENVIRONMENT, PASSED, failed
from tests.system.test_progress import Listener

OPTIONS = CheckOptions(device="cpu", examples=EDGE_CASES, isolation="none")


def test_the_result_is_that_of_one_process_in_the_same_order(
    minute_archive: Path, monkeypatch: pytest.MonkeyPatch, thorough: bool
) -> None:
    if not thorough:
        monkeypatch.setattr(parallel, "Processes", Here)
    names = ["gone.pt", minute_archive, minute_archive]
    alone, together = check_files(names, OPTIONS), check_in_processes(names, OPTIONS, jobs=2)

    def told(result: Result) -> list[Any]:
        return [(j.checkpoint, j.gates, j.inputs, j.error, j.seed) for j in result.judgements]

    assert told(together) == told(alone)
    assert [j.error is None for j in together.judgements] == [False, True, True]
    assert len({(j.run, j.date) for j in together.judgements}) == 1


class Stage:
    """Stands for processes; returns the last job first."""

    def __init__(self, come_of: Callable[[str], Any]) -> None:
        self.come_of = come_of
        self.ran: list[str] = []
        self.closed = False
        self._jobs: list[Any] = []

    def has_room(self, job: Any) -> bool:
        return len(self._jobs) < 2

    def submit(self, job: Any) -> None:
        self.ran.append(job.name)
        self._jobs.append(job)

    def wait(self) -> list[Outcome]:
        job = self._jobs.pop()
        came = self.come_of(job.name)
        if isinstance(came, str):
            return [Outcome(job.number, "died", reason=came)]
        return [Outcome(job.number, "done", found=came)]

    def close(self) -> None:
        self.closed = True


def judged(name: str, *notices: str) -> Any:
    judgement: Judgement = failed() if "bad" in name else PASSED
    result = Result((replace(judgement, checkpoint=name),), ENVIRONMENT)
    return parallel._Found(result, notices)


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], Any]], Stage]:
    def stage(come_of: Callable[[str], Any]) -> Stage:
        made = Stage(come_of)
        monkeypatch.setattr(parallel, "Processes", lambda *_: made)
        return made

    return stage


def test_progress_names_the_checkpoints_at_work(
    staged: Callable[[Callable[[str], Any]], Stage],
) -> None:
    stage, listener = staged(judged), Listener()
    result = check_in_processes(["a.pt", "b.pt", "c.pt"], OPTIONS, 2, listener)
    assert [j.checkpoint for j in result.judgements] == ["a.pt", "b.pt", "c.pt"]
    assert stage.closed
    assert listener.words == [
        "0 of 3 checked; now a.pt, b.pt",
        "1 of 3 checked; now a.pt, c.pt",
        "2 of 3 checked; now a.pt",
    ]


def test_a_checkpoint_that_ends_its_process_is_not_judged_and_the_others_are(
    staged: Callable[[Callable[[str], Any]], Stage],
) -> None:
    staged(lambda name: "it was ended by SIGKILL" if name == "b.pt" else judged(name))
    result = check_in_processes(["a.pt", "b.pt", "c.pt"], OPTIONS, 2)
    assert [j.state for j in result.judgements] == ["passed", "unjudged", "passed"]
    assert result.judgements[1].error == (
        "expected a result, but the process that checked it died: it was ended by SIGKILL. "
        "Check it alone, without --jobs, to see the cause."
    )


def test_fail_fast_ends_what_runs_and_says_what_was_not_judged(
    staged: Callable[[Callable[[str], Any]], Stage],
) -> None:
    stage = staged(judged)
    options = replace(OPTIONS, fail_fast=True)
    result = check_in_processes(["a.pt", "bad.pt", "c.pt"], options, 2)
    assert stage.ran == ["a.pt", "bad.pt"]
    assert stage.closed
    assert [j.checkpoint for j in result.judgements] == ["bad.pt"]
    reason = "bad.pt did not pass, and --fail-fast stops there"
    assert [(each.checkpoint, each.reason) for each in result.left_out] == [
        ("a.pt", reason), ("c.pt", reason)
    ]  # fmt: skip


def test_notices_of_the_processes_reach_the_user(
    staged: Callable[[Callable[[str], Any]], Stage],
) -> None:
    staged(lambda name: judged(name, "look here"))
    with pytest.warns(Notice, match="look here"):
        check_in_processes(["a.pt", "b.pt"], OPTIONS, 2)


def test_a_defect_is_reported_for_its_checkpoint_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> Result:
        raise ZeroDivisionError("no")

    monkeypatch.setattr(parallel, "check_files", fails)
    found = parallel._perform(parallel._Job(0, 0, "a.pt", OPTIONS))
    (judgement,) = found.result.judgements
    assert str(judgement.error).startswith("expected a result, found ZeroDivisionError: no. The")
    assert "ZeroDivisionError" in capsys.readouterr().err
