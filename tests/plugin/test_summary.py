from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from clipcheck.errors import OutputError
from clipcheck.plugin.choices import Choices
from clipcheck.plugin.sharing import Case, Finding
from clipcheck.plugin.summary import (
    header,
    result_of,
    source_lines,
    write_for_github,
    write_reports,
)
from clipcheck.results.judgement import Judgement, Result
from clipcheck.system import workers

CHOICES = Choices.of({"--clip-model": ["b.pt"], "--clip-seed": "3"}.get, Path("/nowhere"))


def found(model: str, device: str, source: str, dtype: str = "float32") -> Finding:
    judgement = Judgement(model, device, dtype=dtype, error="gone. Look again.")
    return Finding(Case(model, "jit", device, dtype), judgement, source)


def result(findings: list[Finding]) -> Result:
    return result_of(findings, CHOICES)


@pytest.mark.parametrize(
    ("count", "busy", "expected"),
    [
        (0, 0, "8 threads"),
        (1, 1, "8 threads"),
        (2, 2, "4 threads in each of 2 busy workers"),
        (2, 1, "8 threads in each of 1 busy worker"),
        (8, 8, "1 thread in each of 8 busy workers"),
    ],
)
def test_the_header_says_what_is_judged_and_what_with(
    monkeypatch: pytest.MonkeyPatch, count: int, busy: int, expected: str
) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 8)
    for name in workers.THREADS:
        monkeypatch.delenv(name, raising=False)
    torch = version("torch")
    assert (
        header(CHOICES, count, busy) == f"clipcheck: b.pt on cpu; seed 3; {expected}; torch {torch}"
    )


def test_the_header_has_the_threads_that_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert "; 5 threads in each of 2 busy workers; " in header(CHOICES, 2, 2)


def test_seeded_weights_and_files_are_listed_apart_at_the_end() -> None:
    findings = [
        found("b.pt", "cpu", "the file given"),
        found("b.pt", "cpu", "the file given", "float16"),
        found("RN50", "cuda", "seeded weights, NOT the released weights"),
        found("gone.pt", "cpu", ""),
    ]
    assert source_lines(findings) == [
        "RN50 on cuda: seeded weights, NOT the released weights",
        "b.pt on cpu: the file given",
    ]


def test_the_reports_have_all_that_was_judged(tmp_path: Path) -> None:
    write_reports(result([found("a.pt", "cpu", ""), found("b.pt", "cuda", "")]), tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [(each["checkpoint"], each["device"]) for each in results] == [
        ("a.pt", "cpu"),
        ("b.pt", "cuda"),
    ]
    assert (
        (tmp_path / "report.txt")
        .read_text()
        .endswith("NOT JUDGED: 2 of 2 checkpoints could not be judged.\n")
    )


def test_reports_that_cannot_be_written_say_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="gone"):
        write_reports(result([]), tmp_path / "gone")


def test_all_findings_are_reported_to_github(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    annotations, problem = write_for_github(
        result([found("a.pt", "cpu", ""), found("b.pt", "cpu", "")])
    )
    assert [line.split(":")[2].split("%3A ")[1] for line in annotations] == [
        "a.pt%2C jit on cpu in float32", "b.pt%2C jit on cpu in float32"
    ]  # fmt: skip
    assert problem == ""
    assert "\n| b.pt | jit | cpu | float32 |" in summary.read_text(encoding="utf-8")


def test_outside_of_github_nothing_is_written() -> None:
    assert write_for_github(result([found("a.pt", "cpu", "")])) == ([], "")
