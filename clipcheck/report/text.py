"""A result as text for a terminal or a log."""

from __future__ import annotations

import shlex
import textwrap

from clipcheck.checking import Judgement, Result
from clipcheck.inputs.examples import describe
from clipcheck.replaying import Replayed

WIDTH = 88
_INDENT = "  "


def render(result: Result) -> str:
    """The whole report: a block for each judgement, the verdict, and what to do next. Ends
    without a newline."""
    blocks = [_block(judgement) for judgement in result.judgements]
    return "\n\n".join([*blocks, "\n".join([verdict(result), *_next(result)])])


def render_replayed(replayed: Replayed) -> str:
    """What became of a failing input. Ends without a newline."""
    saved = replayed.saved
    lines = [replayed.checkpoint]
    if replayed.sha256 != saved.sha256:
        lines += _wrapped(f"another file than the one that failed, {saved.checkpoint}")
    lines += _wrapped(f"jit on {replayed.device} in {replayed.dtype}: {describe(saved.example)}")
    lines += _wrapped(replayed.measure.message)
    return "\n".join([*lines, "MENDED." if replayed.passed else "STILL FAILS."])


def verdict(result: Result) -> str:
    """The last line, which says it all."""
    unjudged = sum(judgement.error is not None for judgement in result.judgements)
    failed = sum(not j.passed and j.error is None for j in result.judgements)
    passed = len(result.judgements) - unjudged - failed
    if result.passed:
        return f"CONSISTENT: {_count(passed)} the same both ways."
    if not result.judgements:
        return "NOT JUDGED: nothing was checked."
    parts = [
        f"{_count(failed)} not the same both ways" if failed else "",
        f"{_count(unjudged)} could not be judged" if unjudged else "",
        f"{passed} passed" if passed else "",
    ]
    headline = "INCONSISTENT" if failed else "NOT JUDGED"
    return f"{headline}: {', '.join(part for part in parts if part)}."


def next_steps(judgement: Judgement) -> list[str]:
    """The command that helps most with a checkpoint that did not pass, and what it does."""
    named = judgement.path or judgement.checkpoint
    if any(gate.name == "integrity" and not gate.passed for gate in judgement.gates):
        return [
            f"Next: clipcheck inspect {shlex.quote(named)}",
            "      shows what the file is, without running it.",
        ]
    return [
        f"Next: clipcheck convert {shlex.quote(named)} -o mended.pt",
        "      writes an archive of the same weights whose code is known to compute as it should.",
    ]


def _next(result: Result) -> list[str]:
    """For the first checkpoint that needs it."""
    failed = [j for j in result.judgements if j.error is None and not j.passed]
    return next_steps(failed[0]) if failed else []


def _count(number: int) -> str:
    return f"{number} checkpoint" if number == 1 else f"{number} checkpoints"


def _block(judgement: Judgement) -> str:
    lines = [judgement.checkpoint]
    if judgement.description:
        lines += _wrapped(judgement.description)
    if judgement.sha256:
        source = judgement.released
        known = f"the released {source}" if source else "none of the released files"
        lines += [f"{_INDENT}SHA-256 {judgement.sha256}", f"{_INDENT}which is {known}"]
    if judgement.error is not None:
        return "\n".join([*lines, *_row("error", judgement.error)])
    lines += _wrapped(
        f"{judgement.backend} against {judgement.reference} on {judgement.device} in "
        f"{judgement.dtype}; {judgement.examples} images; loaded in "
        f"{judgement.seconds['load']:.1f} s, ran in {judgement.seconds['run']:.1f} s"
    )
    for gate in judgement.gates:
        label = "pass" if gate.passed else "FAIL"
        lines += _row(f"{label}  {gate.name}", gate.message)
    return "\n".join([*lines, *failing_lines(judgement)])


def failing_lines(judgement: Judgement) -> list[str]:
    """The input that it failed on, for people, and how to run it again; nothing without one."""
    failing = judgement.failing
    if failing is None:
        return []
    what = "smallest input" if failing.shrunk else "a batch"
    lines = _wrapped(f"{what} that fails: {describe(failing.example)}")
    lines += _wrapped(failing.measure.message)
    if judgement.saved is not None:
        lines.append(f"{_INDENT}again: clipcheck replay {shlex.quote(judgement.saved)}")
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=_INDENT,
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _row(label: str, text: str) -> list[str]:
    first = f"{_INDENT}{label:<17}"
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
