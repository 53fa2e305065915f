from __future__ import annotations

import io

import pytest

from clipcheck.system.width import WIDTH, width_for


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("columns", "cells"), [(20, 60), (60, 60), (72, 72), (80, 80), (100, 100), (240, 100)]
)
def test_lines_are_as_wide_as_a_terminal_within_reason(
    monkeypatch: pytest.MonkeyPatch, columns: int, cells: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert width_for(Terminal()) == cells
    assert width_for(io.StringIO()) == WIDTH
