from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipcheck.harness.search.inputs import Drawn, Wanted, draw
from clipcheck.harness.search.source import Source
from clipcheck.inputs.batches import Inputs, batches, exhaustive
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.inputs.examples import Example, Preprocessing

MINUTE = Inputs(resolution=16, context_length=8, vocab_size=100, grid=2)


@pytest.fixture(autouse=True)
def _database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", str(tmp_path))


def drawn(examples: int, *, exhaustive: bool = False) -> Drawn:
    return draw(Wanted(examples, exhaustive, 3, "x.pt"), MINUTE)


@pytest.mark.parametrize("examples", [1, 5, EDGE_CASES, EDGE_CASES + 1, EDGE_CASES + 17])
def test_as_many_images_are_drawn_as_requested(examples: int) -> None:
    assert drawn(examples).images == examples


def test_the_edge_cases_come_first() -> None:
    edge_cases, found = list(batches(EDGE_CASES, MINUTE, 3)), drawn(EDGE_CASES + 10)
    for expected, batch in zip(edge_cases, found.batches, strict=False):
        assert np.array_equal(expected.pixels, batch.pixels)
        assert np.array_equal(expected.tokens, batch.tokens)


def test_without_random_ones_hypothesis_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcheck.harness.search.source.Source.gather", None)
    assert drawn(EDGE_CASES).random == Example()


def test_random_ones_follow_and_all_are_numbered() -> None:
    found = drawn(EDGE_CASES + 10)
    assert len(found.random.images) == 10
    n = m = 0
    for batch in found.batches:
        assert batch.first_rows == {"image": n, "prompt": m}
        n, m = n + len(batch.pixels), m + len(batch.tokens)
    last = np.concatenate([batch.pixels for batch in found.batches])[EDGE_CASES:]
    assert np.array_equal(last, [Preprocessing(16, 8).pixels(i) for i in found.random.images])


@pytest.mark.parametrize(("examples", "asked"), [(3, 0), (EDGE_CASES, 0), (EDGE_CASES + 10, 10)])
def test_the_requested_number_is_recorded_even_if_fewer_are_drawn(
    monkeypatch: pytest.MonkeyPatch, examples: int, asked: int
) -> None:
    """The search draws the very same again, which takes the same number."""
    monkeypatch.setattr(Source, "draw", lambda self, images: Example())
    assert drawn(examples).asked == asked


def test_an_exhaustive_walk_comes_last() -> None:
    walk = list(exhaustive(MINUTE))
    found = drawn(EDGE_CASES + 1, exhaustive=True).batches
    assert len(found) == 5 + 1 + len(walk)
    assert np.array_equal(found[-1].tokens, walk[-1].tokens)


def test_raw_inputs_of_another_form_are_reported() -> None:
    found = drawn(EDGE_CASES + 3)
    assert found.unlike(Preprocessing(16, 8)) == []
    assert len(found.unlike(Preprocessing(17, 8))) == 1
