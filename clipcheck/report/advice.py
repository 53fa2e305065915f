"""The next steps after a verdict, as commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clipcheck.backends.registry import backend_named
from clipcheck.gates.alternative import equals
from clipcheck.report import alternative, optimised, patched
from clipcheck.report.cells import wrapped
from clipcheck.report.lines import INDENT, NEXT, OR, step
from clipcheck.report.places import measured, named
from clipcheck.report.repeat import of_file, repeat
from clipcheck.results.judgement import Judgement

KEPT = "clip-report"
"""Folder of a suggested report."""

_SHOWS = "writes a report that shows what fails"

_ARCH = "ARCH"

_NAMES = "a released name, open_clip:NAME, or a configuration file"


def next_steps(judgement: Judgement, rerun: Sequence[str] = ()) -> list[str]:
    """Return the most useful commands for a checkpoint that did not pass, and what they do."""
    if judgement.in_memory:
        return []
    named = judgement.path or judgement.checkpoint
    failed = {gate.name for gate in judgement.gates if not gate.passed}
    if judgement.pinned is not None:
        steps = step(
            NEXT,
            repeat(judgement, pinned=None, reference=_checkpoint_of_pin(judgement)),
            "compares it with the checkpoint itself: it finds the smallest failing input, and in "
            "an archive the module that departs first.",
        )
    elif judgement.alternative is not None:
        steps = step(
            NEXT,
            repeat(judgement, architecture=_ARCH),
            f"judges it with the architecture that it was trained with: {_NAMES}.",
        )
    elif _is_quantised(judgement) and judgement.budget is None:
        words = repeat(judgement, budget="int8")
        steps = step(NEXT, words, "judges it with the limits for int8.")
    elif "integrity" in failed:
        steps = step(
            NEXT,
            ["clipcheck", "inspect", named, *of_file(judgement)],
            "shows what the file is, without running it.",
        )
    elif _is_convertible(judgement) and "weights" not in failed:
        steps = _repair_step(named, judgement)
    else:
        steps = []
    if rerun:
        saving = ", and saves the failing input" if judgement.replayable else ""
        steps += step(OR if steps else NEXT, rerun, f"{_SHOWS}{saving}.")
    return steps


def _checkpoint_of_pin(judgement: Judgement) -> str | None:
    """Return the checkpoint of a pin, or None if the judged file is that one."""
    pinned = judgement.pinned
    return None if pinned is None or pinned.sha256 == judgement.sha256 else pinned.checkpoint


def _is_quantised(judgement: Judgement) -> bool:
    return any("quantised" in gate.figures for gate in judgement.gates)


def _is_convertible(judgement: Judgement) -> bool:
    """Whether it is an archive of clipcheck's own modules: those of a library are not converted."""
    own = "library" not in (judgement.architecture or {})
    program = bool(judgement.mapping)  # whose weights have no names
    return own and not program and backend_named(judgement.backend).needs_archive


def _repair_step(named: str, judgement: Judgement) -> list[str]:
    """Return the command that writes the archive again. It needs --architecture if neither the file
    nor the check told the architecture."""
    told_elsewhere = judgement.reference_checkpoint is not None and not judgement.asked_architecture
    asks = judgement.assumed or told_elsewhere
    options = [*of_file(judgement), *(("--architecture", _ARCH) if asks else ())]
    trained = f" ARCH is the architecture that they were trained with: {_NAMES}."
    what = trained if asks else ""
    return step(
        NEXT,
        ["clipcheck", "convert", named, *options, "-o", "fixed.pt"],
        f"writes an archive with the same weights and correct code.{what}",
    )


def doubts(judgement: Judgement) -> Iterator[tuple[str, str]]:
    """Yield reasons to doubt a failure, each with a label."""
    suspicion = "" if judgement.passed else patched.suspicion(judgement.patched)
    if suspicion:
        yield "casts", suspicion
    if judgement.alternative is not None:
        label = "equals" if equals(judgement.alternative) else "nearer to"
        yield label, alternative.describe(judgement)


def doubt_lines(judgement: Judgement) -> list[str]:
    """Return the reasons to doubt a failure as lines of text."""
    return [
        line for label, doubt in doubts(judgement) for line in wrapped(doubt, f"  {label}: ", "  ")
    ]


def departure_lines(judgement: Judgement) -> list[str]:
    """Return lines that say where each tower departs first, and which part its optimiser has; none
    if that was not found."""
    return [
        line
        for told in (
            *(f"departs first: {named(p)}: {measured(p)}" for p in judgement.departures),
            *optimised.of_judgement(judgement),
        )
        for line in wrapped(told, INDENT)
    ]
