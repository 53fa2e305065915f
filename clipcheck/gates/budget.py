"""The gate ``budget``: a candidate that is lossy on purpose keeps the given limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipcheck.errors import UsageError, nearest
from clipcheck.gates.result import (
    FEATURES,
    LOGITS,
    OUTPUTS,
    Case,
    GateResult,
    expected_outputs,
    not_finite,
    unusable,
)
from clipcheck.gates.tolerances import BUDGETS, LOGIT_SCALE, Budget
from clipcheck.system.figures import counted, percent

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
"""Confidence level of each interval."""

LEAST, MOST = 100, 10_000
"""Least and greatest number of random images, and of random prompts."""

_FEW = 3
"""The number of inputs is large enough for a share to pass if it falls short by at most the allowed
shortfall divided by this number."""

_BLOCK = 256
"""Rows of similarities to compare at once."""

_TIE = 1e-6
"""Cosines that differ by at most this are equal: float32 cannot resolve smaller differences."""

RANKINGS = ("top1", "top5", "spearman")
"""Figures of `ranked`, in its order."""

MEANT: Mapping[str, str] = {
    "cosine": "least cosine",
    "median": "median cosine",
    "top1": "best match agrees",
    "top5": "five best shared",
    "spearman": "rank correlation",
}
"""By limit of a budget, the name of its figure in messages."""


def parse_budget(text: str) -> Budget:
    """Parse a budget: a name from `BUDGETS`, or limits such as ``cosine=0.99,top1=0.95``.

    Raises:
        UsageError: it is neither, or it needs too many inputs.
    """
    if text in BUDGETS:
        return BUDGETS[text]
    limits: dict[str, Any] = {}
    if not isinstance(text, str):
        raise UsageError(
            f"expected a budget as text, found {text!r}",
            remedy=f"Give one of {', '.join(BUDGETS)}, or limits such as cosine=0.99,top1=0.95.",
        )
    for part in text.split(","):
        name, equals, value = (each.strip() for each in part.partition("="))
        if not equals or name not in MEANT or name in limits:
            known = [*BUDGETS, *(f"{each}=LIMIT" for each in MEANT)]
            raise UsageError(
                f"expected a budget, found {text!r}: {part.strip() or 'nothing'!r} "
                f"{'is a second limit' if name in limits else 'is not valid'}",
                remedy=f"{nearest(part.strip(), known)}; give one of {', '.join(BUDGETS)}, or "
                f"limits, such as cosine=0.99,top1=0.95, of {', '.join(MEANT)}.",
            )
        limits[name] = _limit(name, value)
    budget = Budget(**limits)
    _ = inputs_for(budget)
    return budget


def _limit(name: str, value: str) -> float:
    try:
        limit = float(value)
    except ValueError:
        limit = np.nan
    if not 0 < limit < 1:
        why = ", which no number of inputs can prove" if limit == 1 else ""
        raise UsageError(
            f"expected {name} of a budget to be a number between 0 and 1, found {value!r}{why}",
            remedy="Give a number below 1, such as 0.99.",
        )
    return limit


@cache
def inputs_for(budget: Budget) -> int:
    """Return how many images, and how many prompts, the intervals of a budget need.

    Raises:
        UsageError: more than `MOST`.
    """
    rows = LEAST
    for name in ("top1", "top5"):
        limit = getattr(budget, name)
        while limit is not None and wilson(1 - (1 - limit) / _FEW, rows)[0] < limit:
            rows += max(1, rows // 50)
            if rows > MOST:
                raise UsageError(
                    f"expected a budget that needs at most {MOST:,} images and prompts, found "
                    f"{name}={limit:g}",
                    remedy="Give a lower limit, such as 0.999.",
                )
    return rows


def decidable(rows: int) -> float:
    """Return the greatest limit of a share that so many rows can decide, to three digits."""

    def can(limit: float) -> bool:
        return wilson(1 - (1 - limit) / _FEW, rows)[0] >= limit

    return next((limit for n in range(999, 0, -1) if can(limit := n / 1000)), 0.0)


def wilson(share: float, rows: int) -> tuple[float, float]:
    """Return Wilson's interval of a share of rows. It also holds for a mean of numbers from 0 to 1,
    which varies no more than a share.
    """
    from scipy.stats import binomtest

    found = binomtest(int(share * rows + 1e-9), rows).proportion_ci(CONFIDENCE, "wilson")
    return float(found.low), float(found.high)


def _bootstrap(values: Floats, statistic: str) -> tuple[float, float]:
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,),
        getattr(np, statistic),
        confidence_level=CONFIDENCE,
        method="percentile",
        n_resamples=2000,
        batch=max(1, 1_000_000 // len(values)),  # so many numbers are in memory at once
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class Estimate:
    """A figure of a budget.

    Attributes:
        found: over the rows.
        lower: lower end of its interval, which is compared with the limit.
        upper: upper end.
        rows: their number.
    """

    found: float
    lower: float
    upper: float
    rows: int


@dataclass(frozen=True)
class Sample:
    """Figures of each of the user's own images or prompts.

    Attributes:
        cosines: of features with those of the eager model, [N].
        matches: by ``top1``, ``top5`` and ``spearman``, the figure of each row, [N]; only those
            for which there are enough of the user's data to match with.
    """

    cosines: Floats
    matches: Mapping[str, Floats] = field(default_factory=dict)


def budget(
    cases: Sequence[Case],
    limits: Budget,
    levels: Mapping[str, int] | None = None,
    own: Mapping[str, Sample] | None = None,
) -> GateResult:
    """Require that the lower end of each figure's interval keeps its limit.

    A figure is that of the worse tower, or the worse of images and prompts. If the candidate has
    features and logits, their ratio must also be the reference's, see `LOGIT_SCALE`.

    Args:
        cases: of independent random inputs, from which the intervals are computed.
        limits: the budget.
        levels: by key, the number of values that a quantised weight can have.
        own: the user's data by ``image`` and ``prompt``. Where there is enough for the intervals,
            it is judged in place of the random inputs.
    """
    enough = inputs_for(limits)
    used = {kind: each for kind, each in (own or {}).items() if len(each.cosines) >= enough}
    problem = unusable(cases) or not_finite(cases, expected_outputs(cases))
    if problem:
        return GateResult(name="budget", passed=False, message=problem, margin=float("inf"))
    found = estimates(cases, used)
    wanted = {name: limit for name in MEANT if (limit := getattr(limits, name)) is not None}
    missing = wanted.keys() - found.keys()
    figures: dict[str, dict[str, float | int | str]] = {
        name: {**asdict(each), **({"limit": wanted[name]} if name in wanted else {})}
        for name, each in found.items()
    }
    margins = {
        name: (1 - found[name].lower) / (1 - limit)
        for name, limit in wanted.items()
        if name in found
    }
    told = [_told(name, found[name], wanted[name], margins[name]) for name in margins]
    scale = logit_scale(cases)
    if scale is not None:
        figures["logit_scale"] = {"found": scale, "allowed": LOGIT_SCALE}
        margins["logit_scale"] = abs(scale - 1) / LOGIT_SCALE
        if margins["logit_scale"] > 1:
            told.insert(0, f"logits are {scale:.3g} times those of its own features")
    least = limits.levels
    if levels and least is not None:
        key = min(levels, key=lambda each: levels[each])
        figures["levels"] = {"found": levels[key], "least": least}
        margins["levels"] = least / levels[key]
        if margins["levels"] > 1:
            told.insert(0, f"{key} has {levels[key]} levels (LIMIT {least})")
    if missing:
        names = " and ".join(sorted(missing))
        told.insert(0, f"{names} cannot be measured: the candidate has no features")
        margins.update(dict.fromkeys(missing, float("inf")))
    message = f"{'; '.join(told)}; over {_rows_text(cases, own or {}, used, enough)}"
    margin = max(margins.values())
    return GateResult(
        name="budget", passed=margin <= 1, message=message, figures=figures, margin=margin
    )


def _rows_text(
    cases: Sequence[Case], own: Mapping[str, Sample], used: Mapping[str, Sample], enough: int
) -> str:
    """Say which inputs were judged, and which of the user's are too few."""
    random = [
        sum(len(case.exact[name]) for case in cases)
        for name in expected_outputs(cases, FEATURES) or expected_outputs(cases, LOGITS)
        if OUTPUTS[name][0] not in used
    ]
    told = [counted(len(each.cosines), f"own {kind}") for kind, each in used.items()]
    told += [f"{counted(max(random), 'row')} of random inputs"] if random else []
    few = [counted(len(own[kind].cosines), f"own {kind}") for kind in own if kind not in used]
    needs = f" ({' and '.join(few)} not judged: it needs {enough})" if few else ""
    return f"{' and '.join(told)}{needs}"


