"""The user's data, measured batch by batch, compared with measuring all of it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from clipcheck.gates.distance import Ruler
from clipcheck.gates.own import KEPT, Candidates, OwnMeasures
from clipcheck.gates.result import Case, GateResult
from clipcheck.gates.tolerances import LIMITS, Allclose

LIMIT = LIMITS["float32"]
NAME = "image_features"
ROWS, WIDTH, BATCH = 200, 32, 8


@dataclass
class Images:
    """Features of many images in float64, in the eager model, and in a candidate."""

    exact: np.ndarray
    eager: np.ndarray
    candidate: np.ndarray

    def case(self, rows: slice, *, exactly: bool) -> Case:
        numbers = range(ROWS)[rows]
        sides = [{NAME: each[rows]} for each in (self.candidate, self.eager, self.exact)]
        names = {"image": tuple(map(str, numbers))}
        last = sides[2] if exactly else sides[1]
        return Case(
            candidate=sides[0],
            reference=sides[1],
            exact=last,
            rows=names,
            first_rows={"image": numbers[0]},
        )

    @property
    def whole(self) -> Case:
        return self.case(slice(None), exactly=True)

    @property
    def ruler(self) -> Ruler:
        logits = {"logits_per_image": np.eye(20)}
        eager, exact = (
            {NAME: each[:20], "text_features": each[:20], **logits}
            for each in (self.eager, self.exact)
        )
        return Ruler([Case(candidate=eager, reference=eager, exact=exact)], LIMIT, 100.0)


def images(errors: Sequence[float]) -> Images:
    """Errors of the candidate in units of the eager model's, by row."""
    draw = np.random.default_rng(0)
    exact = draw.normal(size=(ROWS, WIDTH))

    def off(size: float | np.ndarray) -> np.ndarray:
        return exact + 1e-6 * size * draw.normal(size=exact.shape)

    eager = off(draw.uniform(0.1, 3, size=(ROWS, 1)))
    return Images(exact, eager, off(np.array(errors)[:, None]))


def measured(given: Images, *, exactly: bool = False, lossy: bool = False) -> OwnMeasures:
    found = OwnMeasures(given.ruler, Allclose(), scale=100.0, bias=0.0, lossy=lossy)
    for first in range(0, ROWS, BATCH):
        rows = slice(first, first + BATCH)

        def exact(picked: Sequence[int], first: int = first) -> np.ndarray:
            return given.exact[[first + row for row in picked]]

        pixels = np.arange(first, first + BATCH)[:, None]
        case = given.case(rows, exactly=exactly)
        found.add("image", case, pixels, None if exactly else exact)
    found.complete("image", lambda pixels: given.exact[pixels[:, 0]])
    return found


def fidelity(found: OwnMeasures) -> GateResult:
    return found.results().add_to(
        GateResult(name="fidelity", passed=True, message="others agree", figures={}, margin=0.1)
    )


def test_no_row_is_further_than_its_bound() -> None:
    given = images(np.random.default_rng(1).uniform(0, 20, ROWS))  # type: ignore[arg-type]
    bound = given.ruler.at_most(NAME, given.whole)
    assert (given.ruler.further(NAME, given.whole) <= bound).all()
    assert bound.min() < LIMIT.features


def test_of_sound_rows_only_the_worst_run_in_float64() -> None:
    found = measured(images([1.0] * ROWS))
    result = fidelity(found)
    assert result.passed
    row = result.figures["own_images"]
    assert (row["rows"], row["failing"]) == (ROWS, 0)
    assert KEPT <= found.found().exact < ROWS / 4
    assert float(row["rmse_ratio"]) < float(row["at_most"]) < LIMIT.feature_row


