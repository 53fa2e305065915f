"""Identify the inputs and outputs of a program by the user's option, by name, else by shape.

Exporters use different names. Nothing is guessed: if there are several possibilities, the user must
choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipcheck.backends.calling import Array, Named, Pixels, Rows, Tokens
from clipcheck.errors import ArchitectureError, CheckpointError, UsageError
from clipcheck.families.sizes import HasSizes, Sizes
from clipcheck.gates.result import FEATURES, MEANT, OUTPUTS
from clipcheck.gates.weights import Stored, exact, rounded
from clipcheck.inputs.batches import length_of

INPUTS = {"pixels": "pixels", "tokens": "ids", "mask": "attention mask", "positions": "positions"}
"""The kinds of inputs, each with its name in messages."""

COLOURS, LEVELS = "colours", "levels"
"""Meanings of pixels that are the image's colours, which the program normalises: from 0 to 1, or to
255 as in uint8. Floating-point pixels have these meanings only if the user says so."""

MEANINGS = (*INPUTS, COLOURS, LEVELS, *OUTPUTS)
"""All meanings that an input or output may be given by the user."""

_COLOUR_ROUNDING = 0.02
"""Greatest difference of normalised pixels of one 8-bit colour."""

ASKED = "--map"
"""The option for the meaning of an input or output."""

_NAMES = {
    # clipcheck
    "pixels": "pixels",
    "tokens": "tokens",
    **{name: name for name in OUTPUTS},
    # transformers, optimum, transformers.js
    "pixel_values": "pixels",
    "input_ids": "tokens",
    "attention_mask": "mask",
    "position_ids": "positions",
    "image_embeds": "image_features",
    "text_embeds": "text_features",
    # the reference package, open_clip, Immich
    "image": "pixels",
    "images": "pixels",
    "text": "tokens",
    "texts": "tokens",
    # sentence-transformers and others
    "image_embeddings": "image_features",
    "image_embedding": "image_features",
    "text_embeddings": "text_features",
    "text_embedding": "text_features",
    "sentence_embedding": "text_features",
}
"""Meaning of an input or output, by its name in exporters. Of several outputs with the same meaning
the first in this order is used. ``embedding`` (Immich) and ``output`` are identified by the
program's tower."""

_OTHERS = ("last_hidden_state", "token_embeddings", "logit_scale", "logit_bias")
"""Outputs of exporters that clipcheck does not compare."""

_RANKS = {"pixels": 4, "tokens": 2, "mask": 2, "positions": 2}

PROBE = (2, 3)
"""Numbers of images and texts to identify outputs by their shapes: two different numbers, neither a
width of features, which is a multiple of 64."""

_UNIT = 5e-3
"""Greatest difference from 1 of the length of normalised features: the error of a norm in
bfloat16."""


