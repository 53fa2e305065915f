"""Faults of the two projections, of the norms of the features, and of the scale of the logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from clipcheck.faults.planting import (
    Pair,
    logits,
    not_in_forward,
    on_image_features,
    on_text_features,
    only_in_forward,
    unit,
    with_head,
)
from clipcheck.faults.variant import Variant
from clipcheck.writers.legacy import Multimodal

Scale = Callable[[Tensor], Tensor]


def _scaled(scale: Scale, model: Multimodal, image: Tensor, text: Tensor) -> Pair:
    per_image = scale(model.logit_scale) * unit(image) @ unit(text).t()
    return per_image, per_image.t()


def _normalised(
    of_image: Scale, of_text: Scale, model: Multimodal, image: Tensor, text: Tensor
) -> Pair:
    per_image = model.logit_scale.exp() * of_image(image) @ of_text(text).t()
    return per_image, per_image.t()


def _unlike_sides(model: Multimodal, image: Tensor, text: Tensor) -> Pair:
    per_image, _ = logits(model, image, text)
    return per_image, (model.logit_scale.exp() * text) @ unit(image).t()


def _per_text_of_smaller_scale(model: Multimodal, image: Tensor, text: Tensor) -> Pair:
    per_image, per_text = logits(model, image, text)
    return per_image, per_text / model.logit_scale.exp()


def _not_transposed(model: Multimodal, image: Tensor, text: Tensor) -> Pair:
    per_image, _ = logits(model, image, text)
    return per_image, per_image * 1


def _exchanged(model: Multimodal, image: Tensor, text: Tensor) -> Pair:
    per_image, per_text = logits(model, image, text)
    return per_text * 1, per_image * 1


def _probabilities(model: Multimodal, image: Tensor, text: Tensor) -> Pair:
    per_image, per_text = logits(model, image, text)
    return per_image.softmax(dim=-1), per_text.softmax(dim=-1)


def _centred(model: Multimodal, image: Tensor, text: Tensor) -> Pair:
    return logits(model, image - image.mean(-1, keepdim=True), text)


def _near_unit(epsilon: float, x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + epsilon).sqrt()


def _summed(x: Tensor) -> Tensor:
    return x / x.abs().sum(-1, keepdim=True)


def _same(x: Tensor) -> Tensor:
    return x * 1


_projection = partial(Variant, family="projection")


def _with_scale(scale: Scale) -> partial[Variant]:
    return partial(_projection, plant=with_head(partial(_scaled, scale)))


def _with_norms(of_image: Scale, of_text: Scale) -> partial[Variant]:
    return partial(_projection, plant=with_head(partial(_normalised, of_image, of_text)))


PROJECTION = (
    _with_scale(lambda scale: scale)(
        name="logit-scale-not-exponentiated",
        reason="logit_scale is the logarithm of the scale, and is used as the scale",
    ),
    _with_scale(lambda scale: scale.exp().clamp(max=50))(
        name="logit-scale-clipped-at-50",
        reason="training clips the scale at 100; here it is clipped at another value",
    ),
    _with_scale(lambda scale: scale.clamp(max=4.6).exp())(
        name="logit-scale-clipped-at-4.6",
        reason="the logarithm is clipped at 4.6, which is a little less than ln 100",
    ),
    _with_scale(lambda scale: scale * 0 + 1 / 0.07)(
        name="initial-logit-scale",
        reason="the scale that training starts from, 1 / 0.07: openai/CLIP#67, it was not loaded",
    ),
    _with_scale(lambda scale: scale * 0 + 1)(
        name="logit-scale-left-out",
        reason="plain cosines, as with logit_scale=1 for retrieval",
    ),
    _with_scale(lambda scale: scale.exp().square())(
        name="logit-scale-twice",
        reason="both sides are multiplied by the scale",
    ),
    _with_norms(_same, unit)(
        name="image-features-not-normalised",
        reason="the features of images are not brought to length one",
    ),
    _with_norms(unit, _same)(
        name="text-features-not-normalised",
        reason="the features of texts are not brought to length one",
    ),
    _with_norms(partial(_near_unit, 1e-1), unit)(
        name="normalised-with-great-epsilon",
        reason="0.1 is added under the root of the norm of images",
    ),
    _with_norms(unit, _summed)(
        name="normalised-by-sum",
        reason="text features are divided by the sum of absolute values (p=1)",
    ),
    _projection(
        name="image-features-centred",
        reason="the mean of the features is taken off, as in a Pearson correlation",
        plant=with_head(_centred),
    ),
    _projection(
        name="per-text-of-other-features",
        reason="logits_per_text computed anew, from texts that are not normalised",
        plant=with_head(_unlike_sides),
    ),
    _projection(
        name="per-text-without-scale",
        reason="logits_per_text computed anew, without the scale",
        plant=with_head(_per_text_of_smaller_scale),
    ),
    _projection(
        name="per-text-not-transposed",
        reason="both outputs are logits_per_image",
        plant=with_head(_not_transposed),
    ),
    _projection(
        name="outputs-exchanged",
        reason="logits_per_text comes first, as in the outputs of some exports",
        plant=with_head(_exchanged),
    ),
    _projection(
        name="probabilities-for-logits",
        reason="the softmax of the demo is part of the export",
        plant=with_head(_probabilities),
    ),
    _projection(
        name="image-encoder-normalises",
        reason="encode_image(normalize=True) of open_clip; the logits do not change",
        plant=on_image_features(unit),
    ),
    _projection(
        name="text-encoder-normalises-outside-of-forward",
        reason="encode_text gives features of length one, and forward has its own",
        plant=not_in_forward("encode_text", unit),
    ),
    _projection(
        name="text-features-scaled-by-two",
        reason="the projection has another scale; only encode_text shows it",
        plant=on_text_features(lambda x: x * 2),
    ),
    _projection(
        name="components-rotated-in-forward-alone",
        reason="forward and encode_image are graphs of their own, and one was exported anew",
        plant=only_in_forward("encode_image", lambda x: x.roll(1, -1)),
    ),
    _projection(
        name="components-rotated-outside-of-forward",
        reason="forward and encode_image are graphs of their own, and one was exported anew",
        plant=not_in_forward("encode_image", lambda x: x.roll(1, -1)),
    ),
    _projection(
        name="text-components-rotated-in-forward-alone",
        reason="forward and encode_text are graphs of their own, and one was exported anew",
        plant=only_in_forward("encode_text", lambda x: x.roll(1, -1)),
    ),
)
