from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.thorough import parametrize

UNJUDGED = """
from clipcheck.harness import checking
from clipcheck.cli import app as cli
from clipcheck.results.judgement import Judgement, Result

found = Result((Judgement("gone.pt", "cpu", error="not found"),), {"clipcheck": "0"})
checking.check_files = lambda *_, **__: found
cli.main()
"""
"""The command, which finds this without importing torch."""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@parametrize(("options", "on_github"), [((), False), (("--json", "-"), False), ((), True)])
def test_a_full_stdout_is_reported_on_stderr(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], on_github: bool
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true" if on_github else "false")
    # What is written at once is not still there at the end.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", UNJUDGED, "check", "gone.pt", *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("clipcheck: cannot write the result to stdout (No")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("arguments", [("--version",), ("models",), ("backends",)])
def test_a_full_stdout_is_also_reported_by_commands_that_judge_nothing(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "clipcheck", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("clipcheck: cannot write the result to stdout (No space")
