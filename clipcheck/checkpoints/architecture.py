"""The architecture of a CLIP model: its dimensions, which the tensors determine; its activation,
heads and epsilon, which they do not; and its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from clipcheck.errors import ArchitectureError

if TYPE_CHECKING:
    import os

ASKED = "--architecture (in pytest --clip-architecture, in Python architecture=)"
"""The option for the architecture, for messages of the command, pytest and Python alike."""

HEAD_WIDTH = 64
"""Channels of an attention head in every released model (Radford et al. 2021, appendix F)."""

MLP_RATIO = 4.0
"""Width of a residual block's MLP in every released model, divided by the width of the block."""

EPSILON = 1e-5
"""Epsilon of each LayerNorm: torch's default, which the reference implementation uses."""

RESNET_STRIDE = 32
"""Pixels of the input for each position of a ModifiedResNet's last feature map."""

BUFFERS = ("input_resolution", "context_length", "vocab_size")
"""The integer buffers of a released archive. State dicts of training code lack them."""


_MOST_POSITIONS = 4096
"""Most tokens of a text, and patches of an image: attention needs the square of it in memory.
Released models have 77 and 577."""

_MOST_PIXELS = 4096
"""Most pixels along one side of an image."""

UNTRAINED = ("buffer", "statistic")
"""Kinds of `Spec` that an optimiser does not change."""


def heads_of(width: int, head_width: int) -> str:
    """Describe the number of attention heads of a tower."""
    count = width // head_width
    return f"{count} head" if count == 1 else f"{count} heads"


class HasShape(Protocol):
    """Anything with a shape: a tensor, or the record of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each dimension."""


class Activation(StrEnum):
    """The nonlinearity between the two layers of a residual block's MLP."""

    QUICK_GELU = "quick_gelu"
    """x * sigmoid(1.702 x), with which OpenAI's models were trained."""

    GELU = "gelu"
    """x * Phi(x), exactly."""

    GELU_TANH = "gelu_tanh"
    """The approximation of GELU by a hyperbolic tangent."""

    @property
    def label(self) -> str:
        """Its name in papers."""
        return _LABELS[self]


_LABELS = {
    Activation.QUICK_GELU: "QuickGELU",
    Activation.GELU: "GELU",
    Activation.GELU_TANH: "GELU approximated by tanh",
}


@dataclass(frozen=True)
class Blocks:
    """Settings of a tower's residual blocks. The defaults are those of the released models.

    Attributes:
        head_width: channels of each attention head.
        mlp_ratio: width of the MLP, divided by the width of the tower.
        activation: between the MLP's two layers.
        epsilon: of each LayerNorm of the tower, also before and after the blocks.
    """

    head_width: int = HEAD_WIDTH
    mlp_ratio: float = MLP_RATIO
    activation: Activation = Activation.QUICK_GELU
    epsilon: float = EPSILON

    def summary(self, width: int) -> str:
        """Describe the settings that weights do not determine."""
        heads = heads_of(width, self.head_width)
        found = f"{self.activation.label}, {heads} of {self.head_width} channels"
        return found if self.epsilon == EPSILON else f"{found}, epsilon {self.epsilon:g}"

    def departures(self, width: int) -> str:
        """Describe the differences from the released models, or return an empty string."""
        released = Blocks()
        found = []
        if self.activation != released.activation:
            found.append(self.activation.label)
        if self.head_width != released.head_width:
            found.append(f"{heads_of(width, self.head_width)} of {self.head_width} channels")
        if self.mlp_ratio != released.mlp_ratio:
            found.append(f"a perceptron of width {round(width * self.mlp_ratio)}")
        if self.epsilon != released.epsilon:
            found.append(f"epsilon {self.epsilon:g}")
        return ", ".join(found)


@dataclass(frozen=True)
class ViT:
    """Image tower of kind VisionTransformer. ``patch_size`` is in pixels."""

    layers: int
    width: int
    patch_size: int
    blocks: Blocks = field(default=Blocks(), kw_only=True)

    @property
    def heads(self) -> int:
        """Attention heads of each residual block."""
        return self.width // self.blocks.head_width

    @property
    def mlp_width(self) -> int:
        """Width of the MLP of each residual block."""
        return round(self.width * self.blocks.mlp_ratio)


