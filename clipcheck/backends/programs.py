"""Backends that are one program: pixels and ids in, all outputs out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from clipcheck.backends import signature
from clipcheck.backends.base import (
    Array,
    Named,
    Pixels,
    Tokens,
    closed,
    evidence_of_closed,
    translating,
)
from clipcheck.backends.signature import Outputs, Raw
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.compare.integrity import Evidence
from clipcheck.compare.result import OUTPUTS
from clipcheck.errors import RunError
from clipcheck.inputs.examples import Frontend

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.base import Source

Run = Callable[[Pixels, Tokens], Raw]


class ProgramBackend:
    """Runs a program; each call of it gives all outputs.

    Args:
        name: the backend's, as it was asked for.
        run: the program.
        architecture: what it is a model of.
        size: bytes of the files that it was loaded from.
        evidence: called when it has run, for the gate ``integrity``.
    """

    def __init__(
        self,
        name: str,
        run: Run,
        architecture: Architecture,
        size: int,
        evidence: Callable[[], Evidence],
    ) -> None:
        self.name = name
        self.size: int | None = size
        self.frontend: Frontend | None = None
        self._run: Run | None = run
        self._architecture = architecture
        self._evidence = evidence
        self._known: Outputs | None = None

    def encode_image(self, pixels: Pixels) -> Array:
        """Pixels [N, 3, R, R] to features [N, E], not normalised."""
        empty = np.zeros((1, self._architecture.context_length), dtype=np.int32)
        return self._one("image_features", pixels, empty)

    def encode_text(self, tokens: Tokens) -> Array:
        """Ids [M, L] to features [M, E], not normalised."""
        side = self._architecture.image_resolution
        return self._one("text_features", np.zeros((1, 3, side, side), dtype=np.float32), tokens)

    def __call__(self, pixels: Pixels, tokens: Tokens) -> tuple[Array, Array]:
        """Pixels and ids to logits per image [N, M] and per text [M, N]."""
        found = self.outputs(pixels, tokens)
        for name in ("logits_per_image", "logits_per_text"):
            self._require(found, name)
        return found["logits_per_image"], found["logits_per_text"]

    def outputs(self, pixels: Pixels, tokens: Tokens) -> Named:
        """The outputs that the program gives, by name; it is called once.

        Raises:
            RunError: it cannot be run.
        """
        raw = self._raw(pixels, tokens)
        if [name for name, _ in raw] == list(OUTPUTS):
            return {str(name): array for name, array in raw}
        if self._known is None:
            example = signature.probe(self._architecture)
            self._known = signature.outputs(self._raw(*example), self._architecture)
        return self._known.named(raw)

    def evidence(self) -> Evidence:
        """What the gate ``integrity`` has to know of it."""
        found = self._evidence()
        if self._known is None:
            return found
        from dataclasses import replace

        return replace(found, doubts=[*found.doubts, *self._known.doubts])

    def close(self) -> None:
        """Let go of the program."""
        self._run = None
        self._evidence = evidence_of_closed

    def _one(self, name: str, pixels: Pixels, tokens: Tokens) -> Array:
        found = self.outputs(pixels, tokens)
        self._require(found, name)
        return found[name]

    def _require(self, found: Named, name: str) -> None:
        if name not in found:
            raise RunError(
                f"{self.name}: the program gives no {name}",
                remedy=f"Export one that gives all of: {', '.join(OUTPUTS)}.",
            )

    def _raw(self, pixels: Pixels, tokens: Tokens) -> Raw:
        if self._run is None:
            raise closed(self.name)
        with translating(self.name, "running the program"):
            return self._run(pixels, tokens)


def key(source: Source, *libraries: str) -> dict[str, str]:
    """What a program that is made of ``source`` depends on.

    Args:
        source: what it is made of.
        libraries: whose versions matter, beside torch.
    """
    from importlib.metadata import version

    import torch

    from clipcheck.writers.programs import PROGRAM

    return {
        "checkpoint": source.checkpoint.sha256,
        "model": source.checkpoint.origin.name,
        "device": source.device.type,
        "dtype": source.dtype,
        "program": PROGRAM,
        # With what it was built for, as +cu130, which its metadata may leave out.
        "torch": torch.__version__,
        **{library: version(library) for library in libraries},
    }


def flat(result: Any) -> Raw:
    """The tensors that a torch program gave, with the names that they have in it.

    Args:
        result: a tensor, or a mapping or a sequence with tensors.
    """
    import torch

    from clipcheck.backends.modules import to_numpy

    if isinstance(result, torch.Tensor):
        return [(None, to_numpy(result))]
    pairs = result.items() if isinstance(result, Mapping) else ((None, each) for each in result)
    return [
        (None if name is None else str(name), to_numpy(each))
        for name, each in pairs
        if isinstance(each, torch.Tensor)
    ]


class WeightsCompared:
    """Compares the weights of a program with those that it has to have, bit for bit, as they come.

    Args:
        weights: the expected, by key.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = weights
        self._seen: set[str] = set()
        self._differing: dict[str, str] = {}

    def receive(self, name: str, held: torch.Tensor) -> None:
        """Compare one.

        Args:
            name: its key, with or without `clipcheck.models.whole.PREFIX`.
            held: what the program has.
        """
        from clipcheck.checkpoints.checkpoint import same_bits
        from clipcheck.models.whole import PREFIX

        key = name.removeprefix(PREFIX)
        if key not in self._weights:
            return
        self._seen.add(key)
        if not same_bits(held, self._weights[key].to(held.device)):
            self._differing[key] = "the program has other bits than the file"

    def evidence(self) -> Evidence:
        """What was found; of a program that has none of them by their keys, nothing is known."""
        if not self._seen:
            return Evidence(None)
        absent = dict.fromkeys(self._weights.keys() - self._seen, "the program does not have it")
        return Evidence(len(self._seen), differing={**self._differing, **absent})
