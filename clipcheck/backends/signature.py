"""Which input and which output of a program is what: by name, else by shape.

Programs come from clipcheck and from other exporters, which have names of their own. Nothing is
guessed: what cannot be told is missing, and the gate ``integrity`` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipcheck.backends.calling import Array, Named, Pixels, Tokens
from clipcheck.errors import ArchitectureError, CheckpointError
from clipcheck.families.sizes import HasSizes
from clipcheck.gates.result import OUTPUTS

_INPUTS = {
    "pixels": "pixels",
    "pixel_values": "pixels",
    "image": "pixels",
    "images": "pixels",
    "tokens": "tokens",
    "input_ids": "tokens",
    "text": "tokens",
    "texts": "tokens",
    "attention_mask": "mask",
}
"""Kind of an input, by its name: clipcheck's names, those of transformers and Optimum, and those of
the reference package and open_clip."""

_NORMALISED = {"image_embeds": "image_features", "text_embeds": "text_features"}
"""Outputs of transformers' ``CLIPModel`` that are features of length 1, and of which."""

_RANKS = {"pixels": 4, "tokens": 2, "mask": 2}

_PROBE = (2, 3)
"""Images and texts that are run to tell outputs by their shapes: two numbers, and no dimension of
features, which come in multiples of 64."""


@dataclass(frozen=True)
class Declared:
    """An input as a program declares it.

    Attributes:
        name: as the program has it.
        shape: an integer for each dimension that is fixed, else None; None where nothing is said.
        dtype: as numpy names it.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str


@dataclass(frozen=True)
class Input:
    """An input that is known.

    Attributes:
        name: as the program has it.
        kind: ``pixels``, ``tokens``, or ``mask`` (1 up to the end-of-text token, 0 behind it).
        dtype: as numpy names it.
    """

    name: str
    kind: str
    dtype: str

    def value(self, pixels: Pixels, tokens: Tokens) -> NDArray[Any]:
        """Return the value of this input for these pixels [N, 3, R, R] and ids [M, L]."""
        found: NDArray[Any] = pixels
        if self.kind == "tokens":
            found = tokens
        elif self.kind == "mask":
            places = np.arange(tokens.shape[1])
            found = places <= tokens.argmax(axis=1)[:, np.newaxis]
        return np.ascontiguousarray(found, dtype=self.dtype)


def inputs(
    declared: Sequence[Declared], architecture: HasSizes, path: Path, *, any_size: bool = True
) -> tuple[Input, ...]:
    """Tell the inputs of a program apart.

    Args:
        declared: all, in the program's order.
        architecture: what the program is to be a model of.
        any_size: whether it has to take any number of images and texts.

    Raises:
        CheckpointError: one of them is nothing that clipcheck has, or pixels or ids have no place.
        ArchitectureError: one has another shape than that architecture's.
    """
    found = tuple(Input(each.name, _kind(each, path), each.dtype) for each in declared)
    kinds = [each.kind for each in found]
    if sorted(set(kinds) - {"mask"}) != ["pixels", "tokens"] or len(set(kinds)) < len(kinds):
        names = ", ".join(each.name for each in declared) or "nothing"
        raise CheckpointError(
            f"expected a program of pixels and ids, found one that takes {names}",
            remedy="Export both towers as one program, which takes pixels and tokens.",
            path=path,
        )
    for each, known in zip(declared, found, strict=True):
        _require_shape(each, known.kind, architecture, path)
    if any_size:
        kinds_of = {known.kind: each for each, known in zip(declared, found, strict=True)}
        _require_any_size(kinds_of, path)
    return found


def _require_any_size(declared: Mapping[str, Declared], path: Path) -> None:
    told = []
    for kind, noun in (("pixels", "image"), ("tokens", "text")):
        shape = declared[kind].shape
        if shape and shape[0] is not None:
            told.append(f"{shape[0]} {noun}" if shape[0] == 1 else f"{shape[0]} {noun}s")
    if told:
        raise CheckpointError(
            f"it takes batches of exactly {' and '.join(told)}; what is judged runs at many sizes",
            remedy=to_any_size(*(declared[kind].name for kind in ("pixels", "tokens"))),
            path=path,
        )


def to_any_size(pixels: str, tokens: str) -> str:
    """How to make a program that takes any number of images and texts, by its inputs' names."""
    return (
        "Export it for any number of them, by torch.export.export or by torch.onnx.export with "
        f'dynamo=True: dynamic_shapes={{"{pixels}": {{0: Dim("images", min=1)}}, "{tokens}": '
        '{0: Dim("texts", min=1)}}. clipcheck convert writes such programs, too.'
    )


