from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from clipcheck.harness.search.source import Pool, Source
from clipcheck.inputs.batches import MOST_ROWS, Inputs
from clipcheck.inputs.examples import Example, Preprocessing, batch, prompts_beside
from tests.thorough import parametrize

CLIP = Inputs(resolution=32, context_length=77, vocab_size=49408, grid=4)
OTHER = Inputs(resolution=16, context_length=8, vocab_size=100, grid=2)
NUMBERS = Pool("numbers", st.integers(0, 10_000).map(lambda n: Example(prompts=((0, n),))))


@pytest.fixture(autouse=True)
def _database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", str(tmp_path))


def numbers(examples: list[Example]) -> list[int]:
    return [int(example.prompts[0][1]) for example in examples]


def in_the_database(name: str, tmp_path: Path) -> bool:
    """Whether the failure saved for this checkpoint is drawn again."""
    return max(numbers(Source(CLIP, name, seed=9).gather(NUMBERS, 1))) >= 5000


def same(one: Example, other: Example) -> bool:
    a, b = (batch(example, Preprocessing(32, 77)) for example in (one, other))
    return np.array_equal(a.pixels, b.pixels) and np.array_equal(a.tokens, b.tokens)


@pytest.mark.thorough
def test_as_many_images_and_prompts_are_drawn_as_requested() -> None:
    drawn = Source(CLIP, "x.pt", seed=0).draw(20)
    assert len(drawn.images) == 20
    assert len(drawn.prompts) == prompts_beside(20)


@pytest.mark.parametrize("images", [0, -3])
def test_zero_examples_can_be_requested(images: int) -> None:
    assert Source(CLIP, "x.pt", seed=0).draw(images) == Example()


@pytest.mark.parametrize("images", [1, 2, 3])
def test_few_examples_can_be_requested(images: int) -> None:
    source = Source(CLIP, "x.pt", seed=0)
    drawn = source.draw(images)
    assert (len(drawn.images), len(drawn.prompts)) == (images, prompts_beside(images))


def test_the_seed_decides_which_examples_are_drawn() -> None:
    first = Source(CLIP, "x.pt", seed=0).draw(16)
    assert same(first, Source(CLIP, "y.pt", seed=0).draw(16))
    assert not same(first, Source(CLIP, "x.pt", seed=1).draw(16))


def test_prompts_are_texts_and_ids_in_turn() -> None:
    drawn = Source(CLIP, "x.pt", seed=0).draw(8)
    assert [isinstance(prompt, str) for prompt in drawn.prompts] == [True, False] * 3 + [True]


def test_another_vocabulary_has_ids_alone_that_fit_it() -> None:
    drawn = Source(OTHER, "x.pt", seed=0).draw(8)
    for prompt in drawn.prompts:
        assert isinstance(prompt, tuple)
        assert len(prompt) <= 8
        assert (prompt[0], prompt[-1]) == (98, 99)


def test_requested_examples_are_counted_by_pool() -> None:
    assert Source(CLIP, "x.pt", seed=0).counts(16) == {"image": 16, "text": 7, "ids": 7}
    assert Source(OTHER, "x.pt", seed=0).counts(16) == {"image": 16, "ids": 14}


def test_a_search_for_a_condition_sees_the_drawn_examples() -> None:
    source, seen = Source(CLIP, "x.pt", seed=3), []
    gathered = source.gather(NUMBERS, 40)
    assert source.find(NUMBERS, lambda example: bool(seen.append(example)), 40) is None
    assert numbers(gathered) == numbers(seen)
    assert 36 <= len(gathered) <= 40


def test_a_search_returns_the_smallest_example() -> None:
    found = Source(CLIP, "x.pt", seed=0).find(NUMBERS, lambda e: e.prompts[0][1] >= 5000, 50)
    assert numbers([found]) == [5000]


def test_a_search_without_a_match_returns_nothing() -> None:
    assert Source(CLIP, "x.pt", seed=0).find(NUMBERS, lambda _: False, 20) is None


def test_examples_that_failed_before_are_run_again_for_the_same_checkpoint(
    tmp_path: Path,
) -> None:
    assert not in_the_database("x.pt", tmp_path)
    Source(CLIP, "x.pt", seed=0).find(NUMBERS, lambda e: e.prompts[0][1] >= 5000, 50)
    for _ in range(20):
        # Each look tries a few of what was kept, and would clear them away.
        Source(CLIP, "x.pt", seed=1).gather(NUMBERS, 50)
    assert in_the_database("x.pt", tmp_path)
    assert not in_the_database("y.pt", tmp_path)


def test_examples_that_failed_before_replace_no_others() -> None:
    source = Source(CLIP, "x.pt", seed=0)
    before = numbers(source.gather(NUMBERS, 20))
    source.find(NUMBERS, lambda e: e.prompts[0][1] >= 5000, 50)
    after = numbers(source.gather(NUMBERS, 20))
    assert after[: len(before)] == before
    assert 5000 in after[len(before) :]


def test_saved_examples_that_no_longer_fit_are_ignored() -> None:
    source = Source(CLIP, "x.pt", seed=0)
    source.find(NUMBERS, lambda e: e.prompts[0][1] >= 5000, 50)
    none = Pool("numbers", st.integers().filter(lambda _: False).map(lambda n: Example()))
    assert source._try_again(none, lambda _: True, 20, source._database(none)) is None


@parametrize(("kind", "sides"), [("image", "i"), ("prompt", "p"), ("pair", "ip")])
def test_examples_drawn_together_fill_one_batch_of_their_kind(kind: str, sides: str) -> None:
    source = Source(CLIP, "x.pt", seed=0)
    sizes = {
        (len(example.images), len(example.prompts))
        for example in source.gather(source.together(kind), 40)  # type: ignore[arg-type]
    }
    for n, m in sizes:
        assert (n > 0, m > 0) == ("i" in sides, "p" in sides)
        assert max(n, m) <= MOST_ROWS
    assert max(n + m for n, m in sizes) > 3


def test_the_profile_for_ci_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import hypothesis

    before = Source(CLIP, "x.pt", seed=4).gather(NUMBERS, 20)
    profile = hypothesis.settings.get_current_profile_name()
    hypothesis.settings.register_profile("as-in-ci", derandomize=True, database=None)
    try:
        hypothesis.settings.load_profile("as-in-ci")
        assert numbers(Source(CLIP, "x.pt", seed=4).gather(NUMBERS, 20)) == numbers(before)
    finally:
        hypothesis.settings.load_profile(profile)