def _told(name: str, found: Estimate, limit: float, margin: float) -> str:
    share = name in ("top1", "top5")
    write = percent if share else lambda value: f"{value:.5g}"
    low = "" if found.found == found.lower else f", at least {write(found.lower)}"
    word = "limit" if margin <= 1 else "LIMIT"
    value = f"in {write(found.found)}" if share else write(found.found)
    return f"{MEANT[name]} {value}{low} ({word} {write(limit)})"


def estimates(
    cases: Sequence[Case], own: Mapping[str, Sample] | None = None
) -> dict[str, Estimate]:
    """Measure every figure that a budget may limit and the candidate's outputs allow.

    Args:
        own: the user's data by ``image`` and ``prompt``, in place of the rows of the cases.
    """
    own = own or {}
    found: dict[str, list[Estimate]] = {}

    def add(name: str, value: float, ends: tuple[float, float], rows: int) -> None:
        found.setdefault(name, []).append(Estimate(value, *ends, rows))

    for kind, cosines in _cosines(cases):
        if kind in own:
            cosines = own[kind].cosines
        least = float(cosines.min())
        # A bootstrap of a minimum is never lower than the minimum.
        add("cosine", least, (least, least), len(cosines))
        ends = _bootstrap(cosines, "median")
        add("median", float(np.median(cosines)), ends, len(cosines))
    for kind, rankings in _rankings(cases):
        mine = own[kind].matches if kind in own else {}
        for name, values in {**dict(zip(RANKINGS, rankings, strict=True)), **mine}.items():
            share, rows = float(values.mean()), len(values)
            ends = _bootstrap(values, "mean") if name == "spearman" else wilson(share, rows)
            add(name, share, ends, rows)
    return {name: min(each, key=lambda one: one.lower) for name, each in found.items()}


