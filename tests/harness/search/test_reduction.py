"""Parts of an image become flat, and ids are left out, as long as an input fails."""

from __future__ import annotations

import numpy as np

from clipcheck.harness.search.reduction import flatten, shorten


def test_only_the_part_of_an_image_that_fails_is_left() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    found = flatten(levels, lambda each: bool((each[17, 30] == levels[17, 30]).all()))
    assert (found[17, 30] == levels[17, 30]).all()
    calm = np.rint(levels.reshape(-1, 3).mean(axis=0))
    assert (found != calm).any(axis=-1).sum() <= 9


def test_only_the_ids_that_fail_are_left() -> None:
    ids = (900, *range(1, 60), 901)
    assert shorten(ids, lambda each: {7, 41} <= set(each)) == (900, 7, 41, 901)
    assert shorten(ids, lambda each: True) == (900, 901)
    assert shorten((900, 901), lambda each: True) == (900, 901)
