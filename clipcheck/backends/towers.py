"""Run two programs of one tower each as one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.backends.base import Backend
from clipcheck.backends.calling import Array, Named, Pixels, Rows, Tokens
from clipcheck.backends.inside import InsideTowers
from clipcheck.backends.optimiser import Optimiser, Setting
from clipcheck.backends.signature import INPUTS
from clipcheck.checkpoints.towers import TOWERS
from clipcheck.errors import UsageError
from clipcheck.gates.integrity import Evidence
from clipcheck.gates.result import ENCODERS, FEATURES, LOGITS

if TYPE_CHECKING:
    import torch

Logits = Callable[[Array, Array], tuple[Array, Array]]


class Towers(Backend):
    """Runs a program for each tower; logits are computed from both features as the reference does.

    Args:
        parts: the programs of the image tower and of the text tower.
        files: theirs.
        logits: returns logits per image [N, M] and per text [M, N] for features.

    Raises:
        UsageError: a program is not of its tower.
    """

    def __init__(self, parts: Sequence[Backend], files: Sequence[Path], logits: Logits) -> None:
        for part, kind, tower, file in zip(parts, ("pixels", "tokens"), TOWERS, files, strict=True):
            if kind not in part.kinds:
                raise UsageError(
                    f"expected a program of the {tower} tower, found one without an input for "
                    f"{INPUTS[kind]}",
                    remedy="Give the programs of the two towers: image=FILE,text=FILE.",
                    path=file,
                )
        self.name = parts[0].name
        self.size = sum(part.size or 0 for part in parts)
        self.seen = parts[0].seen
        self.pixels = parts[0].pixels
        self.rounded = {key: kind for part in parts for key, kind in part.rounded.items()}
        self._parts = dict(zip(ENCODERS, parts, strict=True))
        self._logits = logits
        self.takes_weights = all(part.takes_weights for part in parts)
        self.runs_modules = all(part.runs_modules for part in parts)

    @cached_property
    def runner(self) -> InsideTowers:
        """Show the modules of both programs by this."""
        return InsideTowers({method: part.runner for method, part in self._parts.items()})

    def encode_image(self, pixels: Pixels) -> Array:
        """Encode pixels [N, 3, R, R] as features [N, E]."""
        return self._parts["encode_image"].encode_image(pixels)

    def encode_text(self, tokens: Tokens) -> Array:
        """Encode ids [M, L] as features [M, E]."""
        return self._parts["encode_text"].encode_text(tokens)

    def __call__(self, pixels: Pixels, tokens: Tokens) -> tuple[Array, Array]:
        """Return logits per image [N, M] and per text [M, N]."""
        return self._logits(self.encode_image(pixels), self.encode_text(tokens))

    def outputs(self, pixels: Pixels, tokens: Tokens) -> Named:
        """Return all outputs by name; each tower runs once.

        Raises:
            RunError: a program does not run, or does not return its features.
        """
        features = dict(
            zip(FEATURES, (self.encode_image(pixels), self.encode_text(tokens)), strict=True)
        )
        return {**features, **dict(zip(LOGITS, self._logits(*features.values()), strict=True))}

    def outputs_in_float(
        self, name: str, weight: torch.Tensor, batches: Sequence[tuple[Pixels, Tokens]]
    ) -> list[Named]:
        """Return for each batch the features that depend on one quantised weight, with it in float.

        Raises:
            RunError: its program cannot be run so.
        """
        method, _, own = name.partition(":")
        return self._parts[method].outputs_in_float(own, weight, batches)

    @property
    def optimisers(self) -> Sequence[Optimiser]:
        """Return those of both programs."""
        return [each for part in self._parts.values() for each in part.optimisers]

    def line_for(self, setting: Setting) -> str:
        """Return the line for the library that runs both programs."""
        return self._parts["encode_image"].line_for(setting)

    @property
    def normalised(self) -> frozenset[str]:
        """Names of the features that the programs normalise to length 1."""
        return frozenset().union(*(part.normalised for part in self._parts.values()))

    @property
    def mapping(self) -> tuple[str, ...]:
        """Descriptions of inputs and outputs, and of the origin of logits."""
        told = [each for part in self._parts.values() for each in part.mapping]
        return (*told, "logits: computed from both features by the reference")

    @property
    def batches(self) -> tuple[Rows, ...]:
        """Supported numbers of images and texts; empty if any number is."""
        images, texts = (part.batches for part in self._parts.values())
        if not images and not texts:
            return ()
        # Each program uses only its own number, and one supported size is enough.
        return ((images[-1][0] if images else None, texts[-1][1] if texts else None),)

    def evidence(self) -> Evidence:
        """Return the evidence of both programs for the gate ``integrity``."""
        found = [part.evidence() for part in self._parts.values()]
        counts = [each.weights for each in found if each.weights is not None]
        doubts = [doubt for each in found for doubt in each.doubts]
        differing = {key: how for each in found for key, how in each.differing.items()}
        return Evidence(
            weights=sum(counts) if counts else None,
            doubts=doubts,
            differing=differing,
            quantised={key: how for each in found for key, how in each.quantised.items()},
            tensors={
                key: f"{method}:{name}"  # both programs may use a name
                for method, each in zip(self._parts, found, strict=True)
                for key, name in each.tensors.items()
            },
            levels={key: count for each in found for key, count in each.levels.items()},
            rounded={key: dtype for each in found for key, dtype in each.rounded.items()},
        )

    def close(self) -> None:
        """Close both programs."""
        for part in self._parts.values():
            part.close()
