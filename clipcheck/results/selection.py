"""Leave gates out of a result. What is left out stands in the result, and in its verdict."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from clipcheck.errors import UsageError, nearest
from clipcheck.gates.registry import NAMES
from clipcheck.results.judgement import Judgement, Result


def gates_named(select: Sequence[str], ignore: Sequence[str]) -> tuple[str, ...]:
    """Return the gates that count, in their order.

    Args:
        select: their names; none for all.
        ignore: the names of those that do not count.

    Raises:
        UsageError: there is no such gate, or none is left.
    """
    for name in (*select, *ignore):
        if name not in NAMES:
            raise UsageError(
                f"expected a gate, found {name!r}",
                remedy=f"{nearest(name, NAMES)}; all of them: {', '.join(NAMES)}.",
            )
    chosen = tuple(n for n in NAMES if (n in select or not select) and n not in ignore)
    if not chosen:
        raise UsageError(
            "expected at least one gate, found that each that is selected is ignored",
            remedy="Ignore fewer of them.",
        )
    return chosen


def only(result: Result, names: Collection[str]) -> Result:
    """Keep these gates of each judgement. A judgement that has none of them was not judged.

    Args:
        result: of all gates.
        names: of the gates that count.
    """
    return replace(result, judgements=tuple(_only(each, names) for each in result.judgements))


def _only(judgement: Judgement, names: Collection[str]) -> Judgement:
    kept = tuple(gate for gate in judgement.gates if gate.name in names)
    ignored = tuple(gate.name for gate in judgement.gates if gate.name not in names)
    if not ignored:
        return judgement
    found = replace(judgement, gates=kept, ignored=ignored)
    if not kept:
        remedy = f"Select one of these: {', '.join(ignored)}."
        problem = "no gate is left that judges this run"
        return replace(found, error=f"{problem}. {remedy}", error_type="UsageError", remedy=remedy)
    if found.passed:  # The rest is of what failed.
        return replace(found, failing=None, saved=None, localisation=None, alternative=None)
    return found
