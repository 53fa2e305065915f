from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clipcheck.gates.result import LOGITS
from clipcheck.harness.mismatch import find_mismatch
from clipcheck.harness.phases import Stopwatch
from clipcheck.harness.running import run_candidate
from clipcheck.harness.trial import Trial
from clipcheck.inputs.batches import batches
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.inputs.preprocess import picture_of
from tests.harness.test_judging import SMALL, Tables, TwinTables


@pytest.fixture(scope="module")
def trial() -> Trial:
    drawn = list(batches(EDGE_CASES, SMALL, 0))
    return Trial.of(TwinTables(), drawn, "float32", Stopwatch())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LOGITS)
def test_the_images_of_the_row_are_shown(trial: Trial, name: str) -> None:
    cases = list(run_candidate(trial, Tables()).cases)
    assert find_mismatch(trial, cases) is None
    number = 2
    case, pixels = cases[number], trial.batches[number].pixels
    wrong = case.candidate[name].copy()
    row = 1
    right = int(wrong[row].argmax())
    other = int(wrong[row].argmin())
    wrong[row, [right, other]] = wrong[row, [other, right]]
    cases[number] = replace(case, candidate={**case.candidate, name: wrong})
    found = find_mismatch(trial, cases)
    assert found is not None
    kinds = ("image", "prompt") if name == "logits_per_image" else ("prompt", "image")
    assert found.row == case.place(kinds[0], row)
    assert (found.found, found.right) == (case.place(kinds[1], other), case.place(kinds[1], right))
    shown = [row] if kinds[0] == "image" else [other, right]
    assert [label for label, _ in found.pictures] == [case.place("image", n) for n in shown]
    for (_, picture), n in zip(found.pictures, shown, strict=True):
        assert np.array_equal(np.asarray(picture), np.asarray(picture_of(pixels[n])))
