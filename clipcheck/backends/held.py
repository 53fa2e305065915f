"""The weights that a program holds, against those that it has to have."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING

from clipcheck.backends.opened import Opened
from clipcheck.backends.quantised import Matching
from clipcheck.gates.integrity import Evidence

if TYPE_CHECKING:
    import torch


def weights_evidence(
    weights: Mapping[str, torch.Tensor], program: Opened, whole: bool, *, folds: bool = False
) -> Evidence:
    """Compare the weights of a program with those that it has to have: bit for bit, or where they
    are quantised to within a step of their scale.

    Args:
        whole: whether it has to have all of them.
        folds: whether its exporter folds constants, so that some may not be there.
    """
    from clipcheck.models.whole import PREFIX

    found, quantised = WeightsCompared(weights), Matching(weights)

    def receive(
        name: str, tensor: torch.Tensor, steps: torch.Tensor | None = None, how: str = ""
    ) -> None:
        if steps is None:
            found.receive(name, tensor)
        else:
            key = name.removeprefix(PREFIX)
            quantised.receive(name, key, tensor.numpy(), steps.numpy(), how)

    program.weights(receive)
    lacking = found.lacking() if whole and not folds else {}
    return Evidence(
        found.compared() or None,
        program.doubts,
        {**found.differing(), **lacking, **quantised.differing},
        quantised=quantised.matched,
        tensors=quantised.tensors,
        levels=quantised.levels,
    )


class WeightsCompared:
    """Compares the weights of a program with those that it has to have, as they come.

    Exporters fold constants: a convolution takes up the BatchNorm behind it, a logarithm its
    exponential. Such weights are in no count, nor are those that are rounded for a program that
    computes in half precision. One under its own name must be the file's, unless it is such a one;
    so must a matrix without a name that is near to one of the file's.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = {key: each.detach().cpu() for key, each in weights.items()}
        self._held: dict[str, _Digest] = {}
        self._anywhere: set[_Digest] = set()
        self._right: set[str] = set()
        self._scaled: set[str] = set()
        self._near: set[str] = set()
        self._same: dict[str, bool] = {}
        self._longer: dict[str, list[str]] = {}
        self._matrices: dict[tuple[int, ...], list[str]] = {}
        for key, each in weights.items():
            for end in _ends(key)[1:]:
                self._longer.setdefault(end, []).append(key)
            if each.ndim == 2:
                self._matrices.setdefault(tuple(sorted(each.shape)), []).append(key)

    def receive(self, name: str, held: torch.Tensor) -> None:
        """Compare one.

        Args:
            name: its name in the program: its key, behind whatever wrappers have put before it, or
                what an exporter made of it.
            held: what the program has.
        """
        held = held.detach().cpu()
        digest = _digest(held)
        self._anywhere.add(digest)
        key = self._key(name, held)
        if key is not None:
            self._held[key] = digest
            if _is_alike(held, self._weights[key]):
                self._right.add(key)
            if _is_scaled(held, self._weights[key]):
                self._scaled.add(key)
        elif held.ndim == 2 and held.is_floating_point():
            for known in self._matrices.get(tuple(sorted(held.shape)), ()):
                for each in (self._weights[known], self._weights[known].T):
                    if _is_near(held, each):
                        (self._right if _is_alike(held, each) else self._near).add(known)

    def _key(self, name: str, held: torch.Tensor) -> str | None:
        """The key of what has that name: of a model in a wrapper it is shorter; of a tower that was
        exported by itself it may be longer, and the weight has to be near."""
        own = [key for key in _ends(name) if key in self._weights]
        longer = self._longer.get(name, [])
        alike = (key for key in (*own, *longer) if _is_alike(held, self._weights[key]))
        near = (key for key in longer if _is_near(held, self._weights[key]))
        return next((key for several in (alike, near, own) for key in several), None)

    def _is_same(self, key: str) -> bool:
        """Whether it is there bit for bit. To be asked for when all have come."""
        if key not in self._same:
            self._same[key] = self._is_anywhere(key)
        return self._same[key]

    def _is_anywhere(self, key: str) -> bool:
        weight = self._weights[key]
        if key in self._held:
            return self._held[key] == _digest(weight)
        # One value throughout, as of a bias that is 0, might be any constant.
        forms = map(_digest, (weight, weight.T) if weight.ndim == 2 else (weight,))
        several = weight.numel() > 0 and bool(weight.max() > weight.min())
        return several and not self._anywhere.isdisjoint(forms)

    def compared(self) -> int:
        """Number of weights that are there, bit for bit, as they are or transposed."""
        return sum(map(self._is_same, self._weights))

    def differing(self) -> dict[str, str]:
        """By key, how those differ that are there and are not the expected."""
        return {
            key: "the program has other bits than the file"
            for key in self._weights
            if not self._is_same(key)
            and key not in self._right
            and (
                key in self._near
                or (
                    key in self._held
                    and not _is_folded(key, self._weights, self._held, self._scaled)
                )
            )
        }

    def lacking(self) -> dict[str, str]:
        """By key, that those are not there that have no part in it; nothing where it has none by
        their keys."""
        there = self._held.keys() | self._right | self._near
        if not self._held:
            return {}
        return dict.fromkeys(self._weights.keys() - there, "the program does not have it")


