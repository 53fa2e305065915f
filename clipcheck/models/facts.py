"""Facts of an archive beside its weights. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clipcheck.checkpoints.inspection import Patched

METHODS = ("encode_image", "encode_text", "forward")
"""The methods that run a CLIP model."""


@dataclass(frozen=True)
class Facts:
    """Facts of an archive, beside its weights and the values that it computes.

    Attributes:
        scripted: whether it is a TorchScript module.
        used: by each of `METHODS` that it has, the keys of the weights that take part in it.
        input_resolution: pixels a side, where it holds that itself.
        context_length: ids of a text, where it holds that itself.
        patched: constants of its code that were rewritten; None where it was not patched.
        forward_takes: the names of the tensors that ``forward`` is called with.
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
