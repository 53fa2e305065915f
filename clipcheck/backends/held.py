"""Compare the weights in a program with the expected weights."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING

from clipcheck.backends.opened import Opened
from clipcheck.backends.quantised import Matching
from clipcheck.gates.integrity import Evidence

if TYPE_CHECKING:
    import torch


def rounded_weights(
    weights: Mapping[str, torch.Tensor] | None, program: Opened, dtype: str | None
) -> Mapping[str, torch.dtype]:
    """Return by key the dtypes of the weights that a program stores in fewer bits than the dtype in
    which it computes.

    Args:
        weights: the expected weights, by key; None if they are not known.
        dtype: in which it computes.
    """
    if weights is None or dtype != "float32":
        return {}
    found = WeightsCompared(weights)

    def receive(
        name: str,
        tensor: torch.Tensor,
        steps: torch.Tensor | None = None,
        how: str = "",  # noqa: ARG001 - of a quantised weight
    ) -> None:
        if steps is None:
            found.receive(name, tensor)

    program.weights(receive)
    return found.rounded


def weights_evidence(
    weights: Mapping[str, torch.Tensor] | None,
    program: Opened,
    whole: bool,
    *,
    folds: bool = False,
) -> Evidence:
    """Compare the weights of a program with the expected ones: bit for bit, or if they are
    quantised, to within a step of their scale.

    Args:
        weights: the expected weights, by key; None if they are not known.
        whole: whether the program must have all of them.
        folds: whether its exporter folds constants, so that some weights may be missing.
    """
    if weights is None:
        return Evidence(weights=None, doubts=program.doubts)
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
        weights=found.compared() or None,
        doubts=program.doubts,
        differing={**found.differing(), **lacking, **quantised.differing},
        quantised=quantised.matched,
        tensors=quantised.tensors,
        levels=quantised.levels,
        rounded={key: str(dtype)[len("torch.") :] for key, dtype in found.rounded.items()},
    )


class WeightsCompared:
    """Compares the weights of a program with the expected ones, one at a time.

    Exporters fold constants, such as a BatchNorm into the convolution before it, or an exponential
    of a weight. `compared` does not count folded weights, nor weights rounded for a program in half
    precision. Any other weight with a known name must be equal to the file's, and so must a matrix
    without a known name that is close to one of the file's.

    Attributes:
        rounded: by key, the dtype of a weight that the program has rounded to fewer bits.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = {key: each.detach().cpu() for key, each in weights.items()}
        self._held: dict[str, _Digest] = {}
        self._anywhere: set[_Digest] = set()
        self._right: set[str] = set()
        self._scaled: set[str] = set()
        self._near: set[str] = set()
        self._same: dict[str, bool] = {}
        self.rounded: dict[str, torch.dtype] = {}
        self._longer: dict[str, list[str]] = {}
        self._by_shape: dict[tuple[int, ...], list[str]] = {}
        for key, each in weights.items():
            for end in _ends(key)[1:]:
                self._longer.setdefault(end, []).append(key)
            self._by_shape.setdefault(tuple(sorted(each.shape)), []).append(key)

    def receive(self, name: str, held: torch.Tensor) -> None:
        """Compare one weight.

        Args:
            name: in the program: its key, with any prefix of a wrapper, or a name that an exporter
                made.
            held: the program's tensor.
        """
        held = held.detach().cpu()
        digest = _digest(held)
        self._anywhere.add(digest)
        key = self._key(name, held)
        if key is not None:
            self._held[key] = digest
            if _is_alike(held, self._weights[key]):
                self._take(key, held)
            if _is_scaled(held, self._weights[key]):
                self._scaled.add(key)
        elif held.ndim != 2 and held.numel() >= _LEAST_MATRIX:
            for known in self._by_shape.get(tuple(sorted(held.shape)), ()):
                if is_rounded(held, self._weights[known]):
                    self.rounded[known] = held.dtype
        elif held.ndim == 2 and held.is_floating_point():
            for known in self._by_shape.get(tuple(sorted(held.shape)), ()):
                for each in (self._weights[known], self._weights[known].T):
                    if _is_alike(held, each) and _is_near(held, each):
                        self._take(known, held)
                    elif _is_near(held, each):
                        self._near.add(known)

    def _take(self, key: str, held: torch.Tensor) -> None:
        """Count a weight as right, and as rounded if it has fewer bits than the file's."""
        self._right.add(key)
        if held.dtype.itemsize < self._weights[key].dtype.itemsize:
            self.rounded[key] = held.dtype

    def _key(self, name: str, held: torch.Tensor) -> str | None:
        """Return the key for a name in a program, or None: shorter than the name if the model was
        in a wrapper; longer if a tower was exported alone, and then the weight must be close."""
        own = [key for key in _ends(name) if key in self._weights]
        longer = self._longer.get(name, [])
        alike = (key for key in (*own, *longer) if _is_alike(held, self._weights[key]))
        near = (key for key in longer if _is_near(held, self._weights[key]))
        return next((key for several in (alike, near, own) for key in several), None)

    def _is_same(self, key: str) -> bool:
        """Whether the program has the weight bit for bit. Call it after all `receive` calls."""
        if key not in self._same:
            self._same[key] = self._is_anywhere(key)
        return self._same[key]

    def _is_anywhere(self, key: str) -> bool:
        weight = self._weights[key]
        if key in self._held:
            return self._held[key] == _digest(weight)
        # A tensor of a single value, such as a bias of zeros, might be any constant.
        forms = map(_digest, (weight, weight.T) if weight.ndim == 2 else (weight,))
        several = weight.numel() > 0 and bool(weight.max() > weight.min())
        return several and not self._anywhere.isdisjoint(forms)

    def compared(self) -> int:
        """Return the number of weights that the program has bit for bit, also transposed."""
        return sum(map(self._is_same, self._weights))

    def differing(self) -> dict[str, str]:
        """Describe by key the weights in the program that differ from the expected ones."""
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
        """Describe by key the weights that the program lacks; empty if it has no known names."""
        there = self._held.keys() | self._right | self._near
        if not self._held:
            return {}
        return dict.fromkeys(self._weights.keys() - there, "the program does not have it")


