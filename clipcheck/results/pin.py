"""Pins: small files with the features that a model computes in float64, for inputs that every
version of clipcheck draws alike (`clipcheck.inputs.fixed`).

A pin is a safetensors file: arrays, and a JSON header in its metadata.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
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
from clipcheck.results.document import convert_to, parse_json
from clipcheck.writers.output import replacing

SCHEMA = 1
KIND = "pin"

_HEADER = "clipcheck"
"""Key of the header in the file's metadata."""

_DIGEST = "digest"
"""Field beside the header's own: a digest of these and of the arrays."""

_MOST_BYTES = 64 << 20
"""Largest file that is read."""

_MOST_SIDE = 4096
"""Most pixels along a side of an image."""

_REMEDY = "Give a file that `clipcheck pin` wrote, or write it again."

Array = NDArray[Any]


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
        schema: version of the format.
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

    schema: int = SCHEMA
    kind: str = KIND
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
    from safetensors.numpy import save

    arrays = _arrays(pin)
    plain = msgspec.to_builtins(pin.header)
    data = save(arrays, {_HEADER: json.dumps({**plain, _DIGEST: _contents(plain, arrays)})})
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_pin(path: Path) -> Pin:
    """Read a pin.

    Raises:
        PinError: it is no pin, damaged, or of another schema.
    """
    try:
        return _decoded(_bytes_of(path))
    except OSError as error:
        reason = f"it cannot be read ({error.strerror or error})"
    except ValueError as error:
        reason = str(error)
    raise PinError(f"expected a pin, but {reason}", remedy=_REMEDY, path=path)


def _bytes_of(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES >> 20} MB")
    return data


def _decoded(data: bytes) -> Pin:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    plain = _header(data)
    try:
        arrays = load(data)
    except SafetensorError as error:
        raise ValueError(f"it is cut off or damaged ({error})") from error
    if plain.get(_DIGEST) != _contents(plain, arrays):
        raise ValueError("it was altered after it was written: its digest differs")
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


def _header(data: bytes) -> dict[str, Any]:
    """Read the header, which safetensors has at the start: its length in 8 bytes, then JSON."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length < _MOST_BYTES:
        raise ValueError("it is no safetensors file")
    if len(data) < 8 + length:
        raise ValueError("it is cut off, or no safetensors file")
    outer = parse_json(data[8 : 8 + length])
    written = outer.get("__metadata__", {}) if isinstance(outer, dict) else {}
    if not isinstance(written, dict) or not isinstance(written.get(_HEADER), str):
        raise ValueError("it has no header of clipcheck")
    plain = parse_json(written[_HEADER])
    if not isinstance(plain, dict) or plain.get("kind") != KIND:
        raise ValueError("it is another file of clipcheck")
    if plain.get("schema") != SCHEMA:
        schema = reprlib.repr(plain.get("schema"))
        raise ValueError(f"it has schema {schema}; this clipcheck reads schema {SCHEMA}")
    return plain


def _arrays(pin: Pin) -> dict[str, Array]:
    errors = {
        f"{dtype}.{name}": array
        for dtype, several in pin.errors.items()
        for name, array in several.items()
    }
    # Views would be written as the whole array.
    return {
        name: np.ascontiguousarray(array)
        for name, array in {"tokens": pin.tokens, **pin.features, **errors}.items()
    }


def _contents(plain: Mapping[str, Any], arrays: Mapping[str, Array]) -> str:
    """Return a digest of the header, as JSON has it, and of the arrays."""
    head = {name: value for name, value in plain.items() if name != _DIGEST}
    hashed = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        hashed.update(f"{name} {array.dtype} {array.shape} ".encode())
        hashed.update(array.tobytes())
    return hashed.hexdigest()
