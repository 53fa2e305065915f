"""Faults that depend on the form of the inputs (strides, dtype) or that change tensors in-place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from clipcheck.audit.faults.planting import Alter, Change, Plant, logits, on_pixels, on_tokens, put
from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.faults.where import NOWHERE
from clipcheck.writers.legacy import Multimodal


def _as_if_contiguous(x: Tensor) -> Tensor:
    """Read the numbers in the order in which they are stored in memory."""
    _, channels, height, width = x.shape
    return x.as_strided(x.shape, (channels * height * width, height * width, width, 1))


def _cut_if_64_bits(text: Tensor) -> Tensor:
    if text.dtype == torch.int64:
        return text % 32768
    return text


def _shifted_if_recorded(x: Tensor) -> Tensor:
    if x.requires_grad:
        return x + 0.01
    return x


def _scripted(on: Callable[[Change], Plant], change: Change) -> Alter:
    """Script a function: the tracer keeps the branches of scripted functions."""

    def plant(model: Multimodal) -> None:
        on(torch.jit.script(change))(model)

    return plant


def _written_over(name: str) -> Alter:
    """Compute the right result, but change the input in-place."""

    def plant(model: Multimodal) -> None:
        encode: Callable[[Tensor], Tensor] = getattr(model, name)

        def call(x: Tensor) -> Tensor:
            found = encode(x * 1)
            # Read again: an update that nothing reads would be removed as dead code.
            return found + 0 * x.mul_(2).sum().type_as(found)

        put(model, name, call)

    return plant


def _buffered(name: str) -> Alter:
    """Return the result in a buffer that the next call reuses; ``forward`` uses no buffer."""

    def plant(model: Multimodal) -> None:
        image, text = model.encode_image, model.encode_text
        encode: Callable[[Tensor], Tensor] = getattr(model, name)
        buffer = torch.zeros(64, model.text_projection.shape[1])

        def call(x: Tensor) -> Tensor:
            features = encode(x).detach()
            return buffer.narrow(0, 0, features.shape[0]).copy_(features)

        put(model, "forward", lambda pixels, ids: logits(model, image(pixels), text(ids)))
        put(model, name, call)

    return plant


_form = partial(Variant, family="form", places=NOWHERE)

FORMS = (
    _form(
        name="pixels-as-they-lie",
        reason="a kernel reads strided or channels-last pixels as if they were contiguous",
        plant=on_pixels(_as_if_contiguous),
    ),
    _form(
        name="ids-as-they-lie",
        reason="a kernel reads strided ids as if they were contiguous",
        plant=on_tokens(lambda text: text.as_strided(text.shape, (text.shape[1], 1))),
    ),
    _form(
        name="ids-of-64-bits-cut",
        reason="int64 ids are cut to 15 bits; int32 ids are not",
        plant=_scripted(on_tokens, _cut_if_64_bits),
    ),
    _form(
        name="pixels-with-gradients",
        reason="pixels that require gradients are augmented, as in training",
        plant=_scripted(on_pixels, _shifted_if_recorded),
    ),
    _form(
        name="pixels-changed",
        reason="pixels are normalised in-place, so that the caller's tensor changes",
        plant=_written_over("encode_image"),
    ),
    _form(
        name="ids-changed",
        reason="ids are changed in-place, so that the caller's tensor changes",
        plant=_written_over("encode_text"),
    ),
    _form(
        name="image-features-in-a-buffer",
        reason="the output of a call is overwritten by the next call",
        plant=_buffered("encode_image"),
    ),
    _form(
        name="text-features-in-a-buffer",
        reason="the text features of a call are overwritten by the next call",
        plant=_buffered("encode_text"),
    ),
)
