"""Faults of the two projections, of the norms of the features, and of the scale of the logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from clipcheck.audit.faults.planting import (
    Pair,
    logits,
    on_image_features,
    on_text_features,
    only_in_forward,
    unit,
    with_head,
)
from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.faults.where import FORWARD, Where
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


def _not_transposed(model: Multimodal, image: Tensor, text: Tensor) -> Pair:
    per_image, _ = logits(model, image, text)
    return per_image, per_image * 1


def _probabilities(model: Multimodal, image: Tensor, text: Tensor) -> Pair:
    per_image, per_text = logits(model, image, text)
    return per_image.softmax(dim=-1), per_text.softmax(dim=-1)


_projection = partial(Variant, family="projection")


def _with_scale(scale: Scale) -> partial[Variant]:
    return partial(_projection, plant=with_head(partial(_scaled, scale)))


def _with_norms(of_image: Scale, of_text: Scale) -> partial[Variant]:
    return partial(_projection, plant=with_head(partial(_normalised, of_image, of_text)))


PROJECTION = (
    _with_scale(lambda scale: scale)(
        name="logit-scale-not-exponentiated",
        reason="logit_scale, the logarithm of the scale, is used as the scale",
    ),
    _with_scale(lambda scale: scale.clamp(max=4.6).exp())(
        name="logit-scale-clipped-at-4.6",
        reason="the logarithm of the scale is clipped at 4.6, slightly below ln 100",
    ),
    _with_norms(lambda x: x * 1, unit)(
        name="image-features-not-normalised",
        reason="image features are not normalised to length 1",
    ),
    _with_norms(lambda x: x / (x.square().sum(-1, keepdim=True) + 1e-1).sqrt(), unit)(
        name="normalised-with-great-epsilon",
        reason="0.1 is added under the square root of the norm of image features",
    ),
    _projection(
        name="per-text-of-other-features",
        reason="logits_per_text is computed separately, from texts that are not normalised",
        plant=with_head(_unlike_sides),
    ),
    _projection(
        name="per-text-not-transposed",
        reason="both outputs are logits_per_image",
        plant=with_head(_not_transposed),
    ),
    _projection(
        name="probabilities-for-logits",
        reason="the softmax of the usage example is part of the export",
        plant=with_head(_probabilities),
        # Its output is reported as probabilities, and is not compared.
        places=(Where(FORWARD, "outside of its modules"),),
    ),
    _projection(
        name="image-encoder-normalises",
        reason="encode_image(normalize=True) of open_clip; logits stay the same",
        plant=on_image_features(unit),
    ),
    _projection(
        name="text-features-scaled-by-two",
        reason="the text projection has another scale; only encode_text shows it",
        plant=on_text_features(lambda x: x * 2),
    ),
    _projection(
        name="components-rotated-in-forward-alone",
        reason="forward and encode_image are separate graphs, and only one was re-exported",
        plant=only_in_forward("encode_image", lambda x: x.roll(1, -1)),
    ),
)
