"""The inputs of pins have the same bits on every machine."""

from __future__ import annotations

import numpy as np

from clipcheck.backends.signature import Input
from clipcheck.families.registry import sizes_of
from clipcheck.inputs.batches import Inputs
from clipcheck.inputs.digest import digest
from clipcheck.inputs.fixed import (
    COLOURS,
    SAMPLE,
    SIZES,
    Prompts,
    counts,
    draw_prompts,
    edge_cases,
    sample,
)
from clipcheck.inputs.rules import CLIP_IMAGES
from tests.samples import MINUTE

ROWS = sum(prompts for _, prompts in counts(SAMPLE))
BLANK = Prompts(np.zeros((ROWS, 8), dtype=np.int32), ("",) * ROWS)


def test_the_inputs_of_older_pins_can_still_be_drawn() -> None:
    # Where these differ, no pin that was written before can be used any more.
    found = [draw(33, CLIP_IMAGES, 3, BLANK) for draw in (edge_cases, sample)]
    assert [digest(each) for each in found] == [
        "7c25f798994f8f65109347a48e8c6f1a",
        "e141a18e66f9ddf42597097c85da02b8",
    ]


def test_another_seed_draws_as_many_other_inputs() -> None:
    one, other = (sample(16, CLIP_IMAGES, seed, BLANK) for seed in (0, 1))
    assert sum(len(batch.pixels) for batch in one) == sum(len(b.tokens) for b in one) == SAMPLE
    assert not np.array_equal(one[0].pixels, other[0].pixels)
    assert len({row.tobytes() for batch in one for row in batch.pixels}) == SAMPLE


def test_a_larger_sample_begins_with_the_smaller_one() -> None:
    few, more = (
        draw_prompts(Inputs(resolution=32, context_length=77, vocab_size=49408, grid=4), 0, rows)
        for rows in (SAMPLE, SAMPLE + 9)
    )
    drawn = [sample(32, CLIP_IMAGES, 0, each) for each in (few, more)]
    first, longer = (np.concatenate([b.pixels for b in each]) for each in drawn)
    assert len(longer) == SAMPLE + 9
    assert np.array_equal(longer[:SAMPLE], first)
    assert np.array_equal(more.tokens[: len(few.tokens)], few.tokens)


def test_a_program_that_takes_colours_gets_the_same_images() -> None:
    given = Input(name="pixels", kind="pixels", dtype="uint8", sizes=sizes_of(MINUTE), colours=True)
    found = edge_cases(32, CLIP_IMAGES, 0, BLANK)
    for batch in found[:COLOURS]:
        assert np.array_equal(given.seen(batch.pixels), batch.pixels)
    (beyond,) = found[COLOURS:]
    assert not beyond.pixels[0].any()
    assert np.abs(beyond.pixels[1]).max() > 2.2


def test_prompts_are_captions_if_the_tokenizer_is_available() -> None:
    drawn = draw_prompts(
        Inputs(resolution=32, context_length=77, vocab_size=49408, grid=4), 0, SAMPLE
    )
    assert drawn.tokens.shape == (ROWS, 77)
    (batch, *_) = sample(32, CLIP_IMAGES, 0, drawn)
    colour, shape = batch.rows["image"][0].split()
    assert colour in batch.rows["prompt"][0]
    assert shape in batch.rows["prompt"][0]
    assert batch.first_rows == {
        kind: sum(n) for kind, n in zip(batch.rows, zip(*SIZES, strict=True), strict=True)
    }
    ids = draw_prompts(Inputs(resolution=32, context_length=16, vocab_size=900, grid=4), 0, SAMPLE)
    assert ids.tokens.max() == 899
    assert not any("'" in name for name in ids.names)
