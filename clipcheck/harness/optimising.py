"""Find out whether a failing candidate fails only because its library optimises it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clipcheck.backends.base import Backend
from clipcheck.backends.optimiser import Optimiser, Setting, find_cause
from clipcheck.errors import ClipcheckError
from clipcheck.gates.optimised import Optimised, Rewrites
from clipcheck.harness.judging import Verdict
from clipcheck.harness.phases import Stopwatch
from clipcheck.harness.search.probe import Probe, worst
from clipcheck.inputs.batches import Batch


@dataclass(frozen=True)
class Fails:
    """Tells whether a candidate fails as it runs now.

    Attributes:
        given: description of the inputs.
        call: runs it.
    """

    given: str
    call: Callable[[], bool]


def on_batch(probe: Probe, batch: Batch, given: str) -> Fails:
    """Tell it by the outputs of a batch."""
    return Fails(given, lambda: worst(probe.measure(batch)).margin > 1)


def on_all(judge: Callable[..., Verdict], seed: int) -> Fails:
    """Tell it by all inputs.

    Args:
        judge: takes a stopwatch and the seed, and judges the candidate by the gates that failed.
    """

    def fails() -> bool:
        return not all(gate.passed for gate in judge(Stopwatch(), seed=seed).gates)

    return Fails("all inputs", fails)


def find_optimised(candidate: Backend, fails: Fails, batch: Batch) -> Optimised | None:
    """Return what of its library's optimiser makes a candidate fail; None if it fails without as
    well, or if its optimiser cannot be controlled.

    Args:
        candidate: in the end it runs as before.
        batch: inputs with images and prompts, to compare what was replaced.

    Raises:
        ClipcheckError: the sandbox process ended.
    """
    small = batch.select([0], [0]).of_sizes(*candidate.batch_sizes)
    for optimiser in candidate.optimisers:
        cause = find_cause(optimiser, fails.call)
        if cause is None:
            continue
        rewrites, reason = _rewrites(optimiser, cause.sound, Setting(cause.level), small)
        return Optimised(
            level=cause.level,
            below=cause.below,
            passes=cause.passes,
            reason=cause.reason or reason,
            line=candidate.line_for(cause.sound),
            given=fails.given,
            rewrites=rewrites,
        )
    return None


def _rewrites(
    optimiser: Optimiser, sound: Setting, failing: Setting, batch: Batch
) -> tuple[Rewrites | None, str]:
    """Return what the failing setting replaced, or why that cannot be told."""
    try:
        return optimiser.rewrites(sound, failing, [batch.pixels, batch.tokens]), ""
    except ClipcheckError as error:
        return None, error.problem
