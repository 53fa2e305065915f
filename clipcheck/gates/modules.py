"""The gate ``modules``: each module by itself as near to float64 as the eager one is.

Judged end to end, a fault drowns in the rounding of all the layers after it. Judged alone, on the
input that it had, it stands out undiminished, and is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from clipcheck.gates.fidelity import against_eager
from clipcheck.gates.result import Figures, GateResult
from clipcheck.gates.tolerances import SAME_BLOCK, Limits
from clipcheck.system.figures import counted


@dataclass(frozen=True)
class ModuleError:
    """How far one module is from its float64 twin, on one input, in one of its methods.

    Attributes:
        module: its name in the eager model.
        method: the archive's name of the method that was called.
        candidate: root mean square of the candidate's error.
        reference: root mean square of the eager module's error.
        size: root mean square of the exact output.
        block: the name of the residual block that it is inside of, or nothing.
        part: what it is, for people, where it lies between modules; else nothing.
        given: what it was given, where it was called by itself; else nothing.
    """

    module: str
    method: str
    candidate: float
    reference: float
    size: float
    block: str = ""
    part: str = ""
    given: str = ""


@dataclass(frozen=True)
class Coverage:
    """Modules that were judged, and those that could not be.

    Attributes:
        errors: of every module that was judged, in the order of the calls; several for a module
            that is called in several methods.
        skipped: by name, why a module of the eager model was not judged.
        failures: why methods could not be run to their end.
        ranges: of modules that were called by themselves, on inputs that the whole never gives.
        reached: by kind of number, the greatest that there was.
    """

    errors: Sequence[ModuleError]
    skipped: Mapping[str, str]
    failures: Sequence[str] = ()
    ranges: Sequence[ModuleError] = ()
    reached: Mapping[str, float] = field(default_factory=dict)


def modules(coverage: Coverage, limits: Limits) -> GateResult:
    """Every module that both have by name is as near to its float64 twin as the eager one.

    A module inside of a block may be further, if the block as a whole is not: then the two have
    shared out the same work in another way.
    """
    coverage = _where_eager_is_finite(coverage)
    judged = {error.module for error in coverage.errors}
    figures = _coverage_figures(judged, coverage)
    if not judged:
        message = f"not one module could be judged: {_reasons(coverage)}"
        return GateResult("modules", False, message, figures, float("inf"))
    found = [*ratios(coverage.errors, limits), *ratios(coverage.ranges, limits)]
    greatest, worst = max(found, key=lambda item: item[0])
    figures = {
        **figures,
        worst.module: _figures(greatest, worst, limits),
        "greatest": {"module": greatest},
    }
    margin = greatest / limits.module
    if margin > 1:
        return GateResult("modules", False, _beyond(found, limits), figures, margin)
    message = (
        f"{counted(len(judged), 'module')}, one by one{_also(coverage)}: worst error "
        f"{against_eager(worst.candidate, greatest, limits.module)}, {worst.module}"
        f"{_left_out(coverage)}"
    )
    return GateResult("modules", True, message, figures, margin)


def _where_eager_is_finite(coverage: Coverage) -> Coverage:
    """Leave out the modules that overflow in the eager model as well, which are not judged."""
    finite = [error for error in coverage.errors if is_measure(error)]
    overflowing = {
        f"{error.module} in {error.method}": "the eager module itself is not finite there"
        for error in coverage.errors
        if not is_measure(error)
    }
    return replace(coverage, errors=finite, skipped={**coverage.skipped, **overflowing})


def is_measure(error: ModuleError) -> bool:
    """Whether the eager module's own error is a number: nothing else can be held against it."""
    return math.isfinite(error.reference) and math.isfinite(error.size)


Ratios = Sequence[tuple[float, ModuleError]]


def ratios(errors: Sequence[ModuleError], limits: Limits) -> Ratios:
    """How many times as far from float64 as the eager one each module is, as the gate counts it:
    what a block as a whole makes up for is not held against a module inside of it.

    Args:
        errors: of all modules, in the order of the calls, which is that of what is returned.
    """
    counted = [(ratio(error, limits), error) for error in errors]
    blocks: dict[str, float] = {}
    for found, error in counted:
        if not error.part:
            blocks[error.module] = max(found, blocks.get(error.module, 0))
    return [(_excused(found, blocks.get(error.block)), error) for found, error in counted]


def ratio(error: ModuleError, limits: Limits) -> float:
    """One error in its `unit`, whatever its block does; infinite where it is not a number. Nothing
    is held against it where the eager module's is none."""
    measure = unit(error, limits)
    if not math.isfinite(measure):
        return 0.0
    if measure == 0:
        return float("inf") if error.candidate else 0.0
    found = error.candidate / measure
    return found if math.isfinite(found) else float("inf")


def unit(error: ModuleError, limits: Limits) -> float:
    """Return the unit of an error: the eager module's error, or one rounding of the output where
    that one is exact."""
    return max(error.reference, limits.roundoff * error.size)


def _excused(found: float, block: float | None) -> float:
    """The ratio of the block, where that one is as it should be."""
    if block is None or block > SAME_BLOCK or not math.isfinite(found):
        return found
    return min(found, block)


def _figures(found: float, error: ModuleError, limits: Limits) -> dict[str, float | int | str]:
    return {
        "rmse_ratio": found,
        "allowed": limits.module,
        "rmse": error.candidate,
        "method": error.method,
    }


def _coverage_figures(judged: set[str], coverage: Coverage) -> Figures:
    return {
        "coverage": {"judged": len(judged), "not_judged": len(coverage.skipped)},
        **({"reached": dict(coverage.reached)} if coverage.reached else {}),
        **{name: {"not_judged": reason} for name, reason in coverage.skipped.items()},
    }


def _also(coverage: Coverage) -> str:
    alone = len({error.module for error in coverage.ranges})
    return f", {alone} on extreme inputs as well" if alone else ""


def _left_out(coverage: Coverage) -> str:
    if not coverage.skipped:
        return ""
    return f"; {len(coverage.skipped)} not judged: {_reasons(coverage)}"


def _reasons(coverage: Coverage) -> str:
    """Each reason with the modules that it holds for, counted."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in coverage.skipped.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} ({reason})"
        for reason, names in by_reason.items()
    )


def _beyond(found: Ratios, limits: Limits) -> str:
    """The first module that is too far, in the order of the calls."""
    off = [(most, error) for most, error in found if most > limits.module]
    most, first = off[0]
    others = len({error.module for _, error in off}) - 1
    more = f"; {counted(others, 'more module')} beyond the limit" if others else ""
    how = "not finite, or of another shape than the eager module's"
    if math.isfinite(most):
        how = f"error {against_eager(first.candidate, most, limits.module)}"
    return f"{first.module} ({first.method}): {how}, on {first.given or 'the same input'}{more}"
