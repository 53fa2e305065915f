"""Deal rows that were run before once more: in batches of other sizes, alone, and often.

A row's outputs do not depend on how many rows are beside it, nor on what ran before. So rows that
have reference outputs can be run in any company, and nothing has to be computed again to judge
them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clipcheck.inputs.batches import Batch


class Row(NamedTuple):
    """A row of a batch.

    Attributes:
        batch: the batch's number.
        row: the row's, in it.
    """

    batch: int
    row: int


@dataclass(frozen=True)
class Call:
    """A method, and the rows that it is to be given.

    Attributes:
        method: ``encode_image``, ``encode_text`` or ``forward``.
        images: for the image tower.
        prompts: for the text tower.
    """

    method: str
    images: tuple[Row, ...] = ()
    prompts: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Effort:
    """How much is called.

    Attributes:
        images: the numbers of images in a batch.
        prompts: the numbers of prompts in a batch.
        squares: the numbers of both in a batch for ``forward``.
        singles: how many images, prompts and pairs are run alone, at least.
        in_form: how many rows are given in each form.
    """

    images: tuple[int, ...]
    prompts: tuple[int, ...]
    squares: tuple[int, ...]
    singles: tuple[int, int, int]
    in_form: int = 2


FULL = Effort(
    images=(3, 4, 7, 8, 9, 16, 17, 32, 33),
    prompts=(3, 4, 7, 8, 9, 16, 17, 32, 33),
    squares=(2, 3),
    singles=(40, 60, 24),
)
"""For models that take no time: with the batches themselves every size to 9, and those beside 16
and 32, where the tiles of kernels end; 124 calls of one row."""

BRIEF = Effort(images=(16,), prompts=(33,), squares=(), singles=(4, 24, 0), in_form=1)
"""For models whose rows are costly: with the batches themselves seven sizes to 8, and one above.
Prompts of every length, many of them alone, make more than 30 calls of the text tower."""


_STEP = 7
"""How far apart rows are that come one after another."""


def deal(batches: Sequence[Batch], lengths: Sequence[int], effort: Effort) -> list[Call]:
    """Calls of all methods in turn, each kind spread evenly.

    Args:
        batches: that have been run.
        lengths: the rows of `clipcheck.inputs.batches.every_length` to run, all of them, before
            other prompts. They are the batch behind the others.
        effort: how much.
    """
    images = [Row(n, i) for n, batch in enumerate(batches) for i in range(len(batch.pixels))]
    prompts = [Row(n, i) for n, batch in enumerate(batches) for i in range(len(batch.tokens))]
    by_length = [Row(len(batches), i) for i in lengths]
    image, prompt = (
        itertools.cycle(_scattered(images)),
        itertools.cycle([*_scattered(by_length), *_scattered(prompts)]),
    )
    alone, alone_prompts, pairs = effort.singles
    alone_prompts = max(alone_prompts, len(lengths) - sum(effort.prompts))
    return list(
        _interleaved(
            _encodings("encode_image", [*effort.images, *[1] * alone], image),
            _encodings("encode_text", [*effort.prompts, *[1] * alone_prompts], prompt),
            [*_squares(batches, effort.squares), *_pairs(batches, pairs)],
        )
    )


def _encodings(method: str, sizes: Iterable[int], rows: Iterator[Row]) -> list[Call]:
    kind = "images" if method == "encode_image" else "prompts"
    return [Call(method, **{kind: tuple(itertools.islice(rows, size))}) for size in sizes]


def _squares(batches: Sequence[Batch], sizes: Iterable[int]) -> Iterator[Call]:
    """Of the first rows of a batch that has enough of both: logits are compared within it."""
    for size in sizes:
        for number, batch in enumerate(batches):
            if min(len(batch.pixels), len(batch.tokens)) >= size:
                rows = tuple(Row(number, row) for row in range(size))
                yield Call("forward", rows, rows)
                break


def _pairs(batches: Sequence[Batch], count: int) -> Iterator[Call]:
    for turn in range(count):
        number = turn % len(batches)
        batch = batches[number]
        image, prompt = turn % len(batch.pixels), turn % len(batch.tokens)
        yield Call("forward", (Row(number, image),), (Row(number, prompt),))


def _scattered(rows: Sequence[Row]) -> list[Row]:
    """All of them, neighbours apart: a batch should hold what is unlike."""
    return [row for start in range(_STEP) for row in rows[start::_STEP]]


def _interleaved(*queues: Sequence[Call]) -> Iterator[Call]:
    """All calls of all queues, each queue in its order and spread over the whole."""
    placed = [
        ((place + 0.5) / len(queue), number, call)
        for number, queue in enumerate(queues)
        for place, call in enumerate(queue)
    ]
    for _, _, call in sorted(placed, key=lambda each: each[:2]):
        yield call