@pytest.mark.parametrize("failing", [1, 3, 60])
def test_the_worst_is_found_as_if_all_ran_in_float64(failing: int) -> None:
    errors = [1.0] * ROWS
    for number in range(failing):
        errors[3 * number] = 100.0 + number
    given = images(errors)
    ratios = given.ruler.further(NAME, given.whole)
    for exactly in (False, True):
        result = fidelity(measured(given, exactly=exactly))
        row = result.figures["own_images"]
        assert not result.passed
        assert row["worst"] == str(int(ratios.argmax()))
        assert row["rmse_ratio"] == pytest.approx(ratios.max())
        assert result.margin == pytest.approx(ratios.max() / LIMIT.feature_row)
        least = failing if exactly else min(failing, KEPT)
        assert least <= int(row["failing"]) <= failing
        assert result.message.startswith(f"image features of own image {row['worst']}: worst error")


def test_a_failing_row_is_found_among_rows_that_are_hard_for_the_eager_model_too() -> None:
    errors = [1.0] * ROWS
    errors[100] = 40.0
    given = images(errors)
    draw = np.random.default_rng(2)
    for side in (given.eager, given.candidate):
        side[20:40] += 1e-4 * draw.normal(size=(20, WIDTH))
    result = fidelity(measured(given))
    assert not result.passed
    assert result.figures["own_images"]["worst"] == "100"


def test_a_wrong_match_is_named_and_probabilities_are_asserted() -> None:
    given = images([1.0] * ROWS)
    found = measured(given)
    same = Candidates.of(NAME, [given.case(slice(4), exactly=False)], "abcd")
    other = Candidates("abcd", same.candidate[[1, 0, 2, 3]], same.reference, same.reference)
    found.match("image", other, 0, same)
    for name in ("top1", "allclose"):
        result = found.results().add_to(
            GateResult(name=name, passed=True, message="others agree", figures={}, margin=0.0)
        )
        assert not result.passed
    message = (
        found.results().add_to(GateResult(name="top1", passed=True, message="others agree")).message
    )
    assert message.startswith("2 of 4 rows of own data differ: ")
    assert "a matches b in place of a" in message or "b matches a in place of b" in message


def test_a_gate_that_is_only_measured_is_still_judged_on_own_data() -> None:
    given = images([1.0] * ROWS)
    found = measured(given)
    some = Candidates.of(NAME, [given.case(slice(4), exactly=False)], "abcd")
    found.match("image", some, 0, some)
    aside = GateResult(
        name="allclose", passed=True, message="cannot fail", figures={}, margin=3.0, judged=False
    )
    result = found.results().add_to(aside)
    assert (result.passed, result.judged) == (True, True)
    assert result.margin < 1


def test_rows_that_are_not_finite_are_the_worst() -> None:
    given = images([1.0] * ROWS)
    given.candidate[77] = np.nan
    result = fidelity(measured(given))
    assert not result.passed
    assert result.figures["own_images"]["worst"] == "77"


def test_with_a_budget_the_worst_have_the_least_cosines() -> None:
    errors = [1.0] * ROWS
    errors[50] = 1e5
    found = measured(images(errors), lossy=True)
    assert found.found().exact == 0
    assert found.found().worst[0].name == "50"
    assert len(found.results().samples["image"].cosines) == ROWS
    assert found.results().samples["image"].matches == {}


@pytest.mark.parametrize(("prompts", "names"), [(3, ["top1"]), (104, ["top1", "top5", "spearman"])])
def test_ranks_among_few_rows_are_not_judged_by_a_budget(prompts: int, names: list[str]) -> None:
    found = measured(images([1.0] * ROWS), lossy=True)
    texts = np.random.default_rng(3).normal(size=(prompts, WIDTH))
    sides = {"text_features": texts}
    case = Case(
        candidate=sides,
        reference=sides,
        exact=sides,
        rows={"prompt": tuple(map(str, range(prompts)))},
    )
    found.add("prompt", case, texts, None)
    found.match("image", found.candidates("image"), 0, found.candidates("prompt"))
    matches = found.results().samples["image"].matches
    assert list(matches) == names
    assert matches["top1"].mean() == 1
