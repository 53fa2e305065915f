"""CLIP in eager PyTorch, after Radford et al. 2021, "Learning Transferable Visual Models From
Natural Language Supervision", section 2.4 (models) and figure 3 (the forward pass).

The keys of `CLIP.state_dict` are those of the released state dicts, except the three integer
buffers. Shapes are noted at the end of lines: N images, M texts, L tokens or positions, D width,
E embedding, C channels, H and W pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipcheck.checkpoints.architecture import (
    BUFFERS,
    RESNET_STRIDE,
    Activation,
    Architecture,
    Blocks,
    ResNet,
    ViT,
)
from clipcheck.families.base import DualEncoder
from clipcheck.families.building import Uninitialised


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in the dtype of its own weights: float32 inside of a half model."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` over its last dimension; the dtype stays."""
        # TorchScript cannot compile super().forward.
        y = functional.layer_norm(
            x.to(self.weight.dtype), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return y.to(x.dtype)


class QuickGELU(nn.Module):
    """The approximation x * sigmoid(1.702 x) of GELU (Hendrycks and Gimpel 2016, section 2)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it elementwise; shape and dtype stay."""
        return x * torch.sigmoid(1.702 * x)


def perceptron(
    width: int, blocks: Blocks, quick_gelu: type[nn.Module] = QuickGELU
) -> nn.Sequential:
    """The two layers of a block beside its attention, with the activation between them."""
    hidden = round(width * blocks.mlp_ratio)
    activation = quick_gelu()
    if blocks.activation is not Activation.QUICK_GELU:
        tanh = blocks.activation is Activation.GELU_TANH
        activation = nn.GELU(approximate="tanh" if tanh else "none")
    layers = [
        ("c_fc", nn.Linear(width, hidden)),
        ("gelu", activation),
        ("c_proj", nn.Linear(hidden, width)),
    ]
    return nn.Sequential(OrderedDict(layers))


class ResidualAttentionBlock(nn.Module):
    """Self-attention, then a two-layer MLP, each with a LayerNorm before and a residual sum."""

    def __init__(self, width: int, blocks: Blocks) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // blocks.head_width)
        self.ln_1 = LayerNorm(width, eps=blocks.epsilon)
        self.mlp = perceptron(width, blocks)
        self.ln_2 = LayerNorm(width, eps=blocks.epsilon)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``x`` [L, N, D]; ``mask`` [L, L] is added to the attention's logits."""
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))  # [L, N, D]


class Transformer(nn.Module):
    """A stack of residual attention blocks."""

    def __init__(self, width: int, layers: int, blocks: Blocks) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(
            *(ResidualAttentionBlock(width, blocks) for _ in range(layers))
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``x`` [L, N, D]; the same ``mask`` [L, L] in each block."""
        for block in self.resblocks:
            x = block(x, mask)
        return x  # [L, N, D]


class VisionTransformer(nn.Module):
    """The image tower of the ViT models (Dosovitskiy et al. 2020), with a LayerNorm in front."""

    def __init__(self, vision: ViT, input_resolution: int, output_dim: int) -> None:
        super().__init__()
        width, patch = vision.width, vision.patch_size
        positions = (input_resolution // patch) ** 2 + 1
        self.input_resolution = input_resolution
        self.output_dim = output_dim
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(positions, width))
        self.ln_pre = LayerNorm(width, eps=vision.blocks.epsilon)
        self.transformer = Transformer(width, vision.layers, vision.blocks)
        self.ln_post = LayerNorm(width, eps=vision.blocks.epsilon)
        self.proj = nn.Parameter(torch.empty(width, output_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] to features [N, E]."""
        x = self.embed(self.conv1(x))
        x = self.ln_pre(x)
        x = self.transformer(x.transpose(0, 1)).transpose(0, 1)  # [N, L, D]
        return self.project(self.ln_post(self.pool(x)))

    def embed(self, x: Tensor) -> Tensor:
        """Turn patches [N, D, grid, grid] into a sequence [N, L, D]: class token, positions."""
        x = x.flatten(start_dim=2).transpose(1, 2)  # [N, grid * grid, D]
        start = self.class_embedding.to(x).expand(x.shape[0], 1, -1)  # [N, 1, D]
        x = torch.cat([start, x], dim=1)  # [N, L, D]
        return x + self.positional_embedding.to(x)

    def pool(self, x: Tensor) -> Tensor:
        """Return the class token [N, D] of a sequence [N, L, D]."""
        return x[:, 0]

    def project(self, x: Tensor) -> Tensor:
        """[N, D] to features [N, E]."""
        return x @ self.proj.to(x)


class Bottleneck(nn.Module):
    """A residual block of three convolutions, strided by average pooling (Zhang 2019)."""

    def __init__(self, channels: int, planes: int, stride: int, *, downsample: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu3 = nn.ReLU(inplace=True)
        self.downsample = downsampling(channels, 4 * planes, stride) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, 4 planes, H / stride, W / stride]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.avgpool(y)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu3(y + shortcut)


def downsampling(channels: int, planes: int, stride: int) -> nn.Sequential:
    """The shortcut of a block that has other channels or a stride."""
    layers = [
        ("-1", nn.AvgPool2d(stride)),
        ("0", nn.Conv2d(channels, planes, 1, bias=False)),
        ("1", nn.BatchNorm2d(planes)),
    ]
    return nn.Sequential(OrderedDict(layers))


class AttentionPool2d(nn.Module):
    """Pools a feature map by attention, with the mean over all positions as the query."""

    def __init__(self, grid: int, width: int, heads: int, output_dim: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(grid**2 + 1, width))
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, output_dim)
        self.num_heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """A feature map [N, C, grid, grid] to features [N, E]."""
        x = x.flatten(start_dim=2).transpose(1, 2)  # [N, grid * grid, C]
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)  # [N, L, C]
        x = x + self.positional_embedding.to(x.dtype)
        query = self._split(self.q_proj(x[:, :1]))  # [N, heads, 1, C / heads]
        key, value = self._split(self.k_proj(x)), self._split(self.v_proj(x))
        x = functional.scaled_dot_product_attention(query, key, value)
        x = x.transpose(1, 2).flatten(start_dim=2)  # [N, 1, C]
        return self.c_proj(x[:, 0])  # [N, E]

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [N, heads, L, C / heads]


