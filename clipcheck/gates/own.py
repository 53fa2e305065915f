"""Measure the user's own images and prompts, batch by batch, in the memory of a batch.

In float32 the eager model's features in float64 are computed only where they can matter: for rows
that are so far from the eager model that they may be beyond a limit, and for the worst ones.
"""

from __future__ import annotations

import heapq
import itertools
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipcheck.gates.allclose import allclose
from clipcheck.gates.budget import LEAST, RANKINGS, Sample, ranked, unit
from clipcheck.gates.distance import Ruler
from clipcheck.gates.fidelity import against_eager
from clipcheck.gates.metrics import Array, row_rms
from clipcheck.gates.own_results import Addition, OwnResults
from clipcheck.gates.result import MEANT, OUTPUTS, Case, GateResult
from clipcheck.gates.tolerances import Allclose
from clipcheck.gates.top1 import Exchange, compare
from clipcheck.system.figures import counted, multiple, number

KEPT = 8
"""Number of the worst images, and of the worst prompts, that are kept and named."""

MOST_CANDIDATES = 10_000
"""Most prompts that an image is compared with, and most images for a prompt. Features of so many
are kept in float32: 20 MB for 512 components on each of two sides."""

_FEATURES = {"image": "image_features", "prompt": "text_features"}
_LOGITS = {"image": "logits_per_image", "prompt": "logits_per_text"}

Floats = NDArray[np.float64]

_quietly = np.errstate(all="ignore")
"""Numbers that are not finite become an infinite ratio, without a warning."""

Exactly = Callable[[Sequence[int]], Array]
"""Returns the features of these rows of a batch in float64."""


@dataclass(frozen=True, kw_only=True)
class OwnRow:
    """One of the user's images or prompts.

    Attributes:
        kind: ``image`` or ``prompt``.
        name: a file relative to the folder, or a line's number and text.
        output: the features that were compared.
        rmse_ratio: multiple of the eager model's error against float64; with a budget, of which
            nothing runs in float64, at most so much.
        allowed: the allowed ratio.
        rmse: root mean square error.
        cosine: with the eager model's features.
    """

    kind: str
    name: str
    output: str
    rmse_ratio: float
    allowed: float
    rmse: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class OwnFound:
    """Findings on the user's data.

    Attributes:
        images: number of images that were compared.
        prompts: number of prompts.
        skipped: number of files that cannot be read as images.
        skipped_files: the first of them, with the reasons.
        truncated: number of prompts that are longer than the model's context, and were cut.
        exact: number of rows that were also run in float64.
        at_most: greatest possible ``rmse_ratio`` of all rows that were not.
        worst: the worst images and prompts, the worst first.
    """

    images: int
    prompts: int
    skipped: int = 0
    skipped_files: tuple[str, ...] = ()
    truncated: int = 0
    exact: int = 0
    at_most: float = 0.0
    worst: tuple[OwnRow, ...] = ()


@dataclass
class Kept:
    """One of the worst rows, with its input.

    Attributes:
        given: pixels [3, R, R] or ids [L].
        case: of this row alone; ``exact`` is the eager model's if it was not run in float64.
        known: whether it was run in float64.
    """

    name: str
    given: NDArray[Any]
    case: Case
    known: bool


@dataclass(kw_only=True)
class _OfKind:
    """Measurements of all images or all prompts."""

    rows: int = 0
    failing: int = 0
    exact: int = 0
    kept: list[tuple[float, int, Kept]] = field(default_factory=list)
    cosines: array[float] = field(default_factory=lambda: array("d"))
    rankings: tuple[array[float], ...] = field(
        default_factory=lambda: (array("d"), array("d"), array("d"))
    )
    features: list[Candidates] = field(default_factory=list)

    @property
    def least_kept(self) -> float:
        """Bound of the least of the worst rows, once there are enough."""
        return self.kept[0][0] if len(self.kept) == KEPT else -np.inf

    @property
    def at_most(self) -> float:
        """Greatest possible ratio of the rows that did not run in float64."""
        return self.kept[0][0] if self.exact < self.rows else 0.0


