"""Facts of an archive beside its weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clipcheck.checkpoints.inspection import Patched

METHODS = ("encode_image", "encode_text", "forward")
"""The methods that run a CLIP model."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts of an archive, beside its weights and the values that it computes.

    Attributes:
        scripted: whether it is a TorchScript module.
        used: by method, of those in `METHODS` that it has, the keys of the weights that it uses.
        input_resolution: its own record of the pixels a side, or None.
        context_length: its own record of the ids of a text, or None.
        patched: number of rewritten constants in its code; None if it was not patched.
        forward_takes: names of the tensors that ``forward`` takes.
    """

    scripted: bool
    used: Mapping[str, frozenset[str]]
    input_resolution: int | None = None
    context_length: int | None = None
    patched: Patched | None = None
    forward_takes: tuple[str, ...] = ("image", "text")

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of `METHODS` that it has."""
        return tuple(self.used) if self.scripted else METHODS
