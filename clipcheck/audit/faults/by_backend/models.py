"""Alter the eager model, from which tracers, exporters and compilers start.

A module gets another class with the same weights. TorchScript compiles classes from their source,
and would not see a function that replaces a method of one instance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipcheck.audit.faults.by_backend.planting import Alter
from clipcheck.families import eager


def as_class(kind: type[nn.Module]) -> Alter:
    """Give the model this class."""
    return lambda model: _become(model, kind)


def each(of: type[nn.Module], kind: type[nn.Module]) -> Alter:
    """Give every module of the class ``of`` the class ``kind``."""

    def alter(model: eager.CLIP) -> None:
        for module in model.modules():
            if type(module) is of:
                _become(module, kind)

    return alter


def one(path: str, kind: type[nn.Module]) -> Alter:
    """Give the module ``path`` the class ``kind``."""
    return lambda model: _become(model.get_submodule(path), kind)


def setting(of: type[nn.Module], name: str, value: object) -> Alter:
    """Set an attribute of every module of a class."""

    def alter(model: eager.CLIP) -> None:
        for module in model.modules():
            if type(module) is of:
                setattr(module, name, value)

    return alter


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    module.__class__ = kind


# ------------------------------------------------------------------------------ attention


class Unmasked(eager.Transformer):
    """Attention without a mask."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """``x`` [L, N, D]."""
        for block in self.resblocks:
            x = block(x, None)
        return x


class MultipliedMask(eager.Transformer):
    """Attention with a mask of -1e9 times 1 at masked positions and times 0 elsewhere.

    In half precision -1e9 is -inf, and positions that are not masked are NaN.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``x`` [L, N, D]; ``mask`` [L, L] is 0 where nothing is masked."""
        if mask is not None:
            sentinel = torch.full([], -1e9, device=x.device).to(x.dtype)
            mask = (mask < 0).to(x.dtype) * sentinel
        for block in self.resblocks:
            x = block(x, mask)
        return x


def attend(attention: nn.MultiheadAttention, x: Tensor, mask: Tensor | None, half: bool) -> Tensor:
    """Compute self-attention of ``x`` [L, N, D] step by step."""
    length, rows, width = x.shape
    heads = attention.num_heads
    projected = functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    split = projected.reshape(length, rows, 3, heads, width // heads).permute(2, 1, 3, 0, 4)
    query, key, value = split[0], split[1], split[2]  # [N, heads, L, D / heads]
    scores = query @ key.transpose(-1, -2) * (width // heads) ** -0.5
    if mask is not None:
        scores = scores + mask
    if half:
        scores = scores.to(torch.float16)
    y = scores.softmax(dim=-1).to(value.dtype) @ value
    y = y.permute(2, 0, 1, 3).reshape(length, rows, width)
    return functional.linear(y, attention.out_proj.weight, attention.out_proj.bias)


class ByMatmul(eager.ResidualAttentionBlock):
    """Attention without a fused operation."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``x`` [L, N, D]; ``mask`` [L, L]."""
        x = x + attend(self.attn, self.ln_1(x), mask, False)
        y: Tensor = self.mlp(self.ln_2(x))
        return x + y


class HalfScores(eager.ResidualAttentionBlock):
    """Attention with its softmax in half precision."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``x`` [L, N, D]; ``mask`` [L, L]."""
        x = x + attend(self.attn, self.ln_1(x), mask, True)
        y: Tensor = self.mlp(self.ln_2(x))
        return x + y


# ------------------------------------------------------------------------- layers and stem


class RoundedSlope(nn.Module):
    """QuickGELU with the slope that a kernel in bfloat16 has."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * torch.sigmoid(1.703125 * x)


class TanhGELU(nn.Module):
    """GELU by tanh, as kernels approximate it."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return functional.gelu(x, approximate="tanh")


class ByExp(nn.Module):
    """QuickGELU without a sigmoid operation."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x / (1.0 + torch.exp(-1.702 * x))


class Bfloat16Linear(nn.Linear):
    """A linear layer that multiplies in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        y = functional.linear(x.to(torch.bfloat16), self.weight.to(torch.bfloat16))
        return y.to(x.dtype) + self.bias


class PaddedBehind(nn.Conv2d):
    """A convolution with stride 2 that pads an even side at its end only, as SAME does."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', H / 2, W / 2]."""
        return functional.conv2d(functional.pad(x, [0, 1, 0, 1]), self.weight, None, [2, 2])


def in_training(model: eager.CLIP) -> None:
    """Put BatchNorm in training mode, so that it uses batch statistics."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()


# ------------------------------------------------------------------------ the whole model


class FixedRows(eager.CLIP):
    """A text tower that pools as many texts as the example had."""

    def pool(self, x: Tensor, text: Tensor) -> Tensor:
        """Pool [M, L, D] to [M, D] at the end-of-text token."""
        return x[torch.arange(3, device=x.device), text.argmax(dim=-1)]


class FixedEnd(eager.CLIP):
    """A text tower that pools at the end positions of the example's texts."""

    def pool(self, x: Tensor, text: Tensor) -> Tensor:  # noqa: ARG002
        """[M, L, D] to [M, D]."""
        return x[:, 7]


class Unexponentiated(eager.CLIP):
    """A model that uses the logarithm of the logit scale as the scale."""

    def logits(self, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits [N, M] and [M, N] from features [N, E] and [M, E]."""
        image_features = image_features / image_features.norm(p=2, dim=-1, keepdim=True)
        text_features = text_features / text_features.norm(p=2, dim=-1, keepdim=True)
        per_image = self.logit_scale * image_features @ text_features.t()
        return per_image, per_image.t()


class Normalised(eager.CLIP):
    """A model whose image features have length 1."""

    def encode_image(self, image: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, E]."""
        x: Tensor = self.visual(image.to(self.dtype))
        y: Tensor = x / x.norm(p=2, dim=-1, keepdim=True)
        return y
