"""The reference of every candidate: the eager model and its float64 twin."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clipcheck.backends.calling import Array, run_method, to_numpy
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.families.base import DualEncoder
from clipcheck.families.registry import over
from clipcheck.gates.result import ENCODERS, LOGITS
from clipcheck.inputs.batches import MOST_ROWS
from clipcheck.system.progress import Advance, Tally, still

Pixels = NDArray[np.float32]
Tokens = NDArray[np.int32]
Named = dict[str, Array]


class Reference:
    """Runs an eager model in its own dtype, and in float64.

    Each batch goes through each tower once, and logits are computed from the features. In float64
    only one tower is in memory at a time.

    Args:
        device: of its weights. Without float64, as on ``mps``, the CPU computes float64.
        twin: the model in float64, which stays in memory; by default a copy of one tower is made
            of its weights when it runs.
    """

    def __init__(
        self,
        model: DualEncoder,
        architecture: Architecture | LibraryArchitecture | None,
        device: torch.device,
        twin: DualEncoder | None = None,
    ) -> None:
        self._model = model
        self._twin = twin
        self._architecture = architecture
        self._device = device
        self._exact_device = float64_device(device)

    @property
    def scale(self) -> float:
        """exp(logit_scale); logits are proportional to it."""
        return float(self._model.log_scale().detach().cpu().double().exp())

    @property
    def bias(self) -> float:
        """The bias of logits: the logit of two features at a right angle."""
        one = torch.eye(2, device=self._device)
        with exact_arithmetic():
            return float(self._model.logits(one[:1], one[1:])[0])

    def outputs(
        self,
        inputs: Sequence[tuple[Pixels, Tokens]],
        advance: Advance = still,
        lengths: Tokens | None = None,
    ) -> list[Named]:
        """Return all four outputs of the eager model in its own dtype, for each batch.

        Args:
            inputs: pixels and tokens of each batch.
            advance: called with the share of the rows that is done.
            lengths: prompts of `clipcheck.inputs.batches.every_length`; their text features are
                added as a last batch.

        Raises:
            RunError: the model cannot be run.
        """
        model, device = self._model, self._device
        encode = _Encoder(inputs, advance)
        with exact_arithmetic():
            images = [encode(model, "encode_image", pixels, device) for pixels, _ in inputs]
            texts = [encode(model, "encode_text", tokens, device) for _, tokens in inputs]
            return [*_named(model, images, texts), *_of_lengths(model, lengths, device)]

    def exact_outputs(
        self,
        inputs: Sequence[tuple[Pixels, Tokens]],
        advance: Advance = still,
        lengths: Tokens | None = None,
    ) -> list[Named]:
        """Return all four outputs of the same model in float64, for each batch.

        Raises:
            RunError: the model cannot be run.
        """
        device = self._exact_device
        encode = _Encoder(inputs, advance)
        with exact_arithmetic():
            model = self.in_float64(self._model.is_visual)
            images = [encode(model, "encode_image", pixels, device) for pixels, _ in inputs]
            del model
            model = self.in_float64(lambda key: not self._model.is_visual(key))
            texts = _encode_by_length(encode, model, [tokens for _, tokens in inputs], device)
            return [*_named(model, images, texts), *_of_lengths(model, lengths, device)]

    def standing(self) -> Standing:
        """Return a runner of single inputs, which keeps its float64 weights between calls."""
        return Standing(self._model, self._device, self._exact_device, self.in_float64)

    def in_float64(self, chosen: Callable[[str], bool]) -> DualEncoder:
        """Copy the model with the chosen weights in float64, the others unchanged; or return the
        twin that was given."""
        if self._twin is not None:
            return self._twin
        if self._architecture is None:
            raise ValueError("expected an architecture, or the model in float64")
        weights = {
            # First move, then convert: a device without float64 cannot convert.
            key: tensor.to(self._exact_device).to(torch.float64)
            if chosen(key) and tensor.is_floating_point()
            else tensor
            for key, tensor in self._model.state_dict().items()
        }
        return over(self._architecture, weights)


class Standing:
    """Runs single inputs through an eager model, in its own dtype and in float64.

    A tower's float64 weights are made when it first runs, and kept.
    """

    def __init__(
        self,
        model: DualEncoder,
        device: torch.device,
        exact_device: torch.device,
        in_float64: Callable[[Callable[[str], bool]], DualEncoder],
    ) -> None:
        self._model = model
        self._device = device
        self._exact_device = exact_device
        self._visual = functools.cache(lambda: in_float64(model.is_visual))
        self._text = functools.cache(lambda: in_float64(lambda key: not model.is_visual(key)))

    def features(self, method: str, array: NDArray[Any]) -> tuple[Array, Array]:
        """Return the output of ``encode_image`` or ``encode_text``, in the model's dtype and in
        float64.

        Raises:
            RunError: the model cannot be run.
        """
        return self.own_features(method, array), self.exact_features(method, array)

    def outputs(self, pixels: Pixels, tokens: Tokens) -> tuple[Named, Named]:
        """Return all four outputs, in the model's dtype and in float64.

        Raises:
            RunError: the model cannot be run.
        """
        images, texts = (
            self._features("encode_image", pixels),
            self._features("encode_text", tokens),
        )
        with exact_arithmetic():
            (own,) = _named(self._model, images[:1], texts[:1])
            (exact,) = _named(self._text(), images[1:], texts[1:])
        return own, exact

    def own_features(self, method: str, array: NDArray[Any]) -> Array:
        """Return the output of ``encode_image`` or ``encode_text`` in the model's dtype alone.

        Raises:
            RunError: the model cannot be run.
        """
        with exact_arithmetic():
            return _require(_encode(self._model, method, array, self._device), method)

    def exact_features(self, method: str, array: NDArray[Any]) -> Array:
        """Return the output of ``encode_image`` or ``encode_text`` in float64 alone.

        Raises:
            RunError: the model cannot be run.
        """
        with exact_arithmetic():
            twin = self._visual() if method == "encode_image" else self._text()
            return _require(_encode(twin, method, array, self._exact_device), method)

    def _features(
        self, method: str, array: NDArray[Any]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        with exact_arithmetic():
            twin = self._visual() if method == "encode_image" else self._text()
            own = _encode(self._model, method, array, self._device)
            return own, _encode(twin, method, array, self._exact_device)


def float64_device(device: torch.device) -> torch.device:
    """Return the device itself, or the CPU if it has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


