"""CLIP as in the released archives: their module tree, classes and casts.

These modules are only traced, and never used as a model. They write out single calls of torch 1.7
(attention is two matrix products and a softmax), so an archive computes the same with other
operations than the eager model, as the released files do. Casts use ``cast``, which records device
and dtype, or ``type``, which records only the dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipcheck.checkpoints.architecture import RESNET_STRIDE, Architecture, Blocks, ResNet, ViT
from clipcheck.families import eager

_TRANSFORMER = "multimodal.model.multimodal_transformer"
_RESNET = "multimodal.model.modified_resnet"


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert ``x`` to ``dtype``, traced as a conversion to a device and a dtype."""
    return x.to(x.device, dtype)


class LayerNorm(nn.LayerNorm):
    """Casts to float32 and back."""

    def forward(self, x: Tensor) -> Tensor:
        y = functional.layer_norm(
            cast(x, self.weight.dtype), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return cast(y, x.dtype)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(torch.mul(x, 1.702))


class MultiheadAttention(nn.Module):
    """Self-attention over [L, N, D]. ``out_proj`` is never called, so it has no methods."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        length, rows, width = x.shape
        projected = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.chunk(3, dim=-1)
        y = _attend(query, key, value, self.heads, mask)
        y = y.transpose(0, 1).contiguous().view(length, rows, width)
        return functional.linear(y, self.out_proj.weight, self.out_proj.bias)


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Attend over [L, N, D] each; returns [N * heads, L, D / heads]."""
    length, rows, width = query.shape
    size = width // heads
    query = (query * size**-0.5).contiguous().view(length, rows * heads, size).transpose(0, 1)
    key = key.contiguous().view(length, rows * heads, size).transpose(0, 1)
    value = value.contiguous().view(length, rows * heads, size).transpose(0, 1)
    scores = torch.bmm(query, key.transpose(1, 2))
    if mask is not None:
        scores = scores + mask.unsqueeze(0)
    return torch.bmm(functional.softmax(scores, dim=-1), value)


class ResidualAttentionBlock(nn.Module):
    """A block with its own causal mask, which tracing turns into a constant of the block."""

    def __init__(self, width: int, blocks: Blocks, mask: Tensor | None) -> None:
        super().__init__()
        self.attn = MultiheadAttention(width, width // blocks.head_width)
        self.ln_1 = LayerNorm(width, eps=blocks.epsilon)
        self.mlp = eager.perceptron(width, blocks, QuickGELU)
        self.ln_2 = LayerNorm(width, eps=blocks.epsilon)
        self.mask = None if mask is None else mask.clone()

    def forward(self, x: Tensor) -> Tensor:
        mask = None if self.mask is None else self.mask.to(x.device, x.dtype)
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of residual attention blocks."""

    def __init__(self, width: int, layers: int, blocks: Blocks, mask: Tensor | None) -> None:
        super().__init__()
        built = (ResidualAttentionBlock(width, blocks, mask) for _ in range(layers))
        self.resblocks = nn.Sequential(*built)

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class VisualTransformer(nn.Module):
    """The image tower of the ViT models."""

    def __init__(self, vision: ViT, grid: int, output_dim: int) -> None:
        super().__init__()
        width, patch = vision.width, vision.patch_size
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(grid**2 + 1, width))
        self.proj = nn.Parameter(torch.empty(width, output_dim))
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.ln_pre = LayerNorm(width, eps=vision.blocks.epsilon)
        self.transformer = Transformer(width, vision.layers, vision.blocks, mask=None)
        self.ln_post = LayerNorm(width, eps=vision.blocks.epsilon)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x.reshape(x.shape[0], x.shape[1], x.shape[2] * x.shape[3]).permute(0, 2, 1)
        zeros = torch.zeros(x.shape[0], 1, x.shape[-1], dtype=x.dtype, device=x.device)
        x = torch.cat([self.class_embedding.type(x.dtype) + zeros, x], dim=1)
        x = x + self.positional_embedding.type(x.dtype)
        x = self.ln_pre(x)
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        return self.ln_post(x[:, 0, :]) @ self.proj


class Bottleneck(nn.Module):
    """A bottleneck that calls one ReLU three times, so tracing gives it three methods."""

    def __init__(self, channels: int, planes: int, stride: int, *, downsample: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = eager.downsampling(channels, 4 * planes, stride) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.avgpool(y)))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class AttentionPool(eager.AttentionPool2d):
    """Attention among all positions and their mean; returns the result of the mean."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], x.shape[1], x.shape[2] * x.shape[3]).permute(2, 0, 1)
        x = torch.cat([x.mean(dim=0, keepdim=True), x], dim=0)
        x = x + self.positional_embedding[:, None, :].type(x.dtype)
        query, key, value = (
            functional.linear(x, layer.weight, layer.bias)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = _attend(query, key, value, self.num_heads, None)
        y = y.transpose(0, 1).contiguous().view(x.shape[0], x.shape[1], x.shape[2])
        return functional.linear(y, self.c_proj.weight, self.c_proj.bias)[0]


class ModifiedResNet(nn.Module):
    """The image tower of the RN models."""

    def __init__(self, vision: ResNet, grid: int, output_dim: int) -> None:
        super().__init__()
        width, half = vision.width, vision.width // 2
        self.conv1 = nn.Conv2d(3, half, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, width, kernel_size=3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, vision.layers[0], stride=1)
        self.layer2 = _stage(4 * width, 2 * width, vision.layers[1], stride=2)
        self.layer3 = _stage(8 * width, 4 * width, vision.layers[2], stride=2)
        self.layer4 = _stage(16 * width, 8 * width, vision.layers[3], stride=2)
        self.attnpool = AttentionPool(grid, vision.embed_width, vision.heads, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.type(self.conv1.weight.dtype)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.relu(self.bn3(self.conv3(x)))
        x = self.avgpool(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.attnpool(x)


def _stage(channels: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(channels, planes, stride, downsample=True)
    more = (Bottleneck(4 * planes, planes, 1, downsample=False) for _ in range(blocks - 1))
    return nn.Sequential(first, *more)


class Multimodal(nn.Module):
    """Both towers and the three methods of a released archive.

    Built on the meta device; the archive's writer assigns the weights.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.positional_embedding = nn.Parameter(torch.empty(a.context_length, a.text_width))
        self.text_projection = nn.Parameter(torch.empty(a.text_width, a.embed_dim))
        self.logit_scale = nn.Parameter(torch.empty(()))
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, torch.empty((), dtype=torch.int64))
        self.visual: VisualTransformer | ModifiedResNet
        if isinstance(a.vision, ViT):
            self.visual = VisualTransformer(a.vision, a.grid, a.embed_dim)
        else:
            grid = a.image_resolution // RESNET_STRIDE
            self.visual = ModifiedResNet(a.vision, grid, a.embed_dim)
        hidden = torch.full((a.context_length, a.context_length), float("-inf"), device="cpu")
        self.transformer = Transformer(a.text_width, a.text_layers, a.text_blocks, hidden.triu(1))
        table = torch.empty(a.vocab_size, a.text_width)
        self.token_embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.ln_final = LayerNorm(a.text_width, eps=a.text_blocks.epsilon)

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    def encode_image(self, image: Tensor) -> Tensor:
        return self.visual(cast(image, self.dtype))

    def encode_text(self, text: Tensor) -> Tensor:
        x = self.token_embedding(text).type(self.dtype)
        x = x + self.positional_embedding.type(self.dtype)
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = self.ln_final(x)
        rows = torch.arange(x.shape[0])  # On the CPU, as released.
        ends = torch.argmax(text, dim=-1)
        return x[cast(rows, torch.int64), cast(ends, torch.int64)] @ self.text_projection

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        image_features = self.encode_image(image)
        text_features = self.encode_text(text)
        image_features = image_features / image_features.norm(dim=-1, keepdim=True)
        text_features = text_features / text_features.norm(dim=-1, keepdim=True)
        logit_scale = self.logit_scale.exp()
        logits_per_image = logit_scale * image_features @ text_features.t()
        logits_per_text = logit_scale * text_features @ image_features.t()
        return logits_per_image, logits_per_text


def _name_as_released() -> None:
    """Set the released names of the classes, which TorchScript takes from their modules."""
    resnet = (Bottleneck, AttentionPool, ModifiedResNet)
    transformer = (
        LayerNorm,
        QuickGELU,
        MultiheadAttention,
        ResidualAttentionBlock,
        Transformer,
        VisualTransformer,
        Multimodal,
    )
    for module, classes in ((_RESNET, resnet), (_TRANSFORMER, transformer)):
        for cls in classes:
            cls.__module__ = module


_name_as_released()