class ModifiedResNet(nn.Module):
    """The image tower of the RN models: three stem convolutions, anti-aliased strides, and an
    attention pool in place of the mean (section 2.4 of the paper)."""

    def __init__(self, vision: ResNet, input_resolution: int, output_dim: int) -> None:
        super().__init__()
        width, half = vision.width, vision.width // 2
        self.input_resolution = input_resolution
        self.output_dim = output_dim
        self.conv1 = nn.Conv2d(3, half, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(half, half, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(half, width, kernel_size=3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(2)
        self.layer1 = _stage(width, width, vision.layers[0], stride=1)
        self.layer2 = _stage(4 * width, 2 * width, vision.layers[1], stride=2)
        self.layer3 = _stage(8 * width, 4 * width, vision.layers[2], stride=2)
        self.layer4 = _stage(16 * width, 8 * width, vision.layers[3], stride=2)
        grid = input_resolution // RESNET_STRIDE
        self.attnpool = AttentionPool2d(grid, vision.embed_width, vision.heads, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] to features [N, E]."""
        x = self.relu1(self.bn1(self.conv1(x)))  # [N, width / 2, H / 2, W / 2]
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.conv3(x)))  # [N, width, H / 2, W / 2]
        x = self.avgpool(x)  # [N, width, H / 4, W / 4]
        x = self.layer1(x)  # [N, 4 width, H / 4, W / 4]
        x = self.layer2(x)  # [N, 8 width, H / 8, W / 8]
        x = self.layer3(x)  # [N, 16 width, H / 16, W / 16]
        x = self.layer4(x)  # [N, 32 width, H / 32, W / 32]
        return self.attnpool(x)  # [N, E]


def _stage(channels: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(channels, planes, stride, downsample=True)
    more = (Bottleneck(4 * planes, planes, 1, downsample=False) for _ in range(blocks - 1))
    return nn.Sequential(first, *more)


class CLIP(DualEncoder):
    """Both towers, and the cosine similarities of their features.

    Built on the meta device: use `build`, which assigns the weights.
    """

    ends_unseen = True

    def __init__(self, architecture: Architecture) -> None:
        a = architecture
        super().__init__(a.image_resolution, a.context_length)
        self.visual: VisionTransformer | ModifiedResNet
        if isinstance(a.vision, ViT):
            self.visual = VisionTransformer(a.vision, a.image_resolution, a.embed_dim)
        else:
            self.visual = ModifiedResNet(a.vision, a.image_resolution, a.embed_dim)
        self.vocab_size = a.vocab_size
        self.transformer = Transformer(a.text_width, a.text_layers, a.text_blocks)
        # The initialisation of nn.Embedding(...) on meta takes a second, for imports.
        table = torch.empty(a.vocab_size, a.text_width)
        self.token_embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.positional_embedding = nn.Parameter(torch.empty(a.context_length, a.text_width))
        self.ln_final = LayerNorm(a.text_width, eps=a.text_blocks.epsilon)
        self.text_projection = nn.Parameter(torch.empty(a.text_width, a.embed_dim))
        self.logit_scale = nn.Parameter(torch.empty(()))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the model computes; a half model still normalises in float32."""
        return self.visual.conv1.weight.dtype

    def weights_of_methods(self) -> dict[str, set[str]]:
        """Return by method the keys of the weights and statistics that its result depends on.

        The bias of the attention pool's keys is in none: it adds a constant to all scores of a
        query, which the softmax cancels.
        """
        keys = {
            key
            for key in self.state_dict()
            if not key.endswith(("num_batches_tracked", "attnpool.k_proj.bias"))
        }
        image = {key for key in keys if key.startswith("visual.")}
        return {
            "encode_image": image,
            "encode_text": keys - image - {"logit_scale"},
            "forward": keys,
        }

    def encode_image(self, image: Tensor) -> Tensor:
        """Preprocessed pixels [N, 3, H, W] to features [N, E], not normalised."""
        return self.visual(image.to(self.dtype))

    def encode_text(self, text: Tensor) -> Tensor:
        """Token ids [M, L] to features [M, E], not normalised.

        The features are read at the end-of-text token, which has the highest id.
        """
        # `self.dtype` is the image tower's, but a single tower may be in float64.
        dtype = self.text_projection.dtype
        x = self.embed(self.token_embedding(text).to(dtype))
        x = self.transformer(x.transpose(0, 1), causal_mask(x)).transpose(0, 1)  # [M, L, D]
        return self.project(self.pool(self.ln_final(x), text))

    def log_scale(self) -> Tensor:
        """The natural logarithm of what cosines are multiplied with: one number."""
        return self.logit_scale

    def encode_lengths(self, text: Tensor) -> Tensor:
        """Return features [L - 1, E] of prompts [L - 1, L] of every length, all prefixes of the
        last."""
        return self.encode_every_length(text[-1:])

    def encode_every_length(self, text: Tensor) -> Tensor:
        """Return features [L - 1, E] of the prompts that end after each token of ``text`` [1, L].

        A token does not attend to later ones. So these prompts share the tokens before their ends,
        and one sequence is enough: the tokens, then all ends, each attending to its own prefix.
        """
        dtype = self.text_projection.dtype
        tokens = self.embed(self.token_embedding(text).to(dtype))  # [1, L, D]
        count = text.shape[1] - 1
        end = self.token_embedding(text[:, -1:]).to(dtype)  # [1, 1, D]
        ends = end + self.positional_embedding[1 : count + 1].to(dtype)  # [1, L - 1, D]
        x = torch.cat([tokens[:, :count], ends], dim=1)  # [1, 2 (L - 1), D]
        mask = torch.full((2 * count, 2 * count), float("-inf"), dtype=dtype, device=x.device)
        seen = causal_mask(tokens[:, :count])
        mask[:count, :count] = seen
        mask[count:, :count] = seen
        mask[count:, count:].fill_diagonal_(0)
        x = self.transformer(x.transpose(0, 1), mask).transpose(0, 1)[:, count:]
        return self.project(self.ln_final(x)[0])

    def embed(self, x: Tensor) -> Tensor:
        """Add positions to embedded tokens [M, L, D]."""
        return x + self.positional_embedding[: x.shape[1]].to(x)

    def pool(self, x: Tensor, text: Tensor) -> Tensor:
        """Return the vectors [M, D] at the end-of-text tokens of a sequence [M, L, D]."""
        rows = torch.arange(x.shape[0], device=x.device)
        return x[rows, text.argmax(dim=-1)]

    def project(self, x: Tensor) -> Tensor:
        """[M, D] to features [M, E]."""
        return x @ self.text_projection.to(x)

    def logits(self, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return scaled cosine similarities [N, M] and [M, N] of features [N, E] and [M, E]."""
        return scaled_cosines(image_features, text_features, self.logit_scale)


def scaled_cosines(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Return logits per image [N, M] and per text [M, N] for features [N, E] and [M, E].

    Args:
        image_features: not normalised.
        text_features: not normalised.
        logit_scale: natural logarithm of the factor of the cosines; no dimensions.
    """
    image_features = image_features / image_features.norm(p=2, dim=-1, keepdim=True)
    text_features = text_features / text_features.norm(p=2, dim=-1, keepdim=True)
    logits_per_image = logit_scale.exp() * image_features @ text_features.t()  # [N, M]
    return logits_per_image, logits_per_image.t()


def causal_mask(x: Tensor) -> Tensor:
    """Return for ``x`` [M, L, D] the mask [L, L] that hides later tokens."""
    length = x.shape[1]
    hidden = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device)
    return hidden.triu(1)


def build(architecture: Architecture, tensors: Mapping[str, Tensor]) -> CLIP:
    """Return an eager model with ``tensors``, which are assigned, not copied.

    Args:
        architecture: from `clipcheck.checkpoints.architecture.infer`.
        tensors: the weights by the released keys, with or without the integer buffers. Their dtype
            and device are those of the model.

    Returns:
        The model, in evaluation mode.
    """
    with torch.device("meta"), Uninitialised():
        model = CLIP(architecture)
    weights = {key: tensor for key, tensor in tensors.items() if key not in BUFFERS}
    weights["logit_scale"] = weights["logit_scale"].reshape(())
    for key, buffer in model.named_buffers():
        # Some training code drops BatchNorm's counters, which have no effect in evaluation.
        if key not in weights:
            weights[key] = torch.zeros_like(buffer, device=weights["logit_scale"].device)
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval()