def logit_scale(cases: Sequence[Case]) -> float | None:
    """Return the ratio of the candidate's logit scale to the reference's, or None if the candidate
    lacks features or logits."""
    if len(expected_outputs(cases, (*FEATURES, LOGITS[0]))) < 3:
        return None
    own, exact = (
        _slope([getattr(case, side) for case in cases]) for side in ("candidate", "exact")
    )
    return own / exact if exact else None


def _slope(outputs: Sequence[Mapping[str, NDArray[np.floating]]]) -> float:
    """Return the slope of logits over cosines, through the medians of the third with the least
    cosines and of the third with the greatest: clipping of the greatest logits does not change it.
    """
    cosines = [np.matmul(*_pair(each)).ravel() for each in outputs]
    logits = [each[LOGITS[0]].astype(np.float64).ravel() for each in outputs]
    x, y = (np.concatenate(each) for each in (cosines, logits))
    order = np.argsort(x)
    third = max(1, len(x) // 3)
    low, high = order[:third], order[-third:]
    wide = float(np.median(x[high]) - np.median(x[low]))
    return float(np.median(y[high]) - np.median(y[low])) / wide if wide else 0.0


def _pair(outputs: Mapping[str, NDArray[np.floating]]) -> tuple[Floats, Floats]:
    images, texts = (unit(outputs[name]) for name in FEATURES)
    return images, texts.T


def unit(values: NDArray[np.floating]) -> Floats:
    """Scale rows to length 1, in float64; a row of zeros stays zero."""
    exact = values.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    return np.asarray(exact / np.where(lengths == 0, 1, lengths))


def _cosines(cases: Sequence[Case]) -> Iterator[tuple[str, Floats]]:
    """Yield for each tower its kind of input, and the cosines of rows of features with those of
    float64."""
    for name in expected_outputs(cases, FEATURES):
        yield (
            OUTPUTS[name][0],
            np.concatenate(
                [np.sum(unit(c.candidate[name]) * unit(c.exact[name]), axis=1) for c in cases]
            ),
        )


def _rankings(cases: Sequence[Case]) -> Iterator[tuple[str, tuple[Floats, Floats, Floats]]]:
    """Yield for each ranking the kind of its rows and, by row: whether the best match agrees with
    float64's, the share of float64's five best matches among the candidate's five, and the rank
    correlation."""
    names = expected_outputs(cases, FEATURES) or expected_outputs(cases, LOGITS)
    kinds = [OUTPUTS[name][0] for name in names]
    sides = (_scores(cases, side) for side in ("candidate", "exact"))
    for kind, own, exact in zip(kinds, *sides, strict=True):
        parts = [
            ranked(own[start : start + _BLOCK], exact[start : start + _BLOCK])
            for start in range(0, len(own), _BLOCK)
        ]
        agreed, shared, ranks = (np.concatenate(each) for each in zip(*parts, strict=True))
        yield kind, (agreed, shared, ranks)


def _scores(cases: Sequence[Case], side: str) -> list[Floats]:
    """Return the scores to rank: of images with prompts and prompts with images; for a single
    tower, of each row with the other rows; without features, the logits of each batch."""
    outputs = [getattr(case, side) for case in cases]
    units = [
        unit(np.concatenate([each[name] for each in outputs]))
        for name in expected_outputs(cases, FEATURES)
    ]
    if len(units) == 2:
        return [units[0] @ units[1].T, units[1] @ units[0].T]
    if units:
        rows = len(units[0])
        others = ~np.eye(rows, dtype=bool)
        return [(units[0] @ units[0].T)[others].reshape(rows, rows - 1)]
    return [
        np.concatenate([each[name].astype(np.float64) for each in outputs])
        for name in expected_outputs(cases, LOGITS)
    ]


def ranked(own: Floats, exact: Floats) -> tuple[Floats, Floats, Floats]:
    """Return by row of scores whether the best match agrees, the share of the five best that is the
    same, and the correlation of the ranks."""
    from scipy.stats import rankdata

    best = np.take_along_axis(exact, own.argmax(axis=1)[:, None], axis=1)[:, 0]
    agreed = (best >= exact.max(axis=1) - _TIE).astype(np.float64)
    several = min(5, own.shape[1])
    mine, theirs = (np.argpartition(-each, several - 1)[:, :several] for each in (own, exact))
    shared = (mine[:, :, None] == theirs[:, None, :]).any(axis=2).mean(axis=1)
    ranks = [
        unit((r := rankdata(each, axis=1)) - r.mean(axis=1, keepdims=True)) for each in (own, exact)
    ]
    return agreed, shared, np.sum(ranks[0] * ranks[1], axis=1)


@dataclass(frozen=True)
class LayerCost:
    """The error that one quantised weight adds to a program.

    Attributes:
        weight: its key.
        how: description of the quantisation.
        share: part of the error that disappears if this weight is in float; negative if the weight
            compensates for others.
        error: the remaining `squared_error`.
    """

    weight: str
    how: str
    share: float
    error: float


def squared_error(cases: Sequence[Case]) -> float:
    """Return the mean squared distance of normalised features from those of float64."""
    return float(np.mean(np.concatenate([2 - 2 * each for _, each in _cosines(cases)])))
