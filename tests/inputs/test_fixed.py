"""The inputs of pins have the same bits on every machine."""

from __future__ import annotations

import numpy as np

from clipcheck.backends.signature import Input
from clipcheck.families.registry import sizes_of
from clipcheck.inputs.batches import Inputs
from clipcheck.inputs.digest import digest
from clipcheck.inputs.fixed import (
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

ROWS = sum(prompts for _, prompts in counts())
BLANK = Prompts(np.zeros((ROWS, 8), dtype=np.int32), ("",) * ROWS)


def test_the_inputs_of_older_pins_can_still_be_drawn() -> None:
    # Where these differ, no pin that was written before can be used any more.
    found = [draw(33, CLIP_IMAGES, 3, BLANK) for draw in (edge_cases, sample)]
    assert [digest(each) for each in found] == [
        "2cb66b382ba6f8f9f88acb0f58d77b88",
        "e141a18e66f9ddf42597097c85da02b8",
    ]


def test_another_seed_draws_as_many_other_inputs() -> None:
    one, other = (sample(16, CLIP_IMAGES, seed, BLANK) for seed in (0, 1))
    assert sum(len(batch.pixels) for batch in one) == sum(len(b.tokens) for b in one) == SAMPLE
    assert not np.array_equal(one[0].pixels, other[0].pixels)
    assert len({row.tobytes() for batch in one for row in batch.pixels}) == SAMPLE


def test_a_program_that_takes_colours_gets_the_same_images() -> None:
    given = Input("pixels", "pixels", "uint8", sizes_of(MINUTE), colours=True)
    for batch in edge_cases(32, CLIP_IMAGES, 0, BLANK):
        assert np.array_equal(given.seen(batch.pixels), batch.pixels)


def test_prompts_are_captions_if_the_tokenizer_is_available() -> None:
    drawn = draw_prompts(Inputs(32, 77, 49408, 4), 0)
    assert drawn.tokens.shape == (ROWS, 77)
    (batch, *_) = sample(32, CLIP_IMAGES, 0, drawn)
    colour, shape = batch.rows["image"][0].split()
    assert colour in batch.rows["prompt"][0]
    assert shape in batch.rows["prompt"][0]
    assert batch.first_rows == {
        kind: sum(n) for kind, n in zip(batch.rows, zip(*SIZES, strict=True), strict=True)
    }
    ids = draw_prompts(Inputs(32, 16, 900, 4), 0)
    assert ids.tokens.max() == 899
    assert not any("'" in name for name in ids.names)
