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
from clipcheck.gates.metrics import unit
from clipcheck.gates.result import FEATURES, LOGITS, OUTPUTS
from clipcheck.gates.tolerances import LIMITS
from clipcheck.inputs.batches import Batch
from clipcheck.inputs.digest import digest
from clipcheck.inputs.fixed import BESIDE, SIZES, Prompts, counts, edge_cases, sample
from clipcheck.inputs.rules import ImageRules, TextRules
from clipcheck.results.document import convert_to
from clipcheck.results.sealed import Array, bytes_of, decode, encode
from clipcheck.writers.output import replacing

SCHEMA = 1
_KIND = "pin"

_MOST_BYTES = 64 << 20
"""Largest file that is read."""

_MOST_SIDE = 4096
"""Most pixels along a side of an image."""

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
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def sizes(self) -> Sizes:
        """The sizes of the model, without a tokenizer."""
        return Sizes(
            self.image_resolution,
            self.context_length,
            self.vocab_size,
            self.embed_dim,
            self.grid,
            self.images,
            TextRules(**asdict(self.ids)),
            self.sigmoid,
            outputs=self.outputs,
        )


@dataclass(frozen=True)
class Pin:
    """A pin.

    Attributes:
        header: all but arrays.
        tokens: ids of all prompts, int32 [M, L].
        features: by name, of all images or prompts in float64, rounded to float32 [rows, E].
        errors: by dtype and output, the root mean square error of the eager model in that dtype,
            for each row of the judged batches, float32 [rows].
    """

    header: Header
    tokens: NDArray[np.int32]
    features: Mapping[str, NDArray[np.float32]]
    errors: Mapping[str, Mapping[str, NDArray[np.float32]]]

    def batches(self) -> list[Batch]:
        """Return the batches that all gates judge: edge cases and some of the sample."""
        return [*self._drawn(0), *self._drawn(1)[:BESIDE]]

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
            errors = self.errors[dtype][name][first : first + len(array)].astype(np.float64)
            signs = np.where(np.arange(array.shape[1]) % 2, -1.0, 1.0)
            found[name] = array + errors[:, np.newaxis] * signs
        return found


def write_pin(pin: Pin, path: Path) -> None:
    """Write a pin.

    Raises:
        OutputError: it cannot be written.
    """
    data = encode(_KIND, SCHEMA, vars(pin.header), _arrays(pin))
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_pin(path: Path) -> Pin:
    """Read a pin.

    Raises:
        PinError: it is no pin, damaged, or of another schema.
    """
    try:
        return _pin(*decode(bytes_of(path, _MOST_BYTES), _KIND, SCHEMA))
    except OSError as error:
        reason = f"it cannot be read ({error.strerror or error})"
    except ValueError as error:
        reason = str(error)
    raise PinError(f"expected a pin, but {reason}", remedy=_REMEDY, path=path)


def _pin(plain: Mapping[str, Any], arrays: Mapping[str, Array]) -> Pin:
    head = convert_to(plain, Header)
    _require_shapes(head, arrays)
    features = {name: arrays[name] for name in FEATURES if name in head.outputs}
    errors = {
        dtype: {name: arrays[f"{dtype}.{name}"] for name in head.outputs}
        for dtype in LIMITS
        if dtype not in head.missing
    }
    return Pin(head, arrays["tokens"], features, errors)


def _require_shapes(head: Header, arrays: Mapping[str, Array]) -> None:
    """Raise if an array is missing, has another shape, or numbers that cannot be."""
    rows = dict(zip(("image", "prompt"), map(sum, zip(*counts(), strict=True)), strict=True))
    few = [sum(each[kind] for each in counts()[: len(SIZES) + BESIDE]) for kind in (0, 1)]
    judged = dict(zip(rows, few, strict=True))
    kinds = {name: OUTPUTS[name][0] for name in head.outputs if name in OUTPUTS}
    wanted: dict[str, tuple[int, ...]] = {
        "tokens": (rows["prompt"], head.context_length),
        **{name: (rows[kinds[name]], head.embed_dim) for name in kinds if name in FEATURES},
        **{
            f"{dtype}.{name}": (judged[kind],)
            for dtype in LIMITS
            if dtype not in head.missing
            for name, kind in kinds.items()
        },
    }
    found = {name: array.shape for name, array in arrays.items()}
    if found != wanted or not kinds or len(head.prompts) != rows["prompt"]:
        raise ValueError("it does not have the arrays of its header")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("it has numbers that are not finite")
    if not 0 < head.image_resolution <= _MOST_SIDE:
        raise ValueError(f"its images have {head.image_resolution} pixels a side")
    tokens = arrays["tokens"]
    if tokens.dtype != np.int32 or tokens.min() < 0 or tokens.max() >= head.vocab_size:
        raise ValueError("its prompts have numbers that are no ids")


def _arrays(pin: Pin) -> dict[str, Array]:
    errors = {
        f"{dtype}.{name}": array
        for dtype, several in pin.errors.items()
        for name, array in several.items()
    }
    return {"tokens": pin.tokens, **pin.features, **errors}
