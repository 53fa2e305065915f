from __future__ import annotations

from pathlib import Path

import pytest

from tools import try_wheel


def program(folder: Path, name: str, script: str) -> None:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_an_environment_where_all_runs_is_right(tmp_path: Path) -> None:
    program(tmp_path, "python", "echo /usr/lib/clipcheck/__init__.py")
    program(tmp_path, "clipcheck", "exit 0")
    assert try_wheel.main([str(tmp_path)]) == 0


def test_what_fails_is_reported_with_its_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path, "python", "echo /usr/lib/clipcheck/__init__.py")
    program(tmp_path, "clipcheck", '[ "$1" != check ] || { echo no template >&2; exit 3; }')
    assert try_wheel.main([str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "check tiny.pt --examples 1 --report report: exit 3\nno template" in told
    assert told.count("exit") == 1


def test_running_the_checkout_instead_of_the_wheel_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path, "python", f"echo {try_wheel.ROOT}/clipcheck/__init__.py")
    program(tmp_path, "clipcheck", "exit 0")
    assert try_wheel.main([str(tmp_path)]) == 1
    assert "the checkout is tested" in capsys.readouterr().err


def test_what_is_tried_runs_elsewhere_and_without_the_path_to_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(try_wheel.ROOT))
    program(tmp_path, "python", 'echo "$PYTHONPATH/clipcheck/__init__.py"')
    program(tmp_path, "clipcheck", '[ "$(ls)" = "" ] && [ "$PWD" != "$OLD" ]')
    monkeypatch.setenv("OLD", str(Path.cwd()))
    assert try_wheel.main([str(tmp_path)]) == 0
