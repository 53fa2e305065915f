from __future__ import annotations

import numpy as np
import pytest

from clipcheck.inputs.batches import MOST_ROWS, Batch, batches
from clipcheck.inputs.tokenizer import END_TOKEN, VOCABULARY_SIZE, tokenize


def draw(examples: int, seed: int = 0, vocab_size: int = VOCABULARY_SIZE) -> list[Batch]:
    return list(
        batches(examples, resolution=32, context_length=77, vocab_size=vocab_size, seed=seed)
    )


@pytest.mark.parametrize("examples", [1, MOST_ROWS, MOST_ROWS + 1, 20])
def test_there_are_as_many_images_as_asked_for_and_one_prompt_more_in_each_batch(
    examples: int,
) -> None:
    drawn = draw(examples)
    assert sum(len(batch.pixels) for batch in drawn) == examples
    for batch in drawn:
        assert 1 <= len(batch.pixels) <= MOST_ROWS
        assert len(batch.tokens) == len(batch.prompts) == len(batch.pixels) + 1


def test_pixels_and_tokens_are_as_a_model_takes_them() -> None:
    (batch,) = draw(4)
    assert batch.pixels.shape == (4, 3, 32, 32)
    assert batch.pixels.dtype == np.float32
    assert batch.tokens.shape == (5, 77)
    assert batch.tokens.dtype == np.int32
    assert (batch.tokens == tokenize(list(batch.prompts)).numpy()).all()


def test_the_images_differ_from_each_other_and_so_do_the_prompts() -> None:
    (batch,) = draw(8)
    assert len({image.tobytes() for image in batch.pixels}) == 8
    assert len(set(batch.prompts)) > 4


def test_rows_are_numbered_through_all_batches() -> None:
    assert [batch.first_rows for batch in draw(20)] == [
        {"image": 0, "prompt": 0},
        {"image": 8, "prompt": 9},
        {"image": 16, "prompt": 18},
    ]


def test_the_same_seed_gives_the_same_batches_and_another_gives_others() -> None:
    first, again, other = draw(20, seed=1), draw(20, seed=1), draw(20, seed=2)
    for one, two, three in zip(first, again, other, strict=True):
        assert (one.pixels == two.pixels).all()
        assert one.prompts == two.prompts
        assert (one.pixels != three.pixels).any()


def test_a_vocabulary_that_is_not_clips_gets_ids_of_its_own() -> None:
    (batch,) = draw(8, vocab_size=100)
    assert batch.prompts == ()
    assert batch.tokens.shape == (9, 77)
    assert batch.tokens.max() == 99
    assert (np.sort(batch.tokens, axis=1)[:, -1] == 99).all()
    assert ((batch.tokens == 99).sum(axis=1) == 1).all()


def test_prompts_end_with_the_end_token() -> None:
    (batch,) = draw(6)
    assert (batch.tokens.max(axis=1) == END_TOKEN).all()


def test_five_images_are_one_of_each_kind_and_five_prompts_too() -> None:
    (batch,) = draw(5)
    flat = [bool(np.ptp(image, axis=(1, 2)).max() < 1e-6) for image in batch.pixels]
    assert flat == [False, False, False, False, True]
    assert batch.prompts[4] == ""
    assert sum("a photo of" in prompt for prompt in batch.prompts[:5]) == 1


def test_batches_go_on_with_other_images_than_those_before() -> None:
    first, second, _ = draw(20)
    assert not {i.tobytes() for i in first.pixels} & {i.tobytes() for i in second.pixels}
