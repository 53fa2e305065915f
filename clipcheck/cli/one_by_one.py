"""Check one checkpoint after the other, and stop at the first that does not pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from clipcheck.results.judgement import LeftOut, Result
from clipcheck.system.progress import Progress, Span, silent


def until_one_fails(
    run: Callable[[str, Progress | None], Result],
    checkpoints: Sequence[str],
    progress: Progress | None,
) -> Result:
    """Return what was found up to there. Those that were not run are left out, and it is said.

    Args:
        run: checks one.
        checkpoints: at least one.
        progress: is told of all of them.
    """
    parts = Span(progress or silent).split([1] * len(checkpoints))
    found: list[Result] = []
    for name, part in zip(checkpoints, parts, strict=True):
        found.append(run(name, None if progress is None else _Part(part)))
        if not found[-1].passed:
            break
    reason = f"{checkpoints[len(found) - 1]} did not pass, and --fail-fast stops there"
    left = [LeftOut(name, name, "", "", reason) for name in checkpoints[len(found) :]]
    return replace(
        found[-1],
        judgements=tuple(each for result in found for each in result.judgements),
        left_out=(*(each for result in found for each in result.left_out), *left),
    )


@dataclass(frozen=True)
class _Part:
    """A listener that is told of a part of the work as if that were all."""

    span: Span

    def __call__(self, what: str, /) -> None:
        self.span.say(what)

    def reach(self, share: float | None, /) -> None:
        if share is None:
            self.span.stall()
        else:
            self.span.reach(share)

    def apart(self) -> AbstractContextManager[object]:
        return self.span.apart()
