"""Find the gates that the tests of a run need, for each case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import pytest

from clipcheck.gates.registry import NAMES
from clipcheck.plugin.sharing import Case

Needs: TypeAlias = Mapping[Case, frozenset[str]]
"""Names of the needed gates, by case."""

_PARTS = ("clip_model", "clip_backend", "clip_device", "clip_dtype")


def gates_needed(items: Iterable[pytest.Item], suite: str) -> Needs:
    """Return the gates that each case's tests need, as deselecting tests has left them."""
    found: dict[Case, frozenset[str]] = {}
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "clip_judgement" in getattr(item, "fixturenames", ()) and set(_PARTS) <= set(parameters):
            case = Case(*(parameters[name] for name in _PARTS))
            own = getattr(getattr(item, "function", None), "__module__", None) == suite
            gates = [parameters["clip_gate"]] if own else NAMES
            found[case] = found.get(case, frozenset()).union(gates)
    return found
