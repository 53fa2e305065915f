"""The main figure of each gate's result, in a few words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from clipcheck.system.figures import number

if TYPE_CHECKING:
    from clipcheck.gates.result import GateResult

Times = Callable[[float], str]
"""Writes a ratio."""


def of_weights(found: GateResult, _: Times) -> str:
    """Return how many weights differ."""
    counts = found.figures.get("weights")
    return f"{counts['differing']} of {counts['compared']} differ" if counts else ""


def of_integrity(found: GateResult, _: Times) -> str:
    """Return how many weights are wrong, or how many are the same."""
    counts = found.figures.get("weights", {})
    told = [f"{counts[key]} {key}" for key in ("differing", "unused", "changed") if counts.get(key)]
    same = f"{counts['compared']} weights" if counts and found.passed else ""
    return ", ".join(told) or same


def of_allclose(found: GateResult, _: Times) -> str:
    """Return the greatest difference of probabilities."""
    apart = [float(row["max_abs"]) for row in found.figures.values() if "max_abs" in row]
    return f"{number(max(apart), 3)} apart" if apart else ""


def of_top1(found: GateResult, _: Times) -> str:
    """Return in how many rows the best match differs."""
    rows = found.figures.get("rows")
    return f"{rows['wrong']} of {rows['clear']} wrong" if rows else ""


def of_budget(found: GateResult, _: Times) -> str:
    """The figure that is nearest to its limit, or furthest beyond it."""
    limited = [(name, row) for name, row in found.figures.items() if "limit" in row]
    if not limited:
        return ""
    name, row = max(
        limited, key=lambda each: (1 - float(each[1]["lower"])) / (1 - float(each[1]["limit"]))
    )
    return f"{name} {float(row['lower']):.4g} of {float(row['limit']):.4g}"


def of_repeatability(found: GateResult, times: Times) -> str:
    """Return how far a row moved between calls."""
    moved = [float(row["moved"]) for row in found.figures.values() if "moved" in row]
    return f"moved {times(max(moved))}" if moved else ""


def of_ratios(found: GateResult, times: Times) -> str:
    """Return the greatest multiple of the eager model's error, and its limit."""
    ratios = [
        (float(row["rmse_ratio"]), float(row["allowed"]))
        for row in found.figures.values()
        if {"rmse_ratio", "allowed"} <= row.keys()
    ]
    if not ratios:
        return ""
    ratio, allowed = max(ratios, key=lambda each: each[0] / each[1])
    return f"{times(ratio)} of {times(allowed)}"
