"""Pins: small files with the features that a model computes in float64, for inputs that every
version of clipcheck draws alike (`clipcheck.inputs.fixed`).

A pin is a safetensors file: arrays, and a JSON header in its metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipcheck._version import __version__
from clipcheck.errors import PinError
from clipcheck.families.sizes import Sizes
from clipcheck.gates.fingerprints import DTYPES, VALUES, Fingerprints
from clipcheck.gates.metrics import unit
from clipcheck.gates.result import FEATURES, LOGITS, OUTPUTS
from clipcheck.gates.tolerances import LIMITS
from clipcheck.inputs.batches import MOST_ROWS, Batch
from clipcheck.inputs.digest import digest
from clipcheck.inputs.fixed import BESIDE, COLOURS, Prompts, counts, edge_cases, sample
from clipcheck.inputs.rules import ImageRules, TextRules
from clipcheck.results.document import convert_to
from clipcheck.results.sealed import Array, bytes_of, decode, encode
from clipcheck.writers.output import replacing

SCHEMA = 1
_KIND = "pin"

MOST_BYTES = 1_000_000
"""Largest pin that is written."""

_MOST_READ = 64 << 20
"""Most bytes of a file that is read."""

_MOST_SIDE = 4096
"""Most pixels along a side of an image."""

_MIDDLE = 1 << 23
"""Integer of 0 in a feature of the sample, which has 24 bits: each row has its own scale, and only
the gate ``budget`` compares it."""

_REMEDY = "Give a file that `clipcheck pin` wrote, or write it again."


@dataclass(frozen=True)
class Ids:
    """The rules for rows of ids, as in `clipcheck.inputs.rules.TextRules`."""

    start: int | None
    end: int | None
    pad: int
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of a pin.

    Attributes:
        clipcheck: version that wrote it.
        environment: versions and the machine.
        checkpoint: the pinned checkpoint, as the user gave it.
        sha256: of that file.
        description: its format, architecture and dtypes.
        computes: activation, heads and epsilon, and their source.
        architecture: its dimensions.
        image_resolution, context_length, vocab_size, embed_dim, grid: see `Sizes`.
        images, ids: rules for pixels and ids.
        sigmoid: whether probabilities are the sigmoid of each logit.
        outputs: of the model.
        scale, bias: logits are cosines times ``scale`` plus ``bias``.
        seed: of the inputs.
        inputs: digests of the edge cases and of the sample.
        prompts: description of each prompt.
        lengths: description of each of the prompts of other lengths.
        parameters: number of the model's.
        keys: of its weights whose fingerprints it has.
        shapes: of these.
        missing: by dtype in which the eager model cannot be run, why.
    """

    clipcheck: str = __version__
    environment: Mapping[str, str]
    checkpoint: str
    sha256: str
    description: str
    computes: str
    architecture: Mapping[str, int | str]
    image_resolution: int
    context_length: int
    vocab_size: int
    embed_dim: int
    grid: int
    images: ImageRules
    ids: Ids
    sigmoid: bool
    outputs: tuple[str, ...]
    scale: float
    bias: float
    seed: int
    inputs: tuple[str, str]
    prompts: tuple[str, ...]
    lengths: tuple[str, ...]
    parameters: int
    keys: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def sizes(self) -> Sizes:
        """The sizes of the model, without a tokenizer."""
        return Sizes(
            image_resolution=self.image_resolution,
            context_length=self.context_length,
            vocab_size=self.vocab_size,
            embed_dim=self.embed_dim,
            grid=self.grid,
            images=self.images,
            texts=TextRules(**asdict(self.ids)),
            sigmoid=self.sigmoid,
            outputs=self.outputs,
        )


