"""Names, shapes and dtypes of the state dict of an architecture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from clipcheck.checkpoints.architecture import BUFFERS, Architecture, ResNet, ViT

if TYPE_CHECKING:
    pass


UNTRAINED = ("buffer", "statistic")
"""Kinds of `Spec` that an optimiser does not change."""

_RELEASED_DTYPES = {
    "weight": "float16",
    "norm": "float32",
    "embedding": "float32",
    "statistic": "float32",
    "buffer": "int64",
}


class Spec(NamedTuple):
    """Expected shape and kind of a tensor in a state dict.

    ``kind`` is ``weight`` (of a convolution, a linear layer or a projection), ``norm``,
    ``embedding``, ``statistic`` (of a BatchNorm) or ``buffer`` (an integer).
    """

    shape: tuple[int, ...]
    kind: str

    @property
    def released_dtype(self) -> str:
        """Name of the dtype in the released files."""
        return _RELEASED_DTYPES[self.kind]


Specs = Iterator[tuple[str, Spec]]


def specs(architecture: Architecture) -> Specs:
    """Yield every key of the released state dict with its `Spec`, in released order."""
    a = architecture
    yield "positional_embedding", Spec((a.context_length, a.text_width), "embedding")
    yield "text_projection", Spec((a.text_width, a.embed_dim), "weight")
    yield "logit_scale", Spec((), "embedding")
    for name in BUFFERS:
        yield name, Spec((), "buffer")
    visual = _vit(a, a.vision) if isinstance(a.vision, ViT) else _resnet(a, a.vision)
    yield from _prefixed("visual", visual)
    yield from _prefixed("transformer", _transformer(a.text_width, a.text_layers, a.text_mlp_width))
    yield "token_embedding.weight", Spec((a.vocab_size, a.text_width), "embedding")
    yield from _norm("ln_final", a.text_width)


def _prefixed(prefix: str, items: Specs) -> Specs:
    return ((f"{prefix}.{key}", spec) for key, spec in items)


def _norm(name: str, width: int) -> Specs:
    yield f"{name}.weight", Spec((width,), "norm")
    yield f"{name}.bias", Spec((width,), "norm")


def _linear(name: str, width_in: int, width_out: int) -> Specs:
    yield f"{name}.weight", Spec((width_out, width_in), "weight")
    yield f"{name}.bias", Spec((width_out,), "weight")


def _transformer(width: int, layers: int, mlp_width: int) -> Specs:
    for layer in range(layers):
        yield from _prefixed(f"resblocks.{layer}", _residual_block(width, mlp_width))


def _residual_block(width: int, mlp_width: int) -> Specs:
    yield "attn.in_proj_weight", Spec((3 * width, width), "weight")
    yield "attn.in_proj_bias", Spec((3 * width,), "weight")
    yield from _linear("attn.out_proj", width, width)
    yield from _norm("ln_1", width)
    yield from _linear("mlp.c_fc", width, mlp_width)
    yield from _linear("mlp.c_proj", mlp_width, width)
    yield from _norm("ln_2", width)


def _vit(a: Architecture, vision: ViT) -> Specs:
    width, patch = vision.width, vision.patch_size
    yield "class_embedding", Spec((width,), "embedding")
    yield "positional_embedding", Spec((a.grid**2 + 1, width), "embedding")
    yield "proj", Spec((width, a.embed_dim), "weight")
    yield "conv1.weight", Spec((width, 3, patch, patch), "weight")
    yield from _norm("ln_pre", width)
    yield from _prefixed("transformer", _transformer(width, vision.layers, vision.mlp_width))
    yield from _norm("ln_post", width)


def _conv(name: str, channels_in: int, channels_out: int, kernel: int) -> Specs:
    yield f"{name}.weight", Spec((channels_out, channels_in, kernel, kernel), "weight")


def _batch_norm(name: str, channels: int) -> Specs:
    yield from _norm(name, channels)
    yield f"{name}.running_mean", Spec((channels,), "statistic")
    yield f"{name}.running_var", Spec((channels,), "statistic")
    yield f"{name}.num_batches_tracked", Spec((), "buffer")


def _resnet(a: Architecture, vision: ResNet) -> Specs:
    half, width = vision.width // 2, vision.width
    stem = ((3, half), (half, half), (half, width))
    for number, (channels_in, channels_out) in enumerate(stem, start=1):
        yield from _conv(f"conv{number}", channels_in, channels_out, 3)
        yield from _batch_norm(f"bn{number}", channels_out)
    channels = width
    for stage, blocks in enumerate(vision.layers):
        planes = width * 2**stage
        for block in range(blocks):
            downsample = block == 0
            items = _bottleneck(channels, planes, downsample)
            yield from _prefixed(f"layer{stage + 1}.{block}", items)
            channels = 4 * planes
    yield from _prefixed("attnpool", _attention_pool(a, vision.embed_width))


def _bottleneck(channels: int, planes: int, downsample: bool) -> Specs:
    yield from _conv("conv1", channels, planes, 1)
    yield from _batch_norm("bn1", planes)
    yield from _conv("conv2", planes, planes, 3)
    yield from _batch_norm("bn2", planes)
    yield from _conv("conv3", planes, 4 * planes, 1)
    yield from _batch_norm("bn3", 4 * planes)
    if downsample:
        yield from _conv("downsample.0", channels, 4 * planes, 1)
        yield from _batch_norm("downsample.1", 4 * planes)


def _attention_pool(a: Architecture, width: int) -> Specs:
    yield "positional_embedding", Spec((a.grid**2 + 1, width), "embedding")
    for name in ("k_proj", "q_proj", "v_proj"):
        yield from _linear(name, width, width)
    yield from _linear("c_proj", width, a.embed_dim)


def count_parameters(architecture: Architecture) -> int:
    """Return the number of trainable weights, without buffers and running statistics."""
    trained = (spec.shape for _, spec in specs(architecture) if spec.kind not in UNTRAINED)
    return sum(math.prod(shape) for shape in trained)