@dataclass(frozen=True)
class Candidates:
    """Rows that those of the other kind are matched with.

    Attributes:
        names: of the rows.
        candidate: their features in the candidate, of length 1, [K, E].
        reference: in the eager model.
        exact: in float64, or the eager model's where nothing runs in float64.
    """

    names: Sequence[str]
    candidate: Array
    reference: Array
    exact: Array

    @classmethod
    def of(cls, name: str, cases: Sequence[Case], names: Sequence[str]) -> Candidates:
        """Return the rows of these features in all cases."""
        candidate, reference = (
            unit(np.concatenate([getattr(case, side)[name] for case in cases]))
            for side in ("candidate", "reference")
        )
        if all(case.exact is case.reference for case in cases):
            return cls(names, candidate, reference, reference)
        exact = unit(np.concatenate([case.exact[name] for case in cases]))
        return cls(names, candidate, reference, exact)

    def some(self, rows: slice) -> Candidates:
        """Return some of the rows."""
        reference = self.reference[rows]
        exact = reference if self.exact is self.reference else self.exact[rows]
        return Candidates(self.names[rows], self.candidate[rows], reference, exact)


class OwnMeasures:
    """Takes the outputs of one batch after the other, and keeps figures and the worst rows.

    Args:
        ruler: made of the other inputs.
        limits: of the gate ``allclose``.
        scale: the model's exp(logit_scale).
        bias: of logits.
        lossy: whether there is a budget: then nothing runs in float64, and the worst rows are those
            with the least cosines.
    """

    def __init__(
        self, ruler: Ruler, limits: Allclose, *, scale: float, bias: float, lossy: bool
    ) -> None:
        self._ruler = ruler
        self._limits = limits
        self._scale = scale
        self._bias = bias
        self._lossy = lossy
        self._of: dict[str, _OfKind] = {kind: _OfKind() for kind in _FEATURES}
        self._order = itertools.count()
        self._asserted: GateResult | None = None
        self._mismatched = 0
        self._matched = [0, 0, 0]
        self._exchanged: tuple[float, str] = 0.0, ""
        self._moved: tuple[float, str] = 0.0, ""
        self._repeated = 0

    @_quietly
    def add(self, kind: str, case: Case, given: NDArray[Any], exactly: Exactly | None) -> None:
        """Measure the features of a batch.

        Args:
            kind: ``image`` or ``prompt``.
            case: of features alone. Without outputs in float64, ``exact`` has the eager model's.
            given: the inputs of the rows.
            exactly: computes features in float64; None if ``case.exact`` has them.
        """
        name, mine = _FEATURES[kind], self._of[kind]
        cases = [_one(case, name, row) for row in range(len(given))]
        known = np.full(len(given), exactly is None)
        if exactly is not None:
            wanted = self._undecided(mine, self._ruler.at_most(name, case))
            for row, values in zip(wanted, exactly(wanted) if wanted else (), strict=True):
                cases[row], known[row] = replace(cases[row], exact={name: values[None]}), True
        ratios = np.array([self._ratio(name, each, known[row]) for row, each in enumerate(cases)])
        mine.rows += len(given)
        mine.exact += int(known.sum())
        mine.failing += int((known & ~(ratios <= self._ruler.allowed(name))).sum())
        rows = Candidates.of(name, [case], case.rows[kind])
        cosines = np.nan_to_num(np.sum(rows.candidate * rows.exact, axis=1), nan=0.0)
        mine.cosines.extend(cosines)
        # A bound is up to one more than the ratio.
        keys = 1 - cosines if self._lossy else ratios + known
        for row, key in enumerate(np.nan_to_num(keys, nan=np.inf)):
            if len(mine.kept) < KEPT or key > mine.least_kept:
                # A copy: a view would keep the whole batch.
                kept = Kept(rows.names[row], given[row].copy(), cases[row], bool(known[row]))
                place = heapq.heappush if len(mine.kept) < KEPT else heapq.heapreplace
                place(mine.kept, (float(key), -next(self._order), kept))
        if mine.rows - len(given) < MOST_CANDIDATES:
            reference = rows.reference.astype(np.float32)
            shared = rows.exact is rows.reference
            exact = reference if shared else rows.exact.astype(np.float32)
            candidate = rows.candidate.astype(np.float32)
            mine.features.append(Candidates(rows.names, candidate, reference, exact))

    def _undecided(self, mine: _OfKind, bounds: Floats) -> list[int]:
        """Return the rows that have to run in float64: those that may be beyond the limit, and once
        enough are, those that may be worse than the kept ones.

        A row within the limit of a whole batch is also within its own.
        """
        beyond = ~(bounds <= self._ruler.limits.features)
        if mine.failing >= KEPT:
            beyond &= bounds > mine.least_kept
        return [] if self._lossy else [int(row) for row in np.flatnonzero(beyond)]

    def _ratio(self, name: str, case: Case, known: bool) -> float:
        """Return the ratio of a case of one row, or a bound of it."""
        ratios = self._ruler.further(name, case) if known else self._ruler.at_most(name, case)
        return float(ratios[0])

    def candidates(self, kind: str) -> Candidates:
        """Return the first `MOST_CANDIDATES` rows of a kind."""
        kept = self._of[kind].features
        names = [name for each in kept for name in each.names]
        candidate, reference = (
            np.concatenate([getattr(each, side) for each in kept])
            for side in ("candidate", "reference")
        )
        shared = all(each.exact is each.reference for each in kept)
        exact = reference if shared else np.concatenate([each.exact for each in kept])
        return Candidates(names, candidate, reference, exact).some(slice(MOST_CANDIDATES))

    @_quietly
    def match(self, kind: str, rows: Candidates, first: int, others: Candidates) -> None:
        """Compare the probabilities and the best matches of rows among the others.

        Args:
            kind: of the rows.
            first: number of rows of this kind before.
            others: of the other kind, at least one.
        """
        name = _LOGITS[kind]
        column = OUTPUTS[name][1]
        found = _cosines(rows, others)
        candidate, reference, exact = ({name: self._scale * each + self._bias} for each in found)
        case = Case(
            candidate=candidate,
            reference=reference,
            exact=exact,
            rows={kind: rows.names, column: others.names},
            first_rows={kind: first},
            absent=frozenset(OUTPUTS) - {name},
        )
        if not np.isfinite(found[0]).all():
            return  # the features are told to be so
        if len(others.names) > 1:
            values = ranked(found[0], found[2])
            for kept, several in zip(self._of[kind].rankings, values, strict=True):
                kept.extend(several)
        asserted = allclose([case], self._limits, self._ruler.limits)
        self._mismatched += int(asserted.figures[name]["mismatched"])
        if self._asserted is None or _severity(asserted) > _severity(self._asserted):
            self._asserted = asserted
        count, clear, wrong = compare([case], self._ruler)
        for at, each in enumerate((count, clear, len(wrong))):
            self._matched[at] += each
        for exchange in wrong:
            told = _exchange_text(rows.names, others.names, exchange)
            self._exchanged = max(self._exchanged, (exchange.margin, told))

    def kept(self, kind: str) -> list[Kept]:
        """Return the worst rows of a kind, the worst first."""
        return [kept for _, _, kept in sorted(self._of[kind].kept, key=lambda each: each[:2])][::-1]

    def complete(self, kind: str, exactly: Callable[[NDArray[Any]], Array]) -> None:
        """Measure the worst rows against float64.

        Args:
            exactly: computes features of inputs in float64.
        """
        name, mine = _FEATURES[kind], self._of[kind]
        rest = [] if self._lossy else [kept for kept in self.kept(kind) if not kept.known]
        if rest:
            values = exactly(np.stack([kept.given for kept in rest]))
            for kept, exact in zip(rest, values, strict=True):
                kept.case, kept.known = replace(kept.case, exact={name: exact[None]}), True
                ratio = float(self._ruler.further(name, kept.case)[0])
                mine.exact += 1
                mine.failing += not ratio <= self._ruler.allowed(name)

    def repeat(self, kind: str, again: Array) -> None:
        """Compare a second result of the worst rows, which ran in another batch."""
        name, kept = _FEATURES[kind], self.kept(kind)
        self._repeated += 1
        for row, each in enumerate(kept):
            ratio = float(self._ruler.moved(name, each.case, again[row : row + 1])[0])
            self._moved = max(self._moved, (ratio, f"{MEANT[name]} of {_owned(kind, each.name)}"))

    def _samples(self) -> dict[str, Sample]:
        return {
            kind: Sample(np.array(mine.cosines), self._matches(kind))
            for kind, mine in self._of.items()
            if mine.rows
        }

    def _matches(self, kind: str) -> dict[str, Floats]:
        """Return the figures of matches with the user's own data. With few, a single exchange of
        two changes the five best and the ranks as no limit foresees, so only the best counts."""
        mine = self._of[kind]
        (others,) = (other.rows for name, other in self._of.items() if name != kind)
        if others < 2 or len(mine.rankings[0]) < mine.rows:
            return {}
        names = RANKINGS if others >= LEAST else RANKINGS[:1]
        return {name: np.array(each) for name, each in zip(names, mine.rankings, strict=False)}

    def found(self) -> OwnFound:
        """Return the findings."""
        rows = [self._row(kind, kept) for kind in _FEATURES for kept in self.kept(kind)]
        key = (lambda each: -each.cosine) if self._lossy else (lambda each: each.rmse_ratio)
        return OwnFound(
            images=self._of["image"].rows,
            prompts=self._of["prompt"].rows,
            exact=sum(mine.exact for mine in self._of.values()),
            at_most=0.0 if self._lossy else max(mine.at_most for mine in self._of.values()),
            worst=tuple(sorted(rows, key=key, reverse=True)),
        )

    def worst_failing(self) -> tuple[str, Kept] | None:
        """Return the kind and the row with the greatest ratio beyond its limit, or None."""
        rows = [(self._row(kind, kept), kept) for kind in _FEATURES for kept in self.kept(kind)]
        failing = [(row, kept) for row, kept in rows if not row.rmse_ratio <= row.allowed]
        worst = max(failing, key=lambda each: each[0].rmse_ratio, default=None)
        return None if worst is None else (worst[0].kind, worst[1])

    @_quietly
    def _row(self, kind: str, kept: Kept) -> OwnRow:
        name, case = _FEATURES[kind], kept.case
        units = [unit(side[name]) for side in (case.candidate, case.exact)]
        error = float(row_rms(case.candidate[name].astype(np.float64) - case.exact[name])[0])
        ratio = self._ratio(name, case, kept.known)
        cosine = float(np.sum(units[0] * units[1]))
        return OwnRow(
            kind=kind,
            name=kept.name,
            output=name,
            rmse_ratio=ratio,
            allowed=self._ruler.allowed(name),
            rmse=error,
            cosine=cosine,
        )

    # ---------------------------------------------------------------- gates

    def results(self) -> OwnResults:
        """Return what to add to each gate, and the figures of each row for the gate ``budget``."""
        fidelity = self._to_fidelity()
        found = {
            "fidelity": fidelity,
            "precision": fidelity,
            "allclose": self._to_allclose(),
            "top1": self._to_top1(),
            "repeatability": self._to_repeatability(),
        }
        return OwnResults(
            {gate: each for gate, each in found.items() if each is not None}, self._samples()
        )

    def _to_fidelity(self) -> Addition | None:
        found = self.found()
        if not found.worst:
            return None
        figures: dict[str, dict[str, float | int | str]] = {}
        for kind, mine in self._of.items():
            rows = [row for row in found.worst if row.kind == kind]
            if rows:
                worst = max(rows, key=lambda row: row.rmse_ratio)
                figures[f"own_{kind}s"] = {
                    "rows": mine.rows,
                    "failing": mine.failing,
                    "rmse_ratio": worst.rmse_ratio,
                    "allowed": worst.allowed,
                    "rmse": worst.rmse,
                    "worst": worst.name,
                    **({} if self._lossy else {"at_most": mine.at_most}),
                }
        worst = max(found.worst, key=lambda row: row.rmse_ratio / row.allowed)
        told = against_eager(worst.rmse, worst.rmse_ratio, worst.allowed)
        what = f"{MEANT[worst.output]} of {_owned(worst.kind, worst.name)}"
        margin = worst.rmse_ratio / worst.allowed
        failing = sum(mine.failing for mine in self._of.values())
        if not margin <= 1:
            more = f" ({failing} or more of {_rows(found)} are beyond it)" if failing > 1 else ""
            return Addition(f"{what}: worst error {told}{more}", figures, margin)
        return Addition(f"{_rows(found)}: worst error {told}, {what}", figures, margin)

    def _to_allclose(self) -> Addition | None:
        found = self._asserted
        if found is None:
            return None
        (row,) = found.figures.values()
        figures = {"own": {**row, "mismatched": self._mismatched}}
        told = "" if found.passed else f"own data: {found.message}"
        return Addition(told, figures, found.margin if found.judged else 0.0, found.judged)

    def _to_top1(self) -> Addition | None:
        rows, clear, wrong = self._matched
        if not rows:
            return None
        figures = {"own": {"compared": rows, "clear": clear, "wrong": wrong}}
        told = f"{clear} of {clear} clear rows of own data"
        if wrong:
            told = f"{wrong} of {clear} rows of own data differ: {self._exchanged[1]}"
        return Addition(told, figures, self._exchanged[0], clear > 0)

    def _to_repeatability(self) -> Addition | None:
        ratio, what = self._moved
        if not self._repeated:
            return None
        allowed = 2 * self._ruler.limits.feature_row
        told = f"{what} in another batch moved by {multiple(ratio)} the eager error"
        margin = ratio / allowed
        figures = {"own": {"moved": ratio}}
        return Addition(f"{told} (limit {allowed:g}x)" if margin > 1 else "", figures, margin)