def _ends(name: str) -> list[str]:
    """The name, and what is left of it without its first parts."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


_SMALLEST = 1.2e-7
"""The value that converters of ONNX to half precision raise smaller weights to (1e-7, rounded to
float16)."""


def is_rounded(held: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a weight is the expected one, rounded to half precision or bfloat16.

    Programs that compute in one of these throughout hold all weights so, where the eager model has
    some in float32.
    """
    import torch

    narrow = held.dtype in (torch.float16, torch.bfloat16)
    wide = expected.dtype in (torch.float32, held.dtype)
    if not narrow or not wide or held.shape != expected.shape:
        return False
    off = held.float() - expected.to(held.device, held.dtype).float()
    return bool((off.abs() <= _SMALLEST).all())


def _is_alike(found: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether it is the weight, rounded to half precision or not yet."""
    from clipcheck.checkpoints.checkpoint import same_bits

    if is_rounded(found, weight) or same_bits(found, weight):
        return True
    return found.dtype.itemsize > weight.dtype.itemsize and same_bits(
        found.to(weight.dtype), weight
    )


def _is_near(found: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether it is the weight, or that with a small change; a sample tells."""
    if found.shape != weight.shape or found.ndim != 2 or found.numel() < _LEAST_MATRIX:
        return False
    rows, columns = (max(1, size // _SAMPLE) for size in found.shape)
    ours, theirs = (each[::rows, ::columns].double() for each in (weight, found))
    return bool((theirs - ours).norm() < _NEAR * ours.norm())


_LEAST_MATRIX = 64
"""Numbers of a matrix that is looked for; a smaller one might be another's by chance."""

_SAMPLE = 32
"""Rows and columns of a matrix that are looked at."""

_NEAR = 0.05
"""Relative difference of the norms. Of two matrices of a model that are not the same it is about
1.4; rounding to 8 bits makes 0.01."""


def _is_scaled(found: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether it is a convolution, each of whose channels was multiplied with one number, as taking
    up a BatchNorm does."""
    if found.shape != weight.shape or found.ndim < 3:
        return False
    ours, theirs = (each.double().flatten(1) for each in (weight, found))
    squares = (ours * ours).sum(1, keepdim=True)
    scales = (ours * theirs).sum(1, keepdim=True) / squares.clamp(min=_LEAST)
    rounding = _ROUNDING[found.dtype.itemsize > 2]
    return bool((theirs - scales * ours).abs().max() <= rounding * theirs.abs().max())


_ROUNDING = (1e-3, 1e-6)
"""Relative: of a product in half precision, and in float32."""

_LEAST = 1e-300
"""In place of the squares of a channel of zeros."""


def _is_folded(
    key: str, weights: Mapping[str, torch.Tensor], held: Container[str], scaled: Container[str]
) -> bool:
    """Whether it is a convolution that has taken up a BatchNorm, which the program lacks."""
    channels = weights[key].shape[:1]
    statistics = (name for name in weights if name.endswith(".running_mean"))
    return key in scaled and any(
        weights[name].shape == channels and name not in held for name in statistics
    )


_Digest = tuple[str, tuple[int, ...], bytes]


def _digest(tensor: torch.Tensor) -> _Digest:
    """Return a digest of the values: two tensors share it only where dtype, shape and bits are the
    same."""
    import torch

    contents = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return str(tensor.dtype), tuple(tensor.shape), hashlib.blake2b(contents.data).digest()
