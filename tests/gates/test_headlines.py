from __future__ import annotations

import pytest

from clipcheck.gates.registry import GATES
from clipcheck.gates.result import Figures, GateResult
from clipcheck.system.figures import multiple

COUNTS = {"compared": 77, "differing": 0, "unused": 3, "changed": 0}
RATIOS = {"a": {"rmse_ratio": 3.0, "allowed": 10.0}, "b": {"rmse_ratio": 2.0, "allowed": 4.0}}


@pytest.mark.parametrize(
    ("name", "passed", "figures", "told"),
    [
        ("weights", False, {"weights": {"compared": 77, "differing": 2}}, "2 of 77 differ"),
        ("integrity", False, {"weights": COUNTS}, "3 unused"),
        ("integrity", True, {"weights": {**COUNTS, "unused": 0}}, "77 weights"),
        ("integrity", False, {"weights": {**COUNTS, "unused": 0}}, ""),
        ("allclose", True, {"a": {"max_abs": 0.5}, "b": {"max_abs": 0.25}}, "0.5 apart"),
        ("fidelity", True, RATIOS, "2.0x of 4.0x"),
        ("modules", True, RATIOS, "2.0x of 4.0x"),
        ("precision", True, RATIOS, "2.0x of 4.0x"),
        ("top1", False, {"rows": {"wrong": 1, "clear": 53}}, "1 of 53 wrong"),
        ("repeatability", True, {"a": {"moved": 2.5}, "calls": {"repeated": 4}}, "moved 2.5x"),
    ],
)
def test_the_figure_that_says_most(name: str, passed: bool, figures: Figures, told: str) -> None:
    (gate,) = (each for each in GATES if each.name == name)
    assert (
        gate.headline(GateResult(name=name, passed=passed, message="", figures=figures), multiple)
        == told
    )
    assert gate.headline(GateResult(name=name, passed=passed, message=""), multiple) == ""
