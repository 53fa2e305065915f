"""Describe what a library's optimiser did to a candidate that fails only when it is optimised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clipcheck.gates.optimised import Optimised, Rewrite, Rewrites
from clipcheck.results.judgement import Judgement
from clipcheck.system.figures import counted, number

_MOST = 9
"""Most operations that are listed: those of a LayerNorm."""


def of_judgement(judgement: Judgement) -> Iterator[str]:
    """Yield what its optimiser does, or why that is not known; nothing where it does no harm."""
    if judgement.optimised_problem is not None:
        yield f"its optimiser was not looked at: {judgement.optimised_problem}"
    if judgement.optimised is not None:
        yield from sentences(judgement.optimised)


def sentences(found: Optimised) -> Iterator[str]:
    """Yield what makes it fail, what that replaced, and how to leave it out."""
    yield f"only when optimised: {_cause(found)} (inputs: {found.given})"
    if found.rewrites is not None and found.rewrites.first is not None:
        yield _replaced(found.rewrites, found.rewrites.first)
    if found.reason:
        yield f"not known further: {found.reason}"
    # A blank where lines may break, so that it stays valid.
    yield f"to leave it out: {found.line.replace('(', '( ', 1)}"


def _cause(found: Optimised) -> str:
    levels = f"it passes at the level {found.below}, and fails from {found.level} on"
    if not found.passes:
        return levels
    return f"{levels}; without {' and '.join(found.passes)} it passes there, too"


def _replaced(found: Rewrites, first: Rewrite) -> str:
    where = f" in {first.scope}" if first.scope else ""
    names = f" ({_listed(first.names)})" if first.names else ""
    off = (
        "which fails or gives no finite result"
        if first.error is None
        else f"whose result is {number(first.error)} off (RMSE as a share of its size)"
    )
    told = f"replaced {_listed(first.replaced)}{names}{where} by {_listed(first.made)}, {off}"
    others = found.total - 1
    if not others:
        return told
    alike = "none" if found.alike == 1 else f"{found.alike - 1:,}"
    return f"{told}; of {counted(others, 'other replaced part')}, {alike} as far off"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