@dataclass(frozen=True)
class ResNet:
    """Image tower of kind ModifiedResNet.

    ``layers`` counts the bottlenecks of each stage, ``head_width`` the channels of each head of the
    attention pool.
    """

    layers: tuple[int, int, int, int]
    width: int
    head_width: int = field(default=HEAD_WIDTH, kw_only=True)

    @property
    def embed_width(self) -> int:
        """Channels of the last feature map, and of the attention pool."""
        return self.width * 32

    @property
    def heads(self) -> int:
        """Attention heads of the attention pool."""
        return self.embed_width // self.head_width

    @property
    def pool(self) -> str:
        """Description of its heads."""
        return f"{heads_of(self.embed_width, self.head_width)} of {self.head_width} channels"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything that is needed to build a CLIP model, except its weights.

    ``image_resolution`` is in pixels, ``context_length`` in tokens. `dataclasses.replace` and
    `with_blocks` make variants.
    """

    embed_dim: int
    image_resolution: int
    vision: ViT | ResNet
    text_width: int
    text_layers: int
    context_length: int = 77
    vocab_size: int = 49408
    text_blocks: Blocks = field(default=Blocks(), kw_only=True)

    @property
    def text_heads(self) -> int:
        """Attention heads of each residual block of the text tower."""
        return self.text_width // self.text_blocks.head_width

    @property
    def text_mlp_width(self) -> int:
        """Width of the MLP of each residual block of the text tower."""
        return round(self.text_width * self.text_blocks.mlp_ratio)

    def with_blocks(self, **changes: Any) -> Architecture:
        """Return the architecture with other residual blocks, in both towers.

        Args:
            changes: attributes of `Blocks`. A ModifiedResNet has no such blocks: only its
                ``head_width`` changes.
        """
        text = replace(self.text_blocks, **changes)
        vision: ViT | ResNet
        if isinstance(self.vision, ViT):
            vision = replace(self.vision, blocks=replace(self.vision.blocks, **changes))
        else:
            head_width = changes.get("head_width", self.vision.head_width)
            vision = replace(self.vision, head_width=head_width)
        return replace(self, vision=vision, text_blocks=text)

    @property
    def grid(self) -> int:
        """Positions along one side of the image tower's feature map."""
        stride = self.vision.patch_size if isinstance(self.vision, ViT) else RESNET_STRIDE
        return self.image_resolution // stride

    @property
    def parameters(self) -> int:
        """Number of trainable weights, without buffers and running statistics."""
        trained = (spec.shape for _, spec in specs(self) if spec.kind not in UNTRAINED)
        return sum(math.prod(shape) for shape in trained)

    @property
    def name(self) -> str | None:
        """clipcheck's name of this architecture, or None."""
        return next((name for name, known in ARCHITECTURES.items() if known == self), None)

    def describe(self) -> str:
        """Describe it in one line: the known name or the kind, and the main dimensions."""
        if isinstance(self.vision, ViT):
            kind = f"ViT, {self.vision.layers} layers of width {self.vision.width}"
            kind += f", patches of {self.vision.patch_size} px"
        else:
            kind = f"ModifiedResNet, stages of {self.vision.layers}, width {self.vision.width}"
        text = f"text transformer, {self.text_layers} layers of width {self.text_width}"
        other = self.departures()
        computes = f"; computes with {other}" if other else ""
        return (
            f"{self.name or 'not a released architecture'} ({kind}; {self.image_resolution} px; "
            f"{text}; embeds in {self.embed_dim}{computes})"
        )

    def summary(self) -> str:
        """Describe activation, heads and epsilon, which weights do not determine."""
        text = self.text_blocks.summary(self.text_width)
        if isinstance(self.vision, ViT):
            image = self.vision.blocks.summary(self.vision.width)
        else:
            image = self.vision.pool
        return f"images {image}; texts {text}"

    @property
    def dimensions(self) -> Architecture:
        """Return the same dimensions with the released models' activation, heads and epsilon."""
        return self.computing_as(self.with_blocks(**asdict(Blocks(mlp_ratio=MLP_RATIO))))

    def computing_as(self, other: Architecture) -> Architecture:
        """Return these dimensions with the activation, heads and epsilon of the other.

        Args:
            other: of the same dimensions; if its image tower is of another kind, this one's does
                not change.
        """
        vision: ViT | ResNet = self.vision
        if isinstance(vision, ViT) and isinstance(other.vision, ViT):
            ratio = vision.blocks.mlp_ratio
            vision = replace(vision, blocks=replace(other.vision.blocks, mlp_ratio=ratio))
        elif isinstance(vision, ResNet) and isinstance(other.vision, ResNet):
            vision = replace(vision, head_width=other.vision.head_width)
        text = replace(other.text_blocks, mlp_ratio=self.text_blocks.mlp_ratio)
        return replace(self, vision=vision, text_blocks=text)

    def departures(self) -> str:
        """Describe the differences from the released models, or return an empty string."""
        text = self.text_blocks.departures(self.text_width)
        if isinstance(self.vision, ViT):
            image = self.vision.blocks.departures(self.vision.width)
        elif self.vision.head_width != HEAD_WIDTH:
            image = self.vision.pool
        else:
            image = ""
        if image == text:
            return image
        towers = (("the image tower", image), ("the text tower", text))
        return " and ".join(f"{found} in {tower}" for tower, found in towers if found)


