"""Judge by other limits what a check compared, without running anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipcheck.errors import UsageError
from clipcheck.gates.budget import RANKINGS, inputs_for
from clipcheck.gates.distance import Ruler
from clipcheck.gates.measured import measured
from clipcheck.gates.registry import NAMES, aside, gates_in, nothing_judged
from clipcheck.gates.result import FEATURES, LOGITS, OUTPUTS, expected_outputs
from clipcheck.gates.tolerances import Budget
from clipcheck.harness.judging import judge
from clipcheck.harness.options import CheckOptions
from clipcheck.harness.running import Run
from clipcheck.harness.trial import Trial
from clipcheck.results.judgement import Judgement, Result
from clipcheck.results.kept import read_kept
from clipcheck.results.outputs import Kept

_OF_JUDGING = ("atol", "rtol", "budget", "select", "ignore")
"""Options of a check that this one states anew."""


def rejudge(
    folder: str | os.PathLike[str],
    *,
    atol: float | None = None,
    rtol: float | None = None,
    budget: str | None = None,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
) -> Result:
    """Judge the outputs of a check by other limits.

    Args:
        folder: that ``clipcheck check --keep-outputs`` wrote.
        atol: absolute tolerance on probabilities; default: that of the check.
        rtol: relative tolerance; default: that of the check.
        budget: limits of a lossy candidate; default: that of the check.
        select: gates to run; default: all.
        ignore: gates to leave out.

    Raises:
        ResultsError: it is no such folder, or damaged.
        UsageError: a limit is invalid, or the check did not run what it needs.
    """
    found = read_kept(Path(folder))
    given = {"atol": atol, "rtol": rtol, "budget": budget, "select": select, "ignore": ignore}
    told: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    judgements = []
    for each in found.judgements:
        kept: dict[str, Any] = {
            "atol": each.limits.atol,
            "rtol": each.limits.rtol,
            "budget": each.budget,
        }
        options = CheckOptions(**{**kept, **told})
        judgements.append(each if each.kept is None else _judged(each, each.kept, options))
    return replace(found, judgements=tuple(judgements))


def _judged(judgement: Judgement, kept: Kept, options: CheckOptions) -> Judgement:
    lossy = options.allowed_loss
    rows = sum(len(case.rows.get("image", ())) for case in kept.sample)
    needs_random = lossy is not None and not _covers(kept, lossy)
    if (
        lossy is not None
        and needs_random
        and "budget" in options.gates
        and inputs_for(lossy) > rows
    ):
        what = f"{rows} random images" if rows else "no random images, as without --budget"
        raise UsageError(
            f"expected outputs for {inputs_for(lossy):,} random images, which the budget "
            f"{options.budget} needs, found {what}",
            remedy="Check again, with this --budget and --keep-outputs.",
        )
    limits = replace(options.limits, sigmoid=judgement.limits.sigmoid)
    if kept.own and limits != judgement.limits and "allclose" in options.gates:
        raise UsageError(
            "expected the --atol and --rtol of the check, which had your own images or prompts: of "
            "their probabilities only the worst was kept",
            remedy="Leave out both, add --ignore allclose, or check again with them.",
        )
    # Without repeated rows, which ran only if their gate was selected, there is nothing to judge.
    chosen = [name for name in options.gates if kept.repeats or name != "repeatability"]
    trial = Trial(
        batches=(),
        reference=(),
        exact=(),
        scale=kept.scale,
        dtype=kept.dtype,
        gates=chosen,
        budget=lossy,
        error=kept.error,
    )
    run = Run(kept.cases, kept.repeats, [], kept.lengths, kept.sample)
    others = [gate for gate in kept.others if gate.name in chosen]
    gates = sorted(
        (
            *judge(trial, run, kept.evidence, None, limits, kept.own),
            *(others if lossy is None else map(aside, others)),
        ),
        key=lambda gate: NAMES.index(gate.name),
    )
    there = {gate.name for gate in gates}
    applying = gates_in(
        kept.dtype,
        modules=any(gate.name == "modules" for gate in kept.others),
        reference=any(gate.name == "weights" for gate in kept.others),
        logits=bool(expected_outputs(kept.cases, LOGITS)),
        budget=lossy is not None,
    )
    if not any(gate.judged for gate in gates):
        raise nothing_judged(applying, budget=lossy is not None)
    others_asked = {k: v for k, v in judgement.options.items() if k not in _OF_JUDGING}
    again = replace(
        judgement,
        gates=tuple(gates),
        ignored=tuple(name for name in applying if name not in there),
        limits=limits,
        budget=options.budget,
        options={**others_asked, **options.asked},
        measured=measured(kept.cases, Ruler(kept.cases, trial.ruler_limits, kept.scale)),
    )
    if not again.passed:
        return again
    # They explained a failure that is none by these limits.
    return replace(again, failing_example=None, localisation=None, alternative=None, known=())


def _covers(kept: Kept, budget: Budget) -> bool:
    """Whether the user's own data alone decide a budget."""
    enough = inputs_for(budget)
    samples = kept.own.samples if kept.own else {}
    kinds = {OUTPUTS[name][0] for name in expected_outputs(kept.cases, FEATURES)}
    ranked = [name for name in RANKINGS if getattr(budget, name) is not None]
    return bool(kinds) and all(
        kind in samples
        and len(samples[kind].cosines) >= enough
        and all(name in samples[kind].matches for name in ranked)
        for kind in kinds
    )