@dataclass(frozen=True)
class Declared:
    """An input as a program declares it.

    Attributes:
        shape: an integer for each fixed dimension, else None; None if the shape is unknown.
        dtype: numpy's name; empty if unknown.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Input:
    """An identified input.

    Attributes:
        name: in the program.
        dtype: numpy's name.
        sizes: of the model, with its rules for pixels and ids.
        batch: number of rows that it takes; None for any.
        channels_last: whether pixels are [N, R, R, 3].
        colours: whether pixels are `COLOURS` or `LEVELS`.
        levels: whether they are `LEVELS`, as they are in uint8.
    """

    name: str
    kind: str
    dtype: str
    sizes: Sizes
    batch: int | None = None
    channels_last: bool = False
    colours: bool = False
    levels: bool = False

    @property
    def rounds(self) -> bool:
        """Whether pixels in float32 are changed to be its value."""
        return self.kind == "pixels" and (self.colours or self.dtype != "float32")

    def value(self, pixels: Pixels, tokens: Tokens) -> NDArray[Any]:
        """Return the value of this input for these pixels [N, 3, R, R] and ids [M, L]."""
        found: NDArray[Any] = tokens
        if self.kind == "pixels":
            found = self.colours_of(pixels) if self.colours else pixels
            found = found.transpose(0, 2, 3, 1) if self.channels_last else found
        elif self.kind == "mask":
            ends = [length_of(self.sizes.texts, row) for row in tokens]
            found = np.arange(tokens.shape[1]) < np.array(ends)[:, np.newaxis]
        elif self.kind == "positions":
            found = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        # numpy has no bfloat16: its backend converts.
        dtype = "float32" if self.dtype == "bfloat16" else self.dtype
        return np.ascontiguousarray(found, dtype=dtype)

    def seen(self, pixels: Pixels) -> Pixels:
        """Return pixels as they are once they are changed to be the value of this input."""
        if self.dtype == "bfloat16":
            bits = rounded(pixels.astype(np.float64), self.dtype)
            return exact(Stored(bits, self.dtype)).astype(np.float32)
        if not self.colours:
            return pixels.astype(self.dtype).astype(np.float32)
        mean, std = self._rules()
        found = self.colours_of(pixels).astype(self.dtype).astype(np.float32)
        colours = found / np.float32(self._most)
        return np.asarray((colours - mean) / std, dtype=np.float32)

    def replaced(self, meaning: str) -> Input:
        """Return the input as if the user had said that its pixels are `COLOURS` or `LEVELS`."""
        return replace(self, colours=True, levels=meaning == LEVELS)

    def is_seen(self, pixels: Pixels) -> bool:
        """Whether it sees pixels as they are, but for rounding to colours."""
        return bool(np.abs(self.seen(pixels) - pixels).max(initial=0) < _COLOUR_ROUNDING)

    def colours_of(self, pixels: Pixels) -> NDArray[Any]:
        """Return the colours of pixels, float32 [N, 3, R, R]: from 0 to 1, or to 255, whole numbers
        for uint8."""
        mean, std = self._rules()
        colours = np.clip(pixels * std + mean, 0, 1) * np.float32(self._most)
        return np.rint(colours) if self.dtype == "uint8" else colours

    @property
    def _most(self) -> int:
        return 255 if self.levels or self.dtype == "uint8" else 1

    def _rules(self) -> tuple[Array, Array]:
        rules = self.sizes.images
        mean, std = (np.array(each, dtype=np.float32) for each in (rules.mean, rules.std))
        return mean.reshape(3, 1, 1), std.reshape(3, 1, 1)

    def __str__(self) -> str:
        inside = ", normalised inside" if self.colours else ""
        inside = f", from 0 to 255{inside}" if self.levels else inside
        return f"{self.name} -> {INPUTS[self.kind]} ({self.dtype}{inside})"


def inputs(
    declared: Sequence[Declared],
    sizes: Sizes,
    path: Path,
    names: Mapping[str, str] | None = None,
) -> tuple[Input, ...]:
    """Identify the inputs of a program of one or both towers.

    Args:
        names: meanings of inputs and outputs from the user, by name.

    Raises:
        UsageError: an input has several possible meanings, or a named one does not exist.
        CheckpointError: the program has no input for pixels or ids.
        ArchitectureError: an input's shape does not fit the architecture.
    """
    told = {
        name: kind for name, kind in (names or {}).items() if kind in (*INPUTS, COLOURS, LEVELS)
    }
    _require_there(told, [each.name for each in declared], "input", path)
    found = tuple(_input(each, told.get(each.name), sizes, path) for each in declared)
    kinds = [each.kind for each in found]
    for kind in INPUTS:
        _require_one([each.name for each in found if each.kind == kind], kind, "inputs", path)
    if not {"pixels", "tokens"} & set(kinds):
        listed = ", ".join(each.name for each in declared) or "nothing"
        raise CheckpointError(
            f"expected a program of pixels or ids, found one that takes {listed}",
            remedy="Export the image tower, the text tower, or both as one program.",
            path=path,
        )
    return found


def _require_there(told: Mapping[str, str], names: Sequence[str], what: str, path: Path) -> None:
    absent = [name for name in told if name not in names]
    if absent:
        raise UsageError(
            f"{ASKED} {absent[0]}={told[absent[0]]}: the program has no {what} {absent[0]!r}",
            remedy=f"Name one of its {what}s: {', '.join(names) or 'it has none'}.",
            path=path,
        )


def _require_one(names: Sequence[str], meaning: str, what: str, path: Path) -> None:
    """Raise if several inputs or outputs of a program could have the same meaning."""
    if len(names) > 1:
        raise UsageError(
            f"its {what} {' and '.join(names)} could each be the {_people(meaning)}",
            remedy=f"Choose one, such as {ASKED} {names[0]}={meaning}.",
            path=path,
        )


def _people(meaning: str) -> str:
    return INPUTS.get(meaning) or MEANT[meaning]


def _input(declared: Declared, told: str | None, sizes: Sizes, path: Path) -> Input:
    named = _NAMES.get(declared.name.lower())
    colours = told in (COLOURS, LEVELS)
    kind = "pixels" if colours else told or (named if named in INPUTS else None)
    shape = declared.shape
    if kind is None and shape is not None:
        # Pixels may be whole numbers too.
        whole = declared.dtype.startswith("int")
        kind = "pixels" if len(shape) == 4 else "tokens" if len(shape) == 2 and whole else None
    if kind is None:
        raise UsageError(
            f"its input {declared.name!r} is not a known input of a CLIP model",
            remedy=f"Give its meaning, one of {', '.join((*INPUTS, COLOURS, LEVELS))}: "
            f"{ASKED} {declared.name}=pixels.",
            path=path,
        )
    last = kind == "pixels" and shape is not None and shape[1:2] != (3,) and shape[3:] == (3,)
    _require_shape(declared, kind, sizes, path, channels_last=last)
    batch = shape[0] if shape else None
    # Positions are often given once for all rows.
    batch = None if kind == "positions" and batch == 1 else batch
    dtype = declared.dtype or ("float32" if kind == "pixels" else "int64")
    colours = colours or (kind == "pixels" and dtype == "uint8")
    return Input(
        name=declared.name,
        kind=kind,
        dtype=dtype,
        sizes=sizes,
        batch=batch,
        channels_last=last,
        colours=colours,
        levels=told == LEVELS,
    )


def _require_shape(
    declared: Declared, kind: str, sizes: Sizes, path: Path, *, channels_last: bool
) -> None:
    side = sizes.image_resolution
    colours = (side, side, 3) if channels_last else (3, side, side)
    wanted = colours if kind == "pixels" else (sizes.context_length,)
    shape = declared.shape
    if shape is None:
        return
    if len(shape) == _RANKS[kind] and all(
        size is None or size == each for size, each in zip(shape[1:], wanted, strict=True)
    ):
        return
    raise ArchitectureError(
        f"its input {declared.name!r} has shape {_written(shape)}, "
        f"expected {_written((None, *wanted))}",
        remedy="Give the reference that it was made from.",
        path=path,
    )


def _written(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"


Raw = Sequence[tuple[str | None, Array]]
"""Outputs of a program, in order, with their names, if any."""


@dataclass(frozen=True)
class Outputs:
    """The identified outputs of a program.

    Attributes:
        places: by name of `OUTPUTS`, its position among the program's outputs.
        names: by name of `OUTPUTS`, its name in the program.
    """

    places: Mapping[str, int]
    names: Mapping[str, str]

    def named(self, raw: Raw) -> Named:
        """Return the identified outputs by name."""
        return {name: raw[place][1] for name, place in self.places.items()}


def probe(batch: Rows, sizes: Sizes) -> tuple[Pixels, Tokens]:
    """Return inputs with different rows, whose outputs `outputs` can identify.

    Args:
        batch: required numbers of images and texts of a call, or None for any.
    """
    images, texts = (each or other for each, other in zip(batch, PROBE, strict=True))
    side = sizes.image_resolution
    pixels = np.random.default_rng(0).standard_normal((images, 3, side, side), dtype=np.float32)
    rows = np.arange(1, texts + 1, dtype=np.int32) % sizes.vocab_size
    return pixels, np.repeat(rows[:, np.newaxis], sizes.context_length, axis=1)


def blank(sizes: HasSizes, images: int, texts: int) -> tuple[Pixels, Tokens]:
    """Return inputs of zeros for these numbers of images and texts."""
    side = sizes.image_resolution
    pixels = np.zeros((images, 3, side, side), dtype=np.float32)
    return pixels, np.zeros((texts, sizes.context_length), dtype=np.int32)


def outputs(
    raw: Raw,
    given: Sequence[Input],
    sizes: Sizes,
    counts: tuple[int, int],
    path: Path,
    names: Mapping[str, str] | None = None,
) -> Outputs:
    """Identify the outputs of a program.

    An output is identified by the user, by its name, as the only output of a single tower, or else
    by its shape, if it is the only unnamed output of that shape.

    Args:
        raw: the outputs of a call.
        given: the inputs of the program.
        counts: of images and texts in the call.
        names: meanings of inputs and outputs from the user, by name.

    Raises:
        UsageError: several outputs could have the same meaning, or a named one does not exist.
    """
    called = [name or f"output {number}" for number, (name, _) in enumerate(raw, start=1)]
    told = {name: meaning for name, meaning in (names or {}).items() if meaning in OUTPUTS}
    _require_there(told, called, "output", path)
    places = {meaning: called.index(name) for name, meaning in told.items()}
    for name, meaning in _NAMES.items():
        if meaning in OUTPUTS and meaning not in places and name in called:
            places[meaning] = called.index(name)
    towers = {each.kind for each in given}.intersection(("pixels", "tokens"))
    possible = list(OUTPUTS)
    if len(towers) == 1:
        possible = ["image_features" if "pixels" in towers else "text_features"]
        if len(raw) == 1:
            places.setdefault(possible[0], 0)
    shapes = _shapes(counts, sizes)
    for meaning in possible:
        alike = [
            place
            for place, (name, array) in enumerate(raw)
            if array.shape == shapes[meaning]
            and place not in places.values()
            and name not in (*_NAMES, *_OTHERS)
        ]
        if meaning not in places and alike:
            _require_one([called[place] for place in alike], meaning, "outputs", path)
            places[meaning] = alike[0]
    known = {name: places[name] for name in OUTPUTS if name in places}
    return Outputs(known, {name: called[place] for name, place in known.items()})


def _shapes(counts: tuple[int, int], sizes: Sizes) -> dict[str, tuple[int, int]]:
    images, texts = counts
    width = sizes.embed_dim
    return {
        "image_features": (images, width),
        "text_features": (texts, width),
        "logits_per_image": (images, texts),
        "logits_per_text": (texts, images),
    }


def normalised(found: Named) -> frozenset[str]:
    """Return the names of the features whose rows all have length 1."""
    lengths = {
        name: np.linalg.norm(found[name].astype(np.float64), axis=-1)
        for name in FEATURES
        if name in found and found[name].ndim == 2
    }
    return frozenset(
        name for name, each in lengths.items() if each.size and (abs(each - 1) < _UNIT).all()
    )