def _tiny_text(vision: ViT | ResNet, resolution: int) -> Architecture:
    return Architecture(
        embed_dim=64, image_resolution=resolution, vision=vision, text_width=128, text_layers=2
    )


ARCHITECTURES: dict[str, Architecture] = {
    "RN50": Architecture(
        embed_dim=1024,
        image_resolution=224,
        vision=ResNet((3, 4, 6, 3), 64),
        text_width=512,
        text_layers=12,
    ),
    "RN101": Architecture(
        embed_dim=512,
        image_resolution=224,
        vision=ResNet((3, 4, 23, 3), 64),
        text_width=512,
        text_layers=12,
    ),
    "RN50x4": Architecture(
        embed_dim=640,
        image_resolution=288,
        vision=ResNet((4, 6, 10, 6), 80),
        text_width=640,
        text_layers=12,
    ),
    "RN50x16": Architecture(
        embed_dim=768,
        image_resolution=384,
        vision=ResNet((6, 8, 18, 8), 96),
        text_width=768,
        text_layers=12,
    ),
    "RN50x64": Architecture(
        embed_dim=1024,
        image_resolution=448,
        vision=ResNet((3, 15, 36, 10), 128),
        text_width=1024,
        text_layers=12,
    ),
    "ViT-B/32": Architecture(
        embed_dim=512, image_resolution=224, vision=ViT(12, 768, 32), text_width=512, text_layers=12
    ),
    "ViT-B/16": Architecture(
        embed_dim=512, image_resolution=224, vision=ViT(12, 768, 16), text_width=512, text_layers=12
    ),
    "ViT-L/14": Architecture(
        embed_dim=768,
        image_resolution=224,
        vision=ViT(24, 1024, 14),
        text_width=768,
        text_layers=12,
    ),
    "ViT-L/14@336px": Architecture(
        embed_dim=768,
        image_resolution=336,
        vision=ViT(24, 1024, 14),
        text_width=768,
        text_layers=12,
    ),
    # For tests. No dimension is 5: the reference loader mistakes such a number for a dtype.
    "tiny-vit": _tiny_text(ViT(3, 128, 8), 32),
    "tiny-resnet": _tiny_text(ResNet((1, 2, 1, 1), 8), 96),
}
"""The released architectures by name, with dimensions from their state dicts, and two for tests."""


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
Dimensions = Mapping[str, int | str]


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


# --------------------------------------------------------------------------- inference


