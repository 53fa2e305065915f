from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from clipcheck.errors import LedgerError
from clipcheck.sweep.facts import Facts
from clipcheck.sweep.found import Found, JobCost
from clipcheck.sweep.ledger import Ledger, Verdict
from tests.locking import NONE, refuse_locks
from tests.sweep.samples import rows


def verdict(key: str = "key", seconds: float = 1.0) -> Verdict:
    return Verdict(
        key=key,
        content="a" * 64,
        reference="",
        backend="jit",
        device="cpu",
        dtype="",
        found=Found(),
        cost=JobCost(seconds=seconds),
    )


def keep(ledger: Ledger, *verdicts: Verdict) -> None:
    run = ledger.begin_run("local", 1)
    attempt = ledger.begin_attempt(run, "task", "model.pt")
    ledger.end_attempt(attempt, "done", "worker", "", verdicts)


def test_a_verdict_is_there_when_the_ledger_is_opened_again(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        keep(ledger, verdict())
    with Ledger(tmp_path / "ledger") as ledger:
        assert ledger.verdict("key") == verdict()
        assert ledger.verdict("another") is None


def test_the_first_of_two_verdicts_with_one_key_counts(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        keep(ledger, verdict(seconds=1.0))
        keep(ledger, verdict(seconds=2.0))
        assert ledger.verdict("key") == verdict(seconds=1.0)
    assert rows(tmp_path / "ledger", "SELECT count(*) FROM verdicts") == [(1,)]


def test_an_attempt_and_its_verdicts_are_there_together_or_not_at_all(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        attempt = ledger.begin_attempt(ledger.begin_run("local", 1), "task", "model.pt")
        bad = verdict("bad")
        object.__setattr__(bad, "content", object())
        with pytest.raises(LedgerError):
            ledger.end_attempt(attempt, "done", "worker", "", [verdict(), bad])
        assert ledger.verdict("key") is None
        assert ledger.times("task", "done") == 0


def test_verdicts_are_on_the_disk_before_the_next_step(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        assert tuple(ledger._row("PRAGMA synchronous", ())) == (2,)  # FULL
        assert tuple(ledger._row("PRAGMA journal_mode", ())) == ("wal",)


def test_an_attempt_that_a_dead_sweep_left_open_is_closed_by_the_next(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.begin_attempt(ledger.begin_run("local", 1), "task", "model.pt")
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.begin_run("local", 1)
        assert ledger.times("task", "interrupted") == 1


def test_attempts_are_counted_by_outcome(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        run = ledger.begin_run("local", 1)
        for fate in ("died", "died", "lost"):
            ledger.end_attempt(ledger.begin_attempt(run, "task", "m"), fate, "worker", "why")
        assert [ledger.times("task", fate) for fate in ("died", "lost", "done")] == [2, 1, 0]
        assert ledger.times("another", "died") == 0


def test_facts_are_those_of_a_file_that_has_not_changed(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.keep_facts("/m.pt", 10, 5, Facts("a"))
        assert ledger.facts("/m.pt", 10, 5, Facts) == Facts("a")
        assert ledger.facts("/m.pt", 11, 5, Facts) is None
        assert ledger.facts("/m.pt", 10, 6, Facts) is None
        ledger.keep_facts("/m.pt", 10, 6, Facts("b"))
        assert ledger.facts("/m.pt", 10, 6, Facts) == Facts("b")


def test_a_ledger_that_is_open_is_not_opened_by_another_process(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from clipcheck.sweep.ledger import Ledger\n"
        "Ledger(pathlib.Path(sys.argv[1]))"
    )
    with Ledger(tmp_path / "ledger"):
        command = [sys.executable, "-c", code, str(tmp_path / "ledger")]
        done = subprocess.run(command, capture_output=True, text=True)
    assert "another sweep has it open" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("number", NONE)
def test_missing_locks_are_reported_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_locks(monkeypatch, number)
    with pytest.raises(LedgerError, match=re.escape(os.strerror(number))):
        Ledger(tmp_path / "ledger")


def test_a_ledger_is_free_again_when_it_was_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("no database, and longer than the head of one is" * 10)
    for _ in range(2):
        with pytest.raises(LedgerError, match="not a database"):
            Ledger(tmp_path / "ledger")
    assert (tmp_path / "ledger").read_text().startswith("no database")


def test_another_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "ledger")
    connection.execute("CREATE TABLE mine (a)")
    connection.commit()
    connection.close()
    before = (tmp_path / "ledger").read_bytes()
    with pytest.raises(LedgerError, match="another SQLite file"):
        Ledger(tmp_path / "ledger")
    assert (tmp_path / "ledger").read_bytes() == before


def test_a_ledger_of_another_schema_is_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger"):
        pass
    connection = sqlite3.connect(tmp_path / "ledger")
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(LedgerError, match="schema 7"):
        Ledger(tmp_path / "ledger")


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="--ledger"):
        Ledger(tmp_path / "nowhere" / "ledger")


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("found", '{"results": [{}]}', r"the field results\[0\].checkpoint is missing"),
        ("found", '{"results": [', "it is no JSON, or cut off"),
        ("cost", '{"seconds": "9"}', "seconds is a text in place of a number or null"),
    ],
)
def test_a_verdict_of_another_form_is_refused(
    tmp_path: Path, column: str, value: str, problem: str
) -> None:
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        keep(ledger, verdict())
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE verdicts SET {column} = ?", (value,))
    connection.commit()
    connection.close()
    with Ledger(path) as ledger, pytest.raises(LedgerError, match=problem) as caught:
        ledger.verdict("key")
    assert str(caught.value).startswith(
        f"{path}: expected an entry that this version of clipcheck wrote"
    )
    assert "--ledger" in str(caught.value)
