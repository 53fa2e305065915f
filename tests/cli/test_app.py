from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import clipcheck
from clipcheck.errors import Notice
from clipcheck.harness import checking
from conftest import Run
from tests.report import ENVIRONMENT, PASSED


def test_an_escape_sequence_in_a_name_does_not_reach_the_terminal(run: Run) -> None:
    for command in ("check", "inspect"):
        done = run(command, "a\x1b[31m.pt")
        assert "\x1b" not in done.out + done.err
        assert r"a\x1b[31m.pt" in done.out + done.err


def test_a_notice_is_one_line_and_other_warnings_are_unchanged(
    run: Run, minute_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(*_: object, **__: object) -> checking.Result:
        warnings.simplefilter("always")
        warnings.warn("look\x1b here", Notice, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
        return checking.Result((PASSED,), ENVIRONMENT)

    monkeypatch.setattr(checking, "check_files", judge)
    with pytest.warns(UserWarning, match="something else") as caught:
        done = run("check", minute_archive)
    assert done.err == "clipcheck: look\\x1b here\n"
    assert len(caught) == 1


def test_failing_examples_are_not_saved_in_the_working_folder(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYPOTHESIS_STORAGE_DIRECTORY")
    run("--version")
    folder = Path(os.environ["HYPOTHESIS_STORAGE_DIRECTORY"])
    assert folder.is_absolute()
    assert folder.is_relative_to(Path.home())
    monkeypatch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", "mine")
    run("--version")
    assert os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] == "mine"


def test_the_version_needs_no_checkpoint(run: Run) -> None:
    assert run("--version").out == f"clipcheck {clipcheck.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("check",),
        ("check", "x.pt", "--examples", "0"),
        ("check", "x.pt", "--atol", "-1"),
        ("check", "x.pt", "--nonsense"),
        ("convert", "x.pt"),
        ("synthesize", "tiny-vit", "-o", "x.pt", "--format", "onnx"),
        ("nonsense",),
    ],
)
def test_invalid_usage_exits_2_with_one_reason(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", ["inspect", "check"])
def test_a_traceback_is_shown_only_when_asked_for(run: Run, command: str) -> None:
    assert "Traceback" not in run(command, "gone.pt").err
    assert "Traceback" in run("--debug", command, "gone.pt").err
    assert "Traceback" not in run(command, "gone.pt").err


def test_an_internal_error_is_not_reported_as_inconsistent(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "check_files", lambda *a, **k: 1 / 0)
    done = run("check", "x.pt")
    assert done.code == 2
    assert "ZeroDivisionError" in done.err
    assert "please report" in done.err


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clipcheck", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"clipcheck {clipcheck.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            "check x.pt --dtype fp16",
            "expected a dtype, found 'fp16'. The nearest name is 'float16'; all of them: float32, ",
        ),
        (
            "demo --fault gelu-for-quickgeli",
            "found 'gelu-for-quickgeli'. The nearest name is 'gelu-for-quickgelu'; `clipcheck "
            "audit --list` lists all.",
        ),
        (
            "audit --only gelu-for-quickgeli",
            "'gelu-for-quickgeli'. The nearest name is 'gelu-for-quickgelu'; `clipcheck audit --li",
        ),
        ("audit --arch ViT-B-32", "named 'ViT-B-32'. The nearest name is 'ViT-B/32'; all of them"),
    ],
)
def test_a_name_that_is_not_known_is_answered_with_the_nearest(
    run: Run, arguments: str, told: str
) -> None:
    done = run(*arguments.split())
    assert done.code == 2
    assert done.err.startswith("clipcheck: ")
    assert told in done.err
