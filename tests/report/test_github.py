from __future__ import annotations

from pathlib import Path

import pytest

from clipcheck.report import annotations, github, markdown
from clipcheck.results.judgement import Result
from tests.report import ENVIRONMENT, PASSED, failed, failing_result
from tests.thorough import parametrize


@pytest.fixture
def summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the file for a job's summary."""
    path = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    return path


def test_the_summary_is_added_to_what_is_there(summary: Path) -> None:
    summary.write_text("before\n", encoding="utf-8")
    assert github.summarise(failing_result()) == ""
    assert summary.read_text(encoding="utf-8") == f"before\n{markdown.render(failing_result())}"


def test_elsewhere_nothing_is_written_or_annotated(
    summary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert github.annotate(failing_result()) == annotations.render(failing_result())
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    assert github.annotate(failing_result()) == []
    assert github.summarise(failing_result()) == ""
    assert not summary.exists()


def test_without_a_summary_to_write_there_are_annotations_alone(
    summary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    assert github.summarise(failing_result()) == ""
    assert github.annotate(failing_result())


def test_a_summary_that_cannot_be_written_is_reported(
    summary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary / "below"))
    problem = github.summarise(failing_result())
    assert problem.startswith(f"{summary / 'below'}: the summary cannot be written (")


@parametrize("before", [0, 300_000])
def test_a_summary_takes_no_more_than_github_shows(summary: Path, before: int) -> None:
    summary.write_bytes(b"x" * before)
    many = Result((PASSED, *[failed(f"{number}.pt") for number in range(3000)]), ENVIRONMENT)
    assert github.summarise(many) == ""
    text = summary.read_text(encoding="utf-8")
    assert (1 << 20) - 1000 < len(text.encode()) <= 1 << 20
    assert text.endswith(f"code.\n```\n{github.LEFT_OUT}")


def test_whatever_the_room_it_is_not_exceeded(
    summary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = len(markdown.render(failing_result()).encode())
    for room in range(0, whole + 1, 7):
        summary.write_bytes(b"")
        monkeypatch.setattr(github, "MOST_BYTES", room)
        github.summarise(failing_result())
        assert summary.stat().st_size <= room


def test_a_full_summary_is_left_alone_and_reported(summary: Path) -> None:
    summary.write_bytes(b"x" * ((1 << 20) - 10))
    assert "is left out because the file is full" in github.summarise(failing_result())
    assert summary.stat().st_size == (1 << 20) - 10
