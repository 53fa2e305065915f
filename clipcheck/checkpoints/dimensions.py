"""The dimensions of a model, as a document holds them: what its tensors imply, and no more."""

from __future__ import annotations

from collections.abc import Mapping

from clipcheck.checkpoints.architecture import Architecture, ViT

Dimensions = Mapping[str, int | str]


def dimensions(architecture: Architecture) -> dict[str, int | str]:
    """By name, each dimension. How a model computes with them, such as its activation, is none."""
    a = architecture
    if isinstance(a.vision, ViT):
        vision: dict[str, int | str] = {
            "image tower": "ViT",
            "image layers": a.vision.layers,
            "patch size": a.vision.patch_size,
            "image perceptron width": a.vision.mlp_width,
        }
    else:
        vision = {
            "image tower": "ModifiedResNet",
            "image layers": "-".join(map(str, a.vision.layers)),
        }
    return {
        **vision,
        "image width": a.vision.width,
        "image resolution": a.image_resolution,
        "text layers": a.text_layers,
        "text width": a.text_width,
        "text perceptron width": a.text_mlp_width,
        "context length": a.context_length,
        "vocabulary size": a.vocab_size,
        "embedding width": a.embed_dim,
    }