def _kind(declared: Declared, path: Path) -> str:
    kind = _INPUTS.get(declared.name.lower())
    rank = None if declared.shape is None else len(declared.shape)
    if kind is None and rank is not None:
        whole = declared.dtype.startswith("int")
        kind = {(4, False): "pixels", (2, True): "tokens"}.get((rank, whole))
    if kind is None:
        raise CheckpointError(
            f"its input {declared.name!r} is none that a CLIP model has",
            remedy=f"Name its inputs as one of: {', '.join(_INPUTS)}.",
            path=path,
        )
    return kind


def _require_shape(declared: Declared, kind: str, a: HasSizes, path: Path) -> None:
    side = a.image_resolution
    sizes = (3, side, side) if kind == "pixels" else (a.context_length,)
    shape = declared.shape
    if shape is None:
        return
    if len(shape) == _RANKS[kind] and all(
        size is None or size == wanted for size, wanted in zip(shape[1:], sizes, strict=True)
    ):
        return
    raise ArchitectureError(
        f"its input {declared.name!r} has shape {_written(shape)}, "
        f"expected {_written((None, *sizes))}",
        remedy="Give the reference that it was made of.",
        path=path,
    )


def _written(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"


Raw = Sequence[tuple[str | None, Array]]
"""Outputs of a program, in its order, with the names where it has any."""


@dataclass(frozen=True)
class Outputs:
    """Which of a program's outputs is what.

    Attributes:
        places: by name of `OUTPUTS`, its number in the program's order.
        doubts: what is there in another form than it has to be compared in.
        absent: outputs that the program does not have: nothing that it gives has their shape.
    """

    places: Mapping[str, int]
    doubts: Sequence[str] = ()
    absent: frozenset[str] = frozenset()

    def named(self, raw: Raw) -> Named:
        """The outputs that are known."""
        return {name: raw[place][1] for name, place in self.places.items()}


def probe(architecture: HasSizes) -> tuple[Pixels, Tokens]:
    """Inputs whose outputs `outputs` tells apart."""
    return blank(architecture, *_PROBE)


def blank(architecture: HasSizes, images: int, texts: int) -> tuple[Pixels, Tokens]:
    """Inputs of zeros."""
    a = architecture
    pixels = np.zeros((images, 3, a.image_resolution, a.image_resolution), dtype=np.float32)
    return pixels, np.zeros((texts, a.context_length), dtype=np.int32)


def outputs(raw: Raw, architecture: HasSizes) -> Outputs:
    """Tell the outputs of a program apart.

    One is told by its name, or else by its shape, where it alone has that shape and no name says
    otherwise.

    Args:
        raw: what the program makes of `probe`.
        architecture: what the program is a model of.
    """
    names = [name for name, _ in raw]
    places = {name: names.index(name) for name in OUTPUTS if name in names}
    images, texts = _PROBE
    width = architecture.embed_dim
    shapes = {
        "image_features": (images, width),
        "text_features": (texts, width),
        "logits_per_image": (images, texts),
        "logits_per_text": (texts, images),
    }
    for name, shape in shapes.items():
        alike = [
            place
            for place, (called, array) in enumerate(raw)
            if array.shape == shape and called not in _NORMALISED and place not in places.values()
        ]
        if name not in places and len(alike) == 1:
            places[name] = alike[0]
    doubts = [
        f"the program gives {normalised}, which are normalised, and no {name}"
        for normalised, name in _NORMALISED.items()
        if normalised in names and name not in places
    ]
    given = {array.shape for _, array in raw}
    absent = (name for name in OUTPUTS if name not in places and shapes[name] not in given)
    known = {name: places[name] for name in OUTPUTS if name in places}
    return Outputs(known, doubts, frozenset(absent))