def _ends(name: str) -> list[str]:
    """Return the name, and its endings after each dot."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


_SMALLEST = 1.2e-7
"""Least absolute value of weights after conversion of ONNX to half precision: converters raise
smaller ones to it (1e-7, rounded to float16)."""


def is_rounded(held: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a weight is the expected one, rounded to half precision or bfloat16.

    Programs that compute only in one of these round all weights, while the eager model has some in
    float32.
    """
    import torch

    narrow = held.dtype in (torch.float16, torch.bfloat16)
    wide = expected.dtype in (torch.float32, held.dtype)
    if not narrow or not wide or held.shape != expected.shape:
        return False
    off = held.float() - expected.to(held.device, held.dtype).float()
    return bool((off.abs() <= _SMALLEST).all())


def _is_alike(found: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a tensor is the weight, rounded to half precision or before such rounding."""
    from clipcheck.checkpoints.checkpoint import same_bits

    if is_rounded(found, weight) or same_bits(found, weight):
        return True
    return found.dtype.itemsize > weight.dtype.itemsize and same_bits(
        found.to(weight.dtype), weight
    )


def _is_near(found: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a matrix is the weight, or the weight with a small change, by a sample."""
    if found.shape != weight.shape or found.ndim != 2 or found.numel() < _LEAST_MATRIX:
        return False
    rows, columns = (max(1, size // _SAMPLE) for size in found.shape)
    ours, theirs = (each[::rows, ::columns].double() for each in (weight, found))
    return bool((theirs - ours).norm() < _NEAR * ours.norm())


_LEAST_MATRIX = 64
"""Least size of a matrix to find by its values; a smaller one might match by chance."""

_SAMPLE = 32
"""Number of rows and columns in a sample of a matrix."""

_NEAR = 0.05
"""Greatest relative norm of the difference. For two different matrices of a model it is about 1.4;
for rounding to 8 bits 0.01."""


def _is_scaled(found: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a tensor is the convolution with each channel multiplied by one number, as after
    folding a BatchNorm."""
    if found.shape != weight.shape or found.ndim < 3:
        return False
    ours, theirs = (each.double().flatten(1) for each in (weight, found))
    squares = (ours * ours).sum(1, keepdim=True)
    scales = (ours * theirs).sum(1, keepdim=True) / squares.clamp(min=_LEAST)
    rounding = _ROUNDING[found.dtype.itemsize > 2]
    return bool((theirs - scales * ours).abs().max() <= rounding * theirs.abs().max())


_ROUNDING = (1e-3, 1e-6)
"""Greatest relative rounding error of a product in half precision, and in float32."""

_LEAST = 1e-300
"""Divisor in place of the squares of a channel of zeros."""


def _is_folded(
    key: str, weights: Mapping[str, torch.Tensor], held: Container[str], scaled: Container[str]
) -> bool:
    """Whether a weight is a convolution with a folded BatchNorm, which the program lacks."""
    channels = weights[key].shape[:1]
    statistics = (name for name in weights if name.endswith(".running_mean"))
    return key in scaled and any(
        weights[name].shape == channels and name not in held for name in statistics
    )


_Digest = tuple[str, tuple[int, ...], bytes]


def _digest(tensor: torch.Tensor) -> _Digest:
    """Return a digest of a tensor: two share it only if dtype, shape and bits are the same."""
    import torch

    contents = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return str(tensor.dtype), tuple(tensor.shape), hashlib.blake2b(contents.data).digest()
