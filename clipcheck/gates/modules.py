"""The gate ``modules``: each module alone is as close to float64 as the eager one.

End to end, a small fault is hidden by the rounding of all later layers. In its module alone, on the
module's own input, it is visible at full size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from clipcheck.gates.fidelity import against_eager
from clipcheck.gates.result import Figures, GateResult
from clipcheck.gates.tolerances import SAME_BLOCK, Limits
from clipcheck.system.figures import counted


@dataclass(frozen=True, kw_only=True)
class ModuleError:
    """Error of a module against its float64 copy, on one input.

    Attributes:
        module: its name in the eager model.
        method: the archive's name of the method that was called.
        candidate: root mean square of the candidate's error.
        reference: root mean square of the eager module's error.
        size: root mean square of the exact output.
        block: name of the residual block around it, or an empty string.
        part: name of a step between modules; empty for a module.
        given: description of the input of a module that was called alone; else empty.
        slack: factor for the unit of the error.
    """

    module: str
    method: str
    candidate: float
    reference: float
    size: float
    block: str = ""
    part: str = ""
    given: str = ""
    slack: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Modules that were judged, and those that could not be.

    Attributes:
        errors: of every judged module, in the order of the calls; several for a module that is
            called in several methods.
        skipped: by name, why a module of the eager model was not judged.
        failures: why methods failed.
        ranges: errors of modules that were called alone, on extreme inputs.
        reached: by kind of number, the greatest that was reached.
        covered: further modules that were judged: together with others, or by all their parts.
        note: how the candidate ran other than as a whole, or an empty string.
    """

    errors: Sequence[ModuleError]
    skipped: Mapping[str, str]
    failures: Sequence[str] = ()
    ranges: Sequence[ModuleError] = ()
    reached: Mapping[str, float] = field(default_factory=dict)
    covered: Sequence[str] = ()
    note: str = ""


def modules(coverage: Coverage, limits: Limits) -> GateResult:
    """Judge that every module that both have by name is as close to float64 as the eager one.

    A module inside a block may be further off if the block as a whole is not: then the block
    divides its work differently.
    """
    coverage = _where_eager_is_finite(coverage)
    judged = {error.module for error in coverage.errors if not error.part} | {*coverage.covered}
    figures = _coverage_figures(judged, coverage)
    if not judged:
        message = f"not one module could be judged: {_reasons(coverage)}"
        return GateResult(
            name="modules", passed=False, message=message, figures=figures, margin=float("inf")
        )
    found = [*ratios(coverage.errors, limits), *ratios(coverage.ranges, limits)]
    greatest, worst = max(found, key=lambda item: item[0])
    figures = {
        **figures,
        worst.module: _figures(greatest, worst, limits),
        "greatest": {"module": greatest},
    }
    margin = greatest / limits.module
    if margin > 1:
        message = f"{_beyond(found, limits)}{_told(coverage)}"
        return GateResult(
            name="modules", passed=False, message=message, figures=figures, margin=margin
        )
    message = (
        f"{counted(len(judged), 'module')}, one by one{_also(coverage)}: worst error "
        f"{against_eager(worst.candidate, greatest, limits.module)}, {_named(worst)}"
        f"{_left_out(coverage)}{_told(coverage)}"
    )
    return GateResult(name="modules", passed=True, message=message, figures=figures, margin=margin)


def _where_eager_is_finite(coverage: Coverage) -> Coverage:
    """Leave out modules that overflow in the eager model as well."""
    finite = [error for error in coverage.errors if is_measure(error)]
    overflowing = {
        f"{error.module} in {error.method}": "the eager module itself is not finite there"
        for error in coverage.errors
        if not is_measure(error)
    }
    return replace(coverage, errors=finite, skipped={**coverage.skipped, **overflowing})


def is_measure(error: ModuleError) -> bool:
    """Tell whether the eager module's own error is finite, so that it can be a measure."""
    return math.isfinite(error.reference) and math.isfinite(error.size)


Ratios = Sequence[tuple[float, ModuleError]]


def ratios(errors: Sequence[ModuleError], limits: Limits) -> Ratios:
    """Return each module's multiple of the eager module's error, as the gate counts it: an error
    that the block as a whole compensates does not count.

    Args:
        errors: of all modules, in the order of the calls; the result has the same order.
    """
    counted = [(ratio(error, limits), error) for error in errors]
    blocks: dict[str, float] = {}
    for found, error in counted:
        if not error.part:
            blocks[error.module] = max(found, blocks.get(error.module, 0))
    return [(_after_block(found, blocks.get(error.block)), error) for found, error in counted]


def ratio(error: ModuleError, limits: Limits) -> float:
    """Return an error in its `unit`, whatever its block does; infinite if it is not a number, and 0
    if the eager module's is not."""
    measure = unit(error, limits)
    if not math.isfinite(measure):
        return 0.0
    if measure == 0:
        return float("inf") if error.candidate else 0.0
    found = error.candidate / measure
    return found if math.isfinite(found) else float("inf")


def unit(error: ModuleError, limits: Limits) -> float:
    """Return the unit of an error: the eager module's error, or one rounding of the output if it
    is exact."""
    return max(error.reference, limits.roundoff * error.size) * error.slack


def _after_block(found: float, block: float | None) -> float:
    """Return the ratio of the block if it passes and is smaller, else that of the module."""
    if block is None or block > SAME_BLOCK or not math.isfinite(found):
        return found
    return min(found, block)


def _named(error: ModuleError) -> str:
    return f"{error.module}, {error.part}" if error.part else error.module


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


def _told(coverage: Coverage) -> str:
    return f"; {coverage.note}" if coverage.note else ""


def _left_out(coverage: Coverage) -> str:
    if not coverage.skipped:
        return ""
    return f"; {len(coverage.skipped)} not judged: {_reasons(coverage)}"


def _reasons(coverage: Coverage) -> str:
    """List each reason with its first module and the number of others."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in coverage.skipped.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} ({reason})"
        for reason, names in by_reason.items()
    )


def _beyond(found: Ratios, limits: Limits) -> str:
    """Describe the first module beyond the limit, in the order of the calls."""
    off = [(most, error) for most, error in found if most > limits.module]
    most, first = off[0]
    others = len({error.module for _, error in off}) - 1
    more = f"; {counted(others, 'more module')} beyond the limit" if others else ""
    how = "not finite, or the shape differs from the eager module's"
    if math.isfinite(most):
        how = f"error {against_eager(first.candidate, most, limits.module)}"
    return f"{_named(first)} ({first.method}): {how}, on {first.given or 'the same input'}{more}"
