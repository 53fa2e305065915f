"""Classes of transformers whose own model is the reference, and unsupported ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Mask = Literal["", "pad", "end"]
"""Attention mask of a text: none, all ids except padding, or up to the end."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A class of transformers with an image tower and a text tower, or only one of them.

    Attributes:
        model_type: of its configuration, which identifies it.
        name: of the class.
        texts: rules for rows of ids: ``clip`` (as CLIP's, where the end is the greatest id),
            ``ids`` (between the special ids of the configuration) or ``last`` (padded to the whole
            length, whose last token is pooled).
        mask: attention mask of texts.
        length: most tokens of a text in use; the configuration may allow more.
        pixels: by default from -1 to 1 (``half``) or from 0 to 1 (``unit``), with both sides
            resized; or as CLIP's.
        has_bias: whether logits have a bias and are for a sigmoid of each pair.
        unprojected: whether features are as wide as the towers, without a projection.
        divides: whether logits are divided by a temperature, not multiplied by a scale.
        tower: ``image`` or ``text`` for a single tower; empty for both.
        projected: name of its features, if it has a projection after pooling.
        patches: whether the image tower takes the patches of images of any shape; it is judged on
            squares.
    """

    model_type: str
    name: str
    texts: Literal["clip", "ids", "last"] = "clip"
    mask: Mask = ""
    length: int = 77
    pixels: Literal["clip", "half", "unit"] = "clip"
    has_bias: bool = False
    unprojected: bool = False
    divides: bool = False
    patches: bool = False
    tower: Literal["", "image", "text"] = ""
    projected: str = ""


KINDS = {
    kind.model_type: kind
    for kind in (
        # Its texts are padded to the full length, and attention includes the padding.
        Kind(
            model_type="siglip",
            name="SiglipModel",
            texts="last",
            pixels="half",
            has_bias=True,
            unprojected=True,
        ),
        Kind(
            model_type="siglip2",
            name="Siglip2Model",
            texts="last",
            pixels="half",
            has_bias=True,
            unprojected=True,
            patches=True,
        ),
        Kind(
            model_type="chinese_clip", name="ChineseCLIPModel", texts="ids", mask="pad", length=52
        ),
        Kind(model_type="altclip", name="AltCLIPModel", texts="ids", mask="pad"),
        # In these two the ids after the end have no effect: attention is causal.
        Kind(model_type="metaclip_2", name="MetaClip2Model", texts="ids"),
        # The checkpoint of the class for segmentation fits too; its decoder is ignored.
        Kind(model_type="clipseg", name="CLIPSegModel"),
        # Without a mask its attention would not be causal.
        Kind(model_type="aimv2", name="Aimv2Model", mask="end"),
        Kind(
            model_type="align",
            name="AlignModel",
            texts="ids",
            mask="pad",
            length=64,
            pixels="half",
            divides=True,
        ),
        Kind(
            model_type="tipsv2",
            name="Tipsv2Model",
            texts="ids",
            mask="pad",
            length=64,
            pixels="unit",
            unprojected=True,
            divides=True,
        ),
        Kind(
            model_type="vision-text-dual-encoder",
            name="VisionTextDualEncoderModel",
            texts="ids",
            mask="pad",
            pixels="half",
        ),
    )
}
"""By the model type."""

CLIP = Kind(model_type="clip", name="CLIPModel")
"""The class that clipcheck's own modules support; for archives of the library's class, the
library's own model is the reference."""

TOWERS = {
    kind.name: kind
    for kind in (
        Kind(model_type="clip_text_model", name="CLIPTextModel", tower="text"),
        Kind(
            model_type="clip_text_model",
            name="CLIPTextModelWithProjection",
            tower="text",
            projected="text_embeds",
        ),
        Kind(model_type="clip_vision_model", name="CLIPVisionModel", tower="image"),
        Kind(
            model_type="clip_vision_model",
            name="CLIPVisionModelWithProjection",
            tower="image",
            projected="image_embeds",
        ),
        Kind(model_type="siglip_text_model", name="SiglipTextModel", texts="last", tower="text"),
        Kind(
            model_type="siglip_vision_model", name="SiglipVisionModel", pixels="half", tower="image"
        ),
    )
}
"""Classes of a single tower, by name: several have the same model type."""

UNSUPPORTED: Mapping[str, str] = {
    "xclip": "X-CLIP, whose images are several frames of a video, and whose text features depend "
    "on the video that they are compared with: it is not two towers",
    "owlvit": "OWL-ViT, which detects objects: its logits belong to places in an image",
    "owlv2": "OWLv2, which detects objects: its logits belong to places in an image",
    "groupvit": "GroupViT, which assigns each part of an image to the nearest group: rounding "
    "alone may change the group, so that a distance from float64 has no meaning",
    "blip": "BLIP, whose text tower attends to the image: it is not two towers",
    "blip-2": "BLIP-2, whose text tower attends to the image: it is not two towers",
    "flava": "FLAVA, which has a third tower for both",
    "bridgetower": "BridgeTower, whose towers attend to each other: it is not two towers",
    "clap": "CLAP, which takes sounds",
    "pe_audio": "PE Audio, which takes sounds",
    "pe_audio_video": "PE Audio-Video, which takes sounds and frames of a video",
    "pe_video": "PE Video, which takes frames of a video",
    "clvp": "CLVP, which takes speech",
    "videoprism": "VideoPrism, which takes frames of a video",
    "sam3": "SAM 3, which finds objects by a text: its features are no embeddings of an image",
    "sam3_lite_text": "SAM 3, which finds objects by a text: its features are no embeddings of an "
    "image",
}
"""By model type, why models are not supported."""


def supported() -> str:
    """List the supported classes."""
    return ", ".join(["CLIPModel", *(kind.name for kind in KINDS.values()), *TOWERS])


def kind_of(config: Mapping[str, Any]) -> Kind | None:
    """Return the class of a configuration of transformers, or None."""
    model_type, named = config.get("model_type"), config.get("architectures")
    if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str):
        tower = TOWERS.get(named[0])
        if tower is not None and tower.model_type == model_type:
            return tower
    if model_type == CLIP.model_type:
        return CLIP
    return KINDS.get(model_type) if isinstance(model_type, str) else None
