"""The gate ``allclose``: the classic assertion."""

from __future__ import annotations

from collections.abc import Sequence

from clipcheck.gates.metrics import Difference, difference, sigmoid, softmax
from clipcheck.gates.result import LOGITS, Case, GateResult, expected_outputs, not_finite, unusable
from clipcheck.gates.tolerances import Allclose, Limits
from clipcheck.system.figures import multiple, number


def allclose(cases: Sequence[Case], limits: Allclose, measures: Limits | None = None) -> GateResult:
    """Assert ``np.allclose`` on the probabilities of both logits of every batch.

    Logits that are not finite fail, even if equal on both sides: softmax would hide infinities.

    Args:
        cases: at least one.
        limits: absolute and relative tolerance, and how probabilities are computed.
        measures: limits of the dtype. If the eager model is further from float64 than their
            ``allclose``, differences are reported but do not fail. None: they always fail.
    """
    problem = unusable(cases, LOGITS) or not_finite(cases, LOGITS)
    if problem:
        return GateResult(name="allclose", passed=False, message=problem, margin=float("inf"))
    names = expected_outputs(cases, LOGITS)
    found = {name: [_differ(case, name, limits) for case in cases] for name in names}
    figures = {name: _figures(differences, limits) for name, differences in found.items()}
    passed = all(this.mismatched == 0 for each in found.values() for this in each)
    name, case, worst = max(
        (
            (name, case, this)
            for name in names
            for case, this in zip(cases, found[name], strict=True)
        ),
        key=lambda item: (item[2].mismatched > 0, _excess(item[2])),
    )
    if passed:
        greatest = max(float(figure["max_abs"]) for figure in figures.values())
        message = (
            f"{'sigmoid ' if limits.sigmoid else ''}probabilities agree within "
            f"atol {limits.atol:g}, rtol {limits.rtol:g}; worst difference {number(greatest)}"
        )
    else:
        message = _mismatch(name, worst, limits, case)
        own = 0.0 if measures is None else _own_excess(cases, limits)
        if measures is not None and own > measures.allclose:
            message = f"{_rounding_text(own)}; {message}"
            return GateResult(
                name="allclose",
                passed=True,
                message=message,
                figures=figures,
                margin=_excess(worst),
                judged=False,
            )
    return GateResult(
        name="allclose", passed=passed, message=message, figures=figures, margin=_excess(worst)
    )


def _differ(case: Case, name: str, limits: Allclose) -> Difference:
    probabilities = sigmoid if limits.sigmoid else softmax
    mine, other = probabilities(case.candidate[name]), probabilities(case.reference[name])
    return difference(mine, other, atol=limits.atol, rtol=limits.rtol)


def _rounding_text(own: float) -> str:
    return (
        "cannot fail, because rounding alone may exceed the limit: the eager model's own error is "
        f"{multiple(own)} the limit"
    )


def _own_excess(cases: Sequence[Case], limits: Allclose) -> float:
    """Return the eager model's own distance from float64 as a multiple of the classic limit."""
    classic = Allclose(sigmoid=limits.sigmoid)
    return max(
        _excess(
            _differ(
                Case(candidate=case.reference, reference=case.exact, exact=case.exact),
                name,
                classic,
            )
        )
        for case in cases
        for name in expected_outputs(cases, LOGITS)
    )


def _excess(found: Difference) -> float:
    """Return the difference as a multiple of the limit."""
    if found.allowed == 0:
        return float("inf") if found.found else 0.0
    return found.found / found.allowed


def _figures(found: Sequence[Difference], limits: Allclose) -> dict[str, float | int | str]:
    return {
        "max_abs": max(this.max_abs for this in found),
        "mismatched": sum(this.mismatched for this in found),
        "elements": sum(this.elements for this in found),
        "atol": limits.atol,
        "rtol": limits.rtol,
    }


def _mismatch(name: str, found: Difference, limits: Allclose, case: Case) -> str:
    """Return how many probabilities differ, the worst one, and its limit."""
    return (
        f"{'sigmoid' if limits.sigmoid else 'softmax'}({name}) differs in "
        f"{found.mismatched} of {found.elements} probabilities; "
        f"worst at {case.where(name, found.index)}: candidate {found.candidate:.4g}, "
        f"reference {found.reference:.4g}, "
        f"{number(found.found)} apart (limit {number(found.allowed)}: "
        f"atol {limits.atol:g} + rtol {limits.rtol:g} x reference)"
    )