def _severity(found: GateResult) -> tuple[bool, float]:
    return not found.passed, found.margin


def _owned(kind: str, name: str) -> str:
    return f"own {kind} {name}" if kind == "image" else f"own prompt ({name})"


def _rows(found: OwnFound) -> str:
    counts = ((found.images, "own image"), (found.prompts, "own prompt"))
    return " and ".join(counted(count, what) for count, what in counts if count)


def _exchange_text(rows: Sequence[str], others: Sequence[str], exchange: Exchange) -> str:
    return (
        f"{rows[exchange.row]} matches {others[exchange.found]} in place of "
        f"{others[exchange.right]}, which leads by {number(exchange.lead)}"
    )


def _cosines(rows: Candidates, others: Candidates) -> tuple[Floats, Floats, Floats]:
    """Return the cosines of rows with the others in candidate, eager model and float64, [N, K]."""

    def of(side: str) -> Floats:
        these, those = getattr(rows, side), getattr(others, side)
        return np.asarray(these.astype(np.float64) @ those.astype(np.float64).T)

    reference = of("reference")
    shared = rows.exact is rows.reference and others.exact is others.reference
    return of("candidate"), reference, reference if shared else of("exact")


def _one(case: Case, name: str, row: int) -> Case:
    """Return the case of one row, whose arrays are copies: a view would keep the whole batch."""
    candidate, reference, exact = (
        {name: side[name][row : row + 1].copy()}
        for side in (case.candidate, case.reference, case.exact)
    )
    return Case(candidate=candidate, reference=reference, exact=exact)
