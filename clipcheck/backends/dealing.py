"""Run a model that takes a fixed number of rows on any number: in batches of that size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import numpy as np

from clipcheck.backends.calling import Array, Named
from clipcheck.errors import RunError
from clipcheck.gates.result import OUTPUTS

SIZES = (1, 2, 3, 4, 8, 16, 32)
"""Numbers of images and texts to try with a model that fails."""

Given = Mapping[str, Array]
"""Inputs by ``image`` and ``prompt``, or by one of them."""

Sizes = Mapping[str, int | None]
"""Rows of a batch, by the same; None for any number."""


def run_in_batches(
    run: Callable[..., Named], given: Given, sizes: Sizes, *, least: int = 1, pairs: bool = True
) -> Named:
    """Return all outputs of any number of rows, by name.

    Args:
        run: takes the arrays of ``given`` in its order, of one batch.
        given: the rows.
        sizes: of batches. The last batch is filled with its last row, and the result is cut.
        least: rows that it takes at least.
        pairs: whether it may give logits, so that each batch of images runs with each of texts.
    """
    parts = {kind: batches_of(rows, sizes.get(kind), least) for kind, rows in given.items()}
    numbers = {kind: range(len(each)) for kind, each in parts.items()}
    found = {
        place: run(*(each[n] for each, n in zip(parts.values(), place, strict=True)))
        for place in itertools.product(*numbers.values())
        if pairs or sum(map(bool, place)) < 2
    }
    result = {}
    for name in next(iter(found.values())):
        rows, columns = OUTPUTS[name]
        whole = np.block(
            [
                [
                    found[tuple({rows: i, columns: j}.get(kind, 0) for kind in parts)][name]
                    for j in numbers.get(columns, (0,))
                ]
                for i in numbers[rows]
            ]
        )
        width = len(given[columns]) if columns in given else whole.shape[-1]
        result[name] = whole[: len(given[rows]), :width]
    return result


def batches_of(rows: Array, size: int | None, least: int = 1) -> list[Array]:
    """Cut rows into batches of one size, or leave them whole, of the least number or more. The last
    batch is filled with its last row."""
    found = [rows] if size is None else [rows[n : n + size] for n in range(0, len(rows), size)]
    missing = max(0, (size or least) - len(found[-1]))
    return [*found[:-1], np.concatenate([found[-1], *[found[-1][-1:]] * missing])]


def sizes_to_try(kinds: int) -> Iterator[tuple[int, ...]]:
    """Yield numbers of rows of each kind of input: as many of each first."""
    yield from ((size,) * kinds for size in SIZES)
    yield from itertools.permutations(SIZES, kinds) if kinds > 1 else ()


def fixed_sizes(run: Callable[..., Named], given: Given) -> Sizes:
    """Find the only numbers of rows with which a failing model runs; nothing if there are none, or
    if it also runs with another number of each."""

    def runs(sizes: tuple[int, ...]) -> bool:
        taken = zip(given.values(), sizes, strict=True)
        with suppress(RunError):
            run(*(np.resize(rows, (size, *rows.shape[1:])) for rows, size in taken))
            return True
        return False

    sizes = next(filter(runs, sizes_to_try(len(given))), None)
    if sizes is None:
        return {}
    fixed = {
        kind: None if runs((*sizes[:at], sizes[at] + 2, *sizes[at + 1 :])) else sizes[at]
        for at, kind in enumerate(given)
    }
    return fixed if any(fixed.values()) else {}