class _MisfitError(ValueError):
    """The tensor under ``key`` does not fit."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(problem)
        self.key = key


def infer(
    tensors: Mapping[str, HasShape],
    path: str | os.PathLike[str],
    spelled: Callable[[str], str] = str,
) -> Architecture:
    """Return the architecture of a state dict, with the released activation, heads and epsilon.

    Args:
        tensors: by key, without prefix; only names and shapes are used.
        spelled: returns a key's name in the file, for messages.

    Raises:
        ArchitectureError: a key is missing or unknown, or its shape does not fit the others.
    """
    found = dimensions_of(tensors, path, spelled)
    _require_heads(found, path)
    return found


def dimensions_of(
    tensors: Mapping[str, HasShape],
    path: str | os.PathLike[str],
    spelled: Callable[[str], str] = str,
) -> Architecture:
    """Return the dimensions of the model of a state dict.

    Returns:
        An architecture with these dimensions. Activation, heads and epsilon must come from
        elsewhere, see `Architecture.computing_as`.

    Raises:
        ArchitectureError: a key is missing or unknown, or its shape does not fit the others.
    """
    try:
        architecture = _dimensions(tensors)
        _require_layers(architecture)
    except (KeyError, ValueError) as error:
        raise _foreign(tensors, error, path, spelled) from error
    _compare(tensors, dict(specs(architecture)), path, spelled)
    _require_bounded(architecture, path)
    return architecture


def differences(told: Architecture, found: Architecture) -> list[str]:
    """Describe the differences between the given and the found dimensions."""
    one, other = dimensions(told), dimensions(found)
    shared = [name for name in one if name in other and one[name] != other[name]]
    return [f"{name} {one[name]} in place of {other[name]}" for name in shared]


def dimensions(architecture: Architecture) -> dict[str, int | str]:
    """Return each dimension by name; only what the weights determine."""
    a = architecture
    if isinstance(a.vision, ViT):
        vision: dict[str, int | str] = {
            "image tower": "ViT",
            "image layers": a.vision.layers,
            "patch size": a.vision.patch_size,
            "image perceptron width": a.vision.mlp_width,
        }
    else:
        stages = "-".join(map(str, a.vision.layers))
        vision = {"image tower": "ModifiedResNet", "image layers": stages}
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


def _require_bounded(a: Architecture, path: str | os.PathLike[str]) -> None:
    """Raise if running the model would need far more memory than its weights."""
    limits = (
        (a.context_length, _MOST_POSITIONS, "tokens of a text"),
        (a.grid**2, _MOST_POSITIONS, "patches of an image"),
        (a.image_resolution, _MOST_PIXELS, "pixels a side"),
    )
    for found, most, unit in limits:
        if found > most:
            raise ArchitectureError(
                f"expected a CLIP model of at most {most} {unit}, found {found:,}: running it "
                "would take more memory than there is",
                remedy="Give a CLIP checkpoint of a usual size.",
                path=path,
            )


def _dimensions(tensors: Mapping[str, HasShape]) -> Architecture:
    context_length, text_width = _sizes(tensors, "positional_embedding", 2)
    vision: ViT | ResNet
    # A prefix decides, not a single key, so that a missing key is named.
    if any(key.startswith(("visual.layer", "visual.attnpool.")) for key in tensors):
        vision, grid, stride = _resnet_dimensions(tensors)
    else:
        vision, grid, stride = _vit_dimensions(tensors)
    return Architecture(
        embed_dim=_sizes(tensors, "text_projection", 2)[1],
        image_resolution=grid * stride,
        vision=vision,
        text_width=text_width,
        text_layers=_count(tensors, "transformer.resblocks."),
        context_length=context_length,
        vocab_size=_sizes(tensors, "token_embedding.weight", 2)[0],
        text_blocks=_blocks(tensors, "transformer", text_width),
    )


def _blocks(tensors: Mapping[str, HasShape], prefix: str, width: int) -> Blocks:
    """Return the residual blocks of a tower: as released, with the MLP's width from the weights."""
    key = f"{prefix}.resblocks.0.mlp.c_fc.weight"
    # If it is missing or misshapen, `_compare` reports it with the others.
    shape = tuple(tensors[key].shape) if key in tensors else ()
    return Blocks(mlp_ratio=shape[0] / width) if len(shape) == 2 and shape[0] else Blocks()


def _vit_dimensions(tensors: Mapping[str, HasShape]) -> tuple[ViT, int, int]:
    width, _, _, patch = _sizes(tensors, "visual.conv1.weight", 4)
    layers = _count(tensors, "visual.transformer.resblocks.")
    grid = _grid(_sizes(tensors, "visual.positional_embedding", 2)[0])
    blocks = _blocks(tensors, "visual.transformer", width)
    return ViT(layers, width, patch, blocks=blocks), grid, patch


def _resnet_dimensions(tensors: Mapping[str, HasShape]) -> tuple[ResNet, int, int]:
    one, two, three, four = (_count(tensors, f"visual.layer{stage}.") for stage in range(1, 5))
    width = _sizes(tensors, "visual.layer1.0.conv1.weight", 4)[0]
    grid = _grid(_sizes(tensors, "visual.attnpool.positional_embedding", 2)[0])
    return ResNet((one, two, three, four), width), grid, RESNET_STRIDE


def _sizes(tensors: Mapping[str, HasShape], key: str, dimensions: int) -> tuple[int, ...]:
    """Return the shape under ``key``; raise if it has not ``dimensions`` sizes of at least 1."""
    shape = tuple(tensors[key].shape)
    if len(shape) != dimensions or 0 in shape:
        raise _MisfitError(key, f"{list(shape)} instead of {dimensions} sizes above 0")
    return shape


