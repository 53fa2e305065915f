"""Shrink a failing input that nothing drew: the user's own image or prompt.

Hypothesis shrinks what it draws. Here, parts of an image become flat and parts of a prompt are left
out, large ones first, as long as it fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipcheck.harness.search.probe import Probe, worst
from clipcheck.inputs.examples import Example, Preprocessing, batch, spelled

_SECONDS = 60.0
"""Time limit."""

_FINEST = 16
"""Smallest part of an image that becomes flat: this share of its side."""

Levels = NDArray[np.uint8]


def reduce(example: Example, probe: Probe, preprocessing: Preprocessing) -> Example | None:
    """Return a smaller image or prompt that fails alone, or None if the given one does not.

    Args:
        example: one RGB image, or one prompt as ids.

    Raises:
        RunError: the eager model cannot be run.
    """
    deadline = time.monotonic() + _SECONDS

    def fails(tried: Example) -> bool:
        if time.monotonic() > deadline:
            return False
        return worst(probe.measure(batch(tried, preprocessing))).margin > 1

    if not fails(example):
        return None
    if example.images:
        levels = np.asarray(example.images[0])
        found = flatten(levels, lambda each: fails(Example(images=(Image.fromarray(each),))))
        return Example(images=(Image.fromarray(found),))
    (ids,) = example.prompts
    if isinstance(ids, str):
        raise TypeError("expected a prompt as ids, found a text")
    return spelled(
        Example(prompts=(shorten(ids, lambda each: fails(Example(prompts=(tuple(each),)))),)),
        preprocessing,
    )


def flatten(levels: Levels, fails: Callable[[Levels], bool]) -> Levels:
    """Give parts of an image [H, W, 3] its mean colour, as long as it fails: first all of it, then
    quarters, then quarters of these."""
    calm = np.rint(levels.reshape(-1, 3).mean(axis=0)).astype(np.uint8)
    found, side = levels, max(levels.shape[:2])
    size = side
    while size >= max(1, side // _FINEST):
        for top in range(0, levels.shape[0], size):
            for left in range(0, levels.shape[1], size):
                part = (slice(top, top + size), slice(left, left + size))
                if (found[part] == calm).all():
                    continue
                tried = found.copy()
                tried[part] = calm
                if fails(tried):
                    found = tried
        size = -(-size // 2) if size > 1 else 0
    return found


def shorten(ids: Sequence[int], fails: Callable[[Sequence[int]], bool]) -> tuple[int, ...]:
    """Leave out ids between the first and the last, as long as the prompt fails: first all, then
    halves, then halves of these."""
    found = tuple(ids)
    size = len(found) - 2
    while size > 0:
        place = 1
        while place < len(found) - 1:
            tried = (*found[:place], *found[min(place + size, len(found) - 1) :])
            if fails(tried):
                found = tried
            else:
                place += size
        size //= 2
    return found
