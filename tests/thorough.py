"""Parameters of which a plain run uses some, and `pytest --thorough` all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

_ParameterSet = type(pytest.param())


def thorough(*values: Any, id: str | None = None) -> Any:
    """A parameter for `pytest --thorough` alone."""
    return pytest.param(*values, id=id, marks=pytest.mark.thorough)


def quick_first(cases: Iterable[Any], quick: int = 1) -> list[Any]:
    """Mark all but the first ``quick`` of these parameters as thorough.

    Each is a value, or a ``pytest.param`` where it has several values or an id.
    """
    found = [case if isinstance(case, _ParameterSet) else pytest.param(case) for case in cases]
    return [*found[:quick], *map(_thorough, found[quick:])]


def parametrize(
    names: str | Sequence[str],
    cases: Iterable[Any],
    *,
    quick: int = 1,
    ids: Sequence[str] | Callable[[Any], object] | None = None,
) -> pytest.MarkDecorator:
    """Parametrize as pytest does; all but the first ``quick`` cases are thorough."""
    several = not isinstance(names, str)
    found = [
        pytest.param(*case) if several and not isinstance(case, _ParameterSet) else case
        for case in cases
    ]
    return pytest.mark.parametrize(names, quick_first(found, quick), ids=ids)


def _thorough(case: Any) -> Any:
    return pytest.param(*case.values, id=case.id, marks=[*case.marks, pytest.mark.thorough])