def _require_layers(a: Architecture) -> None:
    """Raise if a tower has no layers: the other dimensions would fit, but it would not run."""
    if isinstance(a.vision, ViT):
        counts = {"visual.transformer.resblocks": a.vision.layers}
    else:
        counts = {f"visual.layer{n}": blocks for n, blocks in enumerate(a.vision.layers, start=1)}
    counts["transformer.resblocks"] = a.text_layers
    for prefix, count in counts.items():
        if count == 0:
            raise KeyError(f"{prefix}.0")


def _require_heads(a: Architecture, path: str | os.PathLike[str]) -> None:
    vision = a.vision
    image_width = vision.width if isinstance(vision, ViT) else vision.embed_width
    for tower, width in (("image", image_width), ("text", a.text_width)):
        if width < HEAD_WIDTH or width % HEAD_WIDTH:
            raise ArchitectureError(
                f"a width of {width} in the {tower} tower is no multiple of {HEAD_WIDTH}, the "
                "channels of a head in the released models, and nothing tells how many it has",
                remedy=f"Say so with {ASKED}: the open_clip_config.json or config.json "
                "(transformers) that it was trained with.",
                path=path,
            )


def _count(tensors: Mapping[str, HasShape], prefix: str) -> int:
    """Return the number of layers of the sequence with this prefix."""
    return len({key[len(prefix) :].split(".")[0] for key in tensors if key.startswith(prefix)})


def _grid(positions: int) -> int:
    """Return the side of the square of ``positions - 1`` cells; one position is the class token."""
    side = math.isqrt(max(positions - 1, 0))
    if side == 0 or side**2 + 1 != positions:
        raise ValueError(f"{positions} image positions are not a square and one")
    return side


def _foreign(
    tensors: Mapping[str, HasShape],
    error: Exception,
    path: str | os.PathLike[str],
    spelled: Callable[[str], str],
) -> ArchitectureError:
    if isinstance(error, KeyError):
        found = f"it lacks {spelled(error.args[0])!r}"
    else:
        name = f"{spelled(error.key)} " if isinstance(error, _MisfitError) else ""
        found = f"its dimensions do not fit together ({name}{error})"
    some = ", ".join(repr(spelled(key)) for key in list(tensors)[:3])
    return ArchitectureError(
        f"expected the state dict of a CLIP model, but {found}; its {len(tensors)} keys begin "
        f"with {some or 'nothing'}",
        remedy="Give a CLIP checkpoint with the keys of the reference implementation, of "
        "open_clip or of transformers.",
        path=path,
    )


def _compare(
    tensors: Mapping[str, HasShape],
    expected: Mapping[str, Spec],
    path: str | os.PathLike[str],
    spelled: Callable[[str], str],
) -> None:
    optional = {key for key, spec in expected.items() if spec.kind == "buffer"}
    missing = [key for key in expected if key not in tensors and key not in optional]
    unexpected = [spelled(key) for key in tensors if key not in expected]
    problems = [
        listed("missing", [spelled(key) for key in missing]),
        listed("unexpected", unexpected),
        listed("misshapen", list(_misshapen(tensors, expected, spelled))),
    ]
    found = "; ".join(problem for problem in problems if problem)
    if found:
        raise ArchitectureError(
            f"its tensors do not make up a CLIP model: {found}",
            remedy=remedy_for(unexpected=bool(unexpected)),
            path=path,
        )


def remedy_for(*, unexpected: bool) -> str:
    """Return the remedy for a state dict that is not that of a CLIP model."""
    if unexpected:
        return (
            "Weights that a CLIP model does not have make another model of it, which is not "
            "supported. If they are no part of the model, save the state dict without them."
        )
    return "Save the model's whole state dict, from the code that trained it."


def _misshapen(
    tensors: Mapping[str, HasShape], expected: Mapping[str, Spec], spelled: Callable[[str], str]
) -> Iterator[str]:
    for key, spec in expected.items():
        found = tuple(tensors[key].shape) if key in tensors else spec.shape
        # openai/CLIP#67: the released logit_scale has shape [], some training code makes it [1].
        if found != spec.shape and not (key == "logit_scale" and found == (1,)):
            yield f"{spelled(key)} {list(found)} instead of {list(spec.shape)}"


def listed(label: str, items: list[str], most: int = 5) -> str:
    """List the first items and the number of others, or return an empty string."""
    if not items:
        return ""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{label}{': ' if label else ''}{', '.join(items[:most])}{more}"