@dataclass(frozen=True)
class PinnedLengths:
    """Prompts of further lengths, K of them.

    Attributes:
        tokens: ids, int32 [K, L].
        features: text features in float64, rounded to float32 [K, E].
        errors: by dtype, the root mean square error of the eager model for each, float32 [K].
    """

    tokens: NDArray[np.int32]
    features: NDArray[np.float32]
    errors: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Pin:
    """A pin.

    Attributes:
        header: all but arrays.
        tokens: ids of all prompts, int32 [M, L].
        features: by name, of all images or prompts in float64, rounded to float32 [rows, E]; the
            rows that only the gate ``budget`` judges to 24 bits.
        errors: by dtype and output, the root mean square error of the eager model in that dtype,
            for each row of the judged batches, float32 [rows].
        lengths: prompts of the lengths that the judged batches do not have.
        weights: fingerprints of the model's weights.
    """

    header: Header
    tokens: NDArray[np.int32]
    features: Mapping[str, NDArray[np.float32]]
    errors: Mapping[str, Mapping[str, NDArray[np.float32]]]
    lengths: PinnedLengths
    weights: Fingerprints

    def batches(self, *, colours: bool = False) -> list[Batch]:
        """Return the batches that all gates judge: edge cases and some of the sample.

        Args:
            colours: whether only images that 8-bit colours give.
        """
        edges = self._drawn(0)
        return [*edges[: COLOURS if colours else None], *self._drawn(1)[:BESIDE]]

    def sample(self) -> list[Batch]:
        """Return the random inputs of the gate ``budget``."""
        return self._drawn(1)

    def _drawn(self, number: int) -> list[Batch]:
        head = self.header
        draw = (edge_cases, sample)[number]
        prompts = Prompts(self.tokens, head.prompts)
        found = draw(head.image_resolution, head.images, head.seed, prompts)
        if digest(found) != head.inputs[number]:
            raise PinError(
                f"expected the inputs of clipcheck {head.clipcheck}, which wrote it; this version, "
                f"{__version__}, draws others",
                remedy="Write the pin again with this version: clipcheck pin.",
            )
        return found

    def exact(self, batch: Batch) -> dict[str, NDArray[np.float64]]:
        """Return the outputs in float64 for a batch of this pin, by name."""
        rows = {
            kind: slice(first, first + len(batch.rows[kind]))
            for kind, first in batch.first_rows.items()
        }
        found = {
            name: self.features[name][rows[OUTPUTS[name][0]]].astype(np.float64)
            for name in self.features
        }
        if len(found) == len(FEATURES):
            found.update(zip(LOGITS, self.logits(*found.values()), strict=True))
        return found

    def logits(self, images: Array, texts: Array) -> tuple[Array, Array]:
        """Return logits per image [N, M] and per text [M, N] for features, in float64."""
        pairs = [unit(each.astype(np.float64)) for each in (images, texts)]
        found = self.header.scale * (pairs[0] @ pairs[1].T) + self.header.bias
        return found, found.T

    def eager(
        self, batch: Batch, exact: Mapping[str, Array], dtype: str
    ) -> dict[str, NDArray[np.float64]]:
        """Return outputs with the eager model's error in a dtype, for a judged batch.

        The pin has only the size of the error of each row. It is added to even components, and
        subtracted from odd ones.
        """
        found = {}
        for name, array in exact.items():
            first = batch.first_rows[OUTPUTS[name][0]]
            found[name] = _apart(array, self.errors[dtype][name][first : first + len(array)])
        return found

    def text_features_by_length(self, dtype: str) -> tuple[Array, Array]:
        """Return the text features of `lengths` with the eager model's error in a dtype, as by
        `eager`, and in float64."""
        exact = self.lengths.features.astype(np.float64)
        return _apart(exact, self.lengths.errors[dtype]), exact


def _apart(array: Array, errors: NDArray[np.float32]) -> NDArray[np.float64]:
    signs = np.where(np.arange(array.shape[1]) % 2, -1.0, 1.0)
    return np.asarray(array + errors.astype(np.float64)[:, np.newaxis] * signs)


def write_pin(pin: Pin, path: Path) -> None:
    """Write a pin.

    Raises:
        OutputError: it cannot be written.
    """
    data = pin_bytes(pin)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def pin_bytes(pin: Pin) -> bytes:
    """Return the contents of a pin's file."""
    return encode(_KIND, SCHEMA, vars(pin.header), _arrays(pin))


def read_pin(path: Path) -> Pin:
    """Read a pin.

    Raises:
        PinError: it is no pin, damaged, or of another schema.
    """
    try:
        return _pin(*decode(bytes_of(path, _MOST_READ), _KIND, SCHEMA))
    except OSError as error:
        reason = f"it cannot be read ({error.strerror or error})"
    except ValueError as error:
        reason = str(error)
    raise PinError(f"expected a pin, but {reason}", remedy=_REMEDY, path=path)


