"""Choose rows to run again: in batches of other sizes, alone, and often.

A row's outputs must not depend on the other rows of its batch, nor on earlier calls. So rows can
run again in any batch, and the reference outputs are already known.
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
        batch: number of the batch.
        row: number of the row in it.
    """

    batch: int
    row: int


@dataclass(frozen=True)
class Call:
    """A method and its rows.

    Attributes:
        method: ``encode_image``, ``encode_text`` or ``forward``.
        images: for the image tower.
        prompts: for the text tower.
    """

    method: str
    images: tuple[Row, ...] = ()
    prompts: tuple[Row, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Amount of further calls.

    Attributes:
        images: batch sizes for images.
        prompts: batch sizes for prompts.
        squares: sizes of batches for ``forward`` with as many images as prompts.
        singles: least numbers of images, prompts and pairs that run alone.
        in_form: number of rows in each form of the inputs.
        at_once: how often the first batch runs again before the second one.
    """

    images: tuple[int, ...]
    prompts: tuple[int, ...]
    squares: tuple[int, ...]
    singles: tuple[int, int, int]
    in_form: int = 2
    at_once: int = 2


FULL = Effort(
    images=(3, 4, 7, 8, 9, 16, 17, 32, 33),
    prompts=(3, 4, 7, 8, 9, 16, 17, 32, 33),
    squares=(2, 3),
    singles=(40, 60, 24),
)
"""For fast models: with the batches themselves every size up to 9, and sizes next to 16 and 32,
where the tiles of kernels end; 124 calls with one row."""

BRIEF = Effort(images=(16,), prompts=(16, 33), squares=(), singles=(2, 20, 0), in_form=1, at_once=1)
"""For slow models: with the batches themselves seven sizes up to 8, and one or two above. Prompts
of every length, many of them alone, need more than 20 calls of the text tower. In each, a program
of both towers runs an image as well. The batches have one image and one prompt alone already."""


_STEP = 7
"""Distance of consecutive rows."""


def deal(batches: Sequence[Batch], lengths: Sequence[int], effort: Effort) -> list[Call]:
    """Return calls of all methods in turn, each kind spread evenly.

    Args:
        batches: that ran already.
        lengths: rows of `clipcheck.inputs.batches.every_length`; all run, before other prompts.
            Their batch number follows the others.
        effort: amount of calls.
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
    """Yield calls with the first rows of a batch that has enough images and prompts."""
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
    """Return all rows with neighbours apart: a batch should have different rows."""
    return [row for start in range(_STEP) for row in rows[start::_STEP]]


def _interleaved(*queues: Sequence[Call]) -> Iterator[Call]:
    """Yield all calls of all queues, each queue in order and spread evenly."""
    placed = [
        ((place + 0.5) / len(queue), number, call)
        for number, queue in enumerate(queues)
        for place, call in enumerate(queue)
    ]
    for _, _, call in sorted(placed, key=lambda each: each[:2]):
        yield call
