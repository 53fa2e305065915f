"""The verdict, and the order of failures from worst to least."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from clipcheck.backends.registry import backend_named
from clipcheck.gates.result import GateResult
from clipcheck.report.cells import visible
from clipcheck.results.judgement import Judgement, Result
from clipcheck.system.figures import of_limit


def verdict(result: Result) -> str:
    """Say how many agree, differ or could not be judged, which one is worst, and which gates were
    left out.

    Counts checkpoints if each ran once, else runs.
    """
    ignored = dict.fromkeys(name for each in result.judgements for name in each.ignored)
    said = _of_the_gates(result.judgements)
    return f"{said.removesuffix('.')}; gates left out: {', '.join(ignored)}." if ignored else said


def _of_the_gates(judgements: Sequence[Judgement]) -> str:
    if not judgements:
        return "NOT JUDGED: nothing was checked."
    failed = [each for each in judgements if each.error is None and not each.passed]
    unjudged = sum(each.error is not None for each in judgements)
    aside = f", {unjudged} could not be judged" if unjudged else ""
    between, against = _sides(judgements)
    if failed:
        differ = _verb(failed, "differs", "differ")
        differing = f"{_counted(len(failed), judgements)} {differ} {between or f'from {against}'}"
        worst = _worst(judgements)
        return f"INCONSISTENT{_budgets('with', failed)}: {differing}{aside}. Worst: {worst}."
    if unjudged:
        passed = len(judgements) - unjudged
        rest = f", {passed} passed" if passed else ""
        return f"NOT JUDGED: {_counted(unjudged, judgements)} could not be judged{rest}."
    count = f"{len(judgements)} {_noun(judgements)}"
    agree = _verb(judgements, "agrees", "agree")
    within = _budgets("within", judgements)
    return f"CONSISTENT{within}: {count} {agree} {between or f'with {against}'}."


def worst_first(judgements: Iterable[Judgement]) -> list[Judgement]:
    """Sort: failures by severity, then those that could not be judged, then those that passed."""
    return sorted(judgements, key=_rank)


def worst_gate(judgement: Judgement) -> GateResult | None:
    """Return the gate that is furthest beyond its limit, or None if none failed."""
    failed = [gate for gate in judgement.gates if not gate.passed]
    return max(failed, key=_severity) if failed else None


def failure(judgement: Judgement) -> str:
    """Name the worst gate of a failed judgement, and how many times its limit was found."""
    gate = worst_gate(judgement)
    if gate is None:
        return "judged by no gate"
    return f"{gate.name}, {of_limit(gate.margin)}" if 1 < gate.margin < math.inf else gate.name


def _rank(judgement: Judgement) -> tuple[int, float]:
    if judgement.passed:
        return 2, 0.0
    if judgement.error is not None:
        return 1, 0.0
    gate = worst_gate(judgement)
    return 0, -math.inf if gate is None else -_severity(gate)


def _severity(gate: GateResult) -> float:
    """Return the margin; infinite if the gate failed for a reason without a figure."""
    return gate.margin if gate.margin > 1 else math.inf


def _worst(judgements: Sequence[Judgement]) -> str:
    worst = worst_first(judgements)[0]
    return f"{_subject(worst, judgements)}{failure(worst)}"


def _subject(worst: Judgement, judgements: Sequence[Judgement]) -> str:
    """Return the name of the worst judgement, or an empty string if it is the only one."""
    if len(judgements) == 1:
        return ""
    how = (
        ""
        if _ran_once_each(judgements)
        else f", {worst.backend} on {worst.device} in {worst.dtype}"
    )
    return visible(f"{worst.checkpoint}{how}: ")


def _sides(judgements: Sequence[Judgement]) -> tuple[str, str]:
    """Return the pair of sides if all judgements share it, and the name of the reference."""
    if all(each.pinned is not None for each in judgements):
        return "", "the pin"
    if all(each.reference_checkpoint is not None for each in judgements):
        return "", "the reference"
    if all(backend_named(each.backend).needs_archive for each in judgements):
        return "between JIT and eager", "the eager model"
    in_memory = all(each.reference_in_memory for each in judgements)
    return "", "the reference" if in_memory else "the eager model"


def _budgets(preposition: str, judgements: Sequence[Judgement]) -> str:
    """Name the budgets that were judged, and how many of the judgements have one if not all do."""
    lossy = [
        each.budget
        for each in judgements
        if each.budget is not None and "budget" not in each.ignored
    ]
    if not lossy:
        return ""
    names = list(dict.fromkeys(lossy))
    some = "" if len(lossy) == len(judgements) else f" ({len(lossy)} of {len(judgements)})"
    noun = "budget" if len(names) == 1 else "budgets"
    return visible(f" {preposition} the {noun} {' and '.join(names)}{some}")


def _noun(judgements: Sequence[Judgement]) -> str:
    kind = "model" if all(each.in_memory for each in judgements) else "checkpoint"
    noun = kind if _ran_once_each(judgements) else "run"
    return noun if len(judgements) == 1 else f"{noun}s"


def _ran_once_each(judgements: Sequence[Judgement]) -> bool:
    """Tell whether each checkpoint ran once."""
    return len({each.checkpoint for each in judgements}) == len(judgements)


def _counted(number: int, judgements: Sequence[Judgement]) -> str:
    of = "" if len(judgements) == 1 else f" of {len(judgements)}"
    return f"{number}{of} {_noun(judgements)}"


def _verb(judgements: Sequence[Judgement], one: str, several: str) -> str:
    return one if len(judgements) == 1 else several
