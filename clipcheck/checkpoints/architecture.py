"""The architecture of a CLIP model: its dimensions, which the tensors determine; its activation,
heads and epsilon, which they do not; and its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


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


def heads_of(width: int, head_width: int) -> str:
    """Describe the number of attention heads of a tower."""
    count = width // head_width
    return f"{count} head" if count == 1 else f"{count} heads"


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

Dimensions = Mapping[str, int | str]


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