@contextmanager
def exact_floats() -> Iterator[None]:
    """Compute float32 exactly as float32: without TF32, bfloat16 or sums in half precision."""
    matmul = torch.backends.cuda.matmul
    precision = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn.allow_tf32
    reductions = (
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
    )
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    _set_reductions(False, False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = cudnn
        _set_reductions(*reductions)


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Use `exact_floats` without gradients."""
    with exact_floats(), torch.inference_mode():
        yield


def _set_reductions(half: Any, bfloat16: Any) -> None:
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = half
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = bfloat16


class _Encoder:
    """Encodes batches, and counts the rows that are done."""

    def __init__(self, inputs: Sequence[tuple[Pixels, Tokens]], advance: Advance) -> None:
        self._tally = Tally(sum(len(pixels) + len(tokens) for pixels, tokens in inputs), advance)

    def __call__(
        self, model: DualEncoder, method: str, array: NDArray[Any], device: torch.device
    ) -> torch.Tensor | None:
        features = _encode(model, method, array, device)
        self._tally.add(len(array))
        return features


def _encode(
    model: DualEncoder, method: str, array: NDArray[Any], device: torch.device
) -> torch.Tensor | None:
    """Return features, or None if the model does not have the tower."""
    if ENCODERS[method] not in model.outputs:
        return None
    features: torch.Tensor = run_method("eager", model, method, torch.from_numpy(array).to(device))
    return features


def _require(features: torch.Tensor | None, method: str) -> Array:
    if features is None:
        raise ValueError(f"expected a model with {method}")
    return to_numpy(features)


def _encode_by_length(
    encode: _Encoder, model: DualEncoder, batches: Sequence[Tokens], device: torch.device
) -> Sequence[torch.Tensor | None]:
    """The features of texts, for each batch. What follows the end of a text has no effect on it, so
    texts of about the same length are run together, and cut behind their ends."""
    tokens = np.concatenate(batches)
    # Another length the model may refuse.
    if tokens.shape[1] != model.context_length or not model.ends_unseen:
        return [encode(model, "encode_text", batch, device) for batch in batches]
    ends = tokens.argmax(axis=1)
    order = np.argsort(ends, kind="stable")
    found = [
        encode(model, "encode_text", tokens[rows, : int(ends[rows].max()) + 1], device)
        for rows in np.array_split(order, -(-len(order) // MOST_ROWS))
    ]
    back = torch.from_numpy(np.argsort(order)).to(device)
    whole = torch.cat([each for each in found if each is not None])
    return list(whole[back].split([len(batch) for batch in batches]))


def _of_lengths(model: DualEncoder, lengths: Tokens | None, device: torch.device) -> list[Named]:
    if lengths is None:
        return []
    every = torch.from_numpy(lengths).to(device)
    return [{"text_features": to_numpy(model.encode_lengths(every))}]


def _named(
    model: DualEncoder,
    images: Sequence[torch.Tensor | None],
    texts: Sequence[torch.Tensor | None],
) -> list[Named]:
    found: list[Named] = []
    scaled = set(LOGITS).issubset(model.outputs)
    for image_features, text_features in zip(images, texts, strict=True):
        named = {"image_features": image_features, "text_features": text_features}
        if image_features is not None and text_features is not None and scaled:
            named.update(zip(LOGITS, model.logits(image_features, text_features), strict=True))
        found.append({name: to_numpy(each) for name, each in named.items() if each is not None})
    return found