def _pin(plain: Mapping[str, Any], arrays: Mapping[str, Array]) -> Pin:
    head = convert_to(plain, Header)
    _require_shapes(head, arrays)
    there = [dtype for dtype in LIMITS if dtype not in head.missing]
    features = {}
    for name in FEATURES:
        if name in head.outputs:
            scale = arrays[f"sample.{name}.scale"][:, np.newaxis]
            rest = _from_24_bits(arrays[f"sample.{name}"]) * scale
            features[name] = np.concatenate([arrays[name], rest.astype(np.float32)])
    return Pin(
        header=head,
        tokens=arrays["tokens"].astype(np.int32),
        features=features,
        errors={
            dtype: {name: arrays[f"{dtype}.{name}"] for name in head.outputs} for dtype in there
        },
        lengths=PinnedLengths(
            arrays["lengths.tokens"].astype(np.int32),
            arrays["lengths.features"],
            {dtype: arrays[f"{dtype}.lengths"] for dtype in there},
        ),
        weights=Fingerprints(
            head.keys, head.shapes, arrays["weights.digests"], arrays["weights.values"]
        ),
    )


def judged_rows() -> dict[str, int]:
    """Return the numbers of images and of prompts that all gates judge."""
    few = map(sum, zip(*counts(BESIDE * MOST_ROWS), strict=True))
    return dict(zip(("image", "prompt"), few, strict=True))


def _require_shapes(head: Header, arrays: Mapping[str, Array]) -> None:
    """Raise if an array is missing, has another shape, or numbers that cannot be."""
    judged, prompts = judged_rows(), len(head.prompts)
    rest = prompts - judged["prompt"]
    kinds = {name: OUTPUTS[name][0] for name in head.outputs if name in OUTPUTS}
    of_features = [name for name in kinds if name in FEATURES]
    many, width = len(head.lengths), head.embed_dim
    wanted: dict[str, tuple[int, ...]] = {
        "tokens": (prompts, head.context_length),
        **{name: (judged[kinds[name]], width) for name in of_features},
        **{f"sample.{name}": (rest, width, 3) for name in of_features},
        **{f"sample.{name}.scale": (rest,) for name in of_features},
        "lengths.tokens": (many, head.context_length),
        "lengths.features": (many, width),
        "weights.digests": (len(head.keys), len(DTYPES)),
        "weights.values": (len(head.keys), VALUES),
    }
    for dtype in LIMITS:
        if dtype not in head.missing:
            wanted |= {f"{dtype}.{name}": (judged[kind],) for name, kind in kinds.items()}
            wanted[f"{dtype}.lengths"] = (many,)
    found = {name: array.shape for name, array in arrays.items()}
    if found != wanted or not kinds or rest < 0 or len(head.keys) != len(head.shapes):
        raise ValueError("it does not have the arrays of its header")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("it has numbers that are not finite")
    if not 0 < head.image_resolution <= _MOST_SIDE:
        raise ValueError(f"its images have {head.image_resolution} pixels a side")
    for tokens in (arrays["tokens"], arrays["lengths.tokens"]):
        ids = tokens.astype(np.int64)
        if tokens.dtype.kind not in "iu" or ((ids < 0) | (ids >= head.vocab_size)).any():
            raise ValueError("its prompts have numbers that are no ids")


def _arrays(pin: Pin) -> dict[str, Array]:
    judged = judged_rows()
    found: dict[str, Array] = {
        "tokens": _narrow(pin.tokens),
        "lengths.tokens": _narrow(pin.lengths.tokens),
        "lengths.features": pin.lengths.features,
        "weights.digests": pin.weights.digests,
        "weights.values": pin.weights.values,
    }
    for name, array in pin.features.items():
        first = judged[OUTPUTS[name][0]]
        found[name], rest = array[:first], array[first:]
        scale = np.abs(rest).max(axis=1, keepdims=True, initial=1e-30) / np.float32(_MIDDLE - 2)
        found[f"sample.{name}"] = _to_24_bits(rest / scale.astype(np.float64))
        found[f"sample.{name}.scale"] = scale[:, 0]
    for dtype, several in pin.errors.items():
        found |= {f"{dtype}.{name}": array for name, array in several.items()}
        found[f"{dtype}.lengths"] = pin.lengths.errors[dtype]
    return found


def _to_24_bits(values: Array) -> NDArray[np.uint8]:
    """Round numbers to integers, [..., 3] with the lowest bits first."""
    integers = np.rint(values.astype(np.float64)).clip(1 - _MIDDLE, _MIDDLE - 1) + _MIDDLE
    return integers.astype("<u4")[..., np.newaxis].view(np.uint8)[..., :3]


def _from_24_bits(found: NDArray[np.uint8]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = found @ np.array([1.0, 1 << 8, 1 << 16]) - _MIDDLE
    return values


def _narrow(tokens: NDArray[np.int32]) -> Array:
    """Return ids in 16 bits if they fit."""
    return tokens.astype(np.uint16) if tokens.max(initial=0) <= 0xFFFF else tokens
