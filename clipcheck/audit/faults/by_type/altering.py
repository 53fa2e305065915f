"""Alter a library's modules: other computations with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipcheck.audit.faults.planting import put

# ------------------------------------------------------------------------------ faults


def approximate_otherwise(module: nn.Module) -> None:
    """Exchange exact GELU and tanh GELU."""
    probe = torch.linspace(-4, 4, 9)
    exact = torch.equal(module(probe), functional.gelu(probe))
    other = "tanh" if exact else "none"
    put(module, "forward", lambda x: functional.gelu(x, approximate=other))


def quick_gelu(module: nn.Module) -> None:
    """Compute QuickGELU instead."""
    put(module, "forward", lambda x: x * torch.sigmoid(1.702 * x))


def gelu(module: nn.Module) -> None:
    """Compute GELU instead."""
    put(module, "forward", functional.gelu)


def exchange_epsilon(module: Any) -> None:
    """Replace epsilon 1e-5 by 1e-6, and any other by 1e-5."""
    set_epsilon(module, 1e-6 if epsilon_of(module) == 1e-5 else 1e-5)


def epsilon_of(module: Any) -> float:
    """Return the epsilon of a norm."""
    epsilon: float = getattr(module, _epsilon_name(module))
    return epsilon


def set_epsilon(module: Any, epsilon: float) -> None:
    """Set the epsilon of a norm."""
    setattr(module, _epsilon_name(module), epsilon)


def _epsilon_name(module: Any) -> str:
    return "eps" if hasattr(module, "eps") else "variance_epsilon"  # as transformers calls it


def identity(module: nn.Module) -> None:
    """Return the first input unchanged."""
    put(module, "forward", lambda x, *_, **__: x)


def twice(module: nn.Module) -> None:
    """Run the module again on its own output."""
    original: Callable[..., Tensor] = module.forward
    put(module, "forward", lambda x, *a, **k: original(original(x, *a, **k), *a, **k))


def without_bias(module: Any) -> None:
    """Drop the bias of a linear layer or convolution."""
    put(module, "forward", lambda x: _apply(module, x, module.weight, None))


def in_bfloat16(module: Any) -> None:
    """Multiply in bfloat16, in a linear layer or convolution."""

    def forward(x: Tensor) -> Tensor:
        weight, half = module.weight.to(torch.bfloat16), x.to(torch.bfloat16)
        bias = None if module.bias is None else module.bias.to(torch.bfloat16)
        return _apply(module, half, weight, bias).to(x.dtype)

    put(module, "forward", forward)


def _apply(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(module, nn.Conv2d):
        y: Tensor = module._conv_forward(x, weight, bias)
        return y
    return functional.linear(x, weight, bias)


def roll(positions: Tensor) -> None:
    """Give each position the embedding of the position before it."""
    with torch.no_grad():
        positions.copy_(positions.roll(1, -2))


def add(step: float) -> Callable[[Tensor], None]:
    """Add ``step`` to a number."""

    def alter(number: Tensor) -> None:
        with torch.no_grad():
            number.add_(step)

    return alter


def scale_less(model: Any) -> None:
    """Lower the logit scale by 1 %; raising it has no effect in AIMv2, which caps it at 100."""
    own = model.model
    with torch.no_grad():
        if hasattr(own, "temperature"):
            own.temperature.mul_(1.01)  # ALIGN divides by it
        else:
            own.logit_scale.sub_(0.01)


def unmask(owner: Any) -> None:
    """Mask nothing, in a text tower of open_clip or an attention of transformers."""
    if hasattr(owner, "attn_mask"):
        owner.attn_mask = torch.zeros_like(owner.attn_mask)
        return
    original: Callable[..., Any] = owner.forward

    def forward(hidden_states: Tensor, attention_mask: Tensor | None = None, **more: Any) -> Any:
        del attention_mask
        return original(hidden_states, attention_mask=None, **{**more, "is_causal": False})

    put(owner, "forward", forward)


def attend_padding(module: Any) -> None:
    """Do not mask padding, in a text model of transformers or open_clip."""
    if hasattr(module, "_build_additive_mask"):
        build = module._build_additive_mask
        put(module, "_build_additive_mask", lambda *given: torch.zeros_like(build(*given)))
        return
    original: Callable[..., Any] = module.forward
    put(
        module,
        "forward",
        lambda attention_mask, **more: original(
            attention_mask=torch.ones_like(attention_mask), **more
        ),
    )


def centred(features: Tensor, _: Tensor) -> Tensor:
    """Subtract a thousandth of the mean over all rows."""
    return features - 1e-3 * features.mean(0, keepdim=True)


def first_leaks(features: Tensor, _: Tensor) -> Tensor:
    """Add a thousandth of the first row to all rows."""
    return features + 1e-3 * features[:1]


def dim_if_bright(features: Tensor, pixels: Tensor) -> Tensor:
    """Reverse the features of images that are almost white."""
    bright = pixels.mean((1, 2, 3), keepdim=False)[:, None] > 0.9
    return torch.where(bright, features.flip(-1), features)


def turned_if_full(features: Tensor, tokens: Tensor) -> Tensor:
    """Reverse the features of texts without padding, whose last two ids differ."""
    full = (tokens[:, -1] != tokens[:, -2])[:, None]
    return torch.where(full, features.flip(-1), features)


# ------------------------------------------------------------------------------ clean


def sum_by_halves(module: Any) -> None:
    """Compute the sum of a linear layer in two parts, second half first."""
    half = module.in_features // 2

    def forward(x: Tensor) -> Tensor:
        second = functional.linear(x[..., half:], module.weight[:, half:], module.bias)
        return second + functional.linear(x[..., :half], module.weight[:, :half])

    put(module, "forward", forward)


def apart(module: Any) -> None:
    """Split a linear layer in three, as a fused query, key and value layer is split."""

    def forward(x: Tensor) -> Tensor:
        biases = (None,) * 3 if module.bias is None else module.bias.tensor_split(3)
        parts = zip(module.weight.tensor_split(3), biases, strict=True)
        return torch.cat([functional.linear(x, *part) for part in parts], -1)

    put(module, "forward", forward)


def gelu_by_erf(module: nn.Module) -> None:
    """Write out GELU, exact or tanh, whichever the module computes."""
    probe = torch.linspace(-4, 4, 9)
    if torch.equal(module(probe), functional.gelu(probe)):
        put(module, "forward", lambda x: x * (0.5 * (1 + torch.erf(x * 0.5**0.5))))
        return
    root = (2 / torch.pi) ** 0.5
    put(
        module,
        "forward",
        lambda x: 0.5 * x * (1 + torch.tanh(root * (x + 0.044715 * x * x * x))),
    )


def attention_by_hand(module: Any) -> None:
    """Compute attention without a fused operation."""
    if hasattr(module, "fused_attn"):
        module.fused_attn = False  # timm's own code without a fused operation
        return
    if not isinstance(module, nn.MultiheadAttention):
        module.config._attn_implementation = "eager"  # transformers' own
        return

    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        need_weights: bool = False,  # noqa: ARG001
    ) -> tuple[Tensor, None]:
        found = _attend(module, query, key, value, attn_mask)
        return found, None

    put(module, "forward", forward)


def _attend(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> Tensor:
    """Attention of ``query`` [N, L, D] to ``key`` and ``value`` [N, S, D], batch first or not."""
    heads, width = module.num_heads, module.embed_dim

    def split(x: Tensor, part: int) -> Tensor:
        rows = slice(part * width, (part + 1) * width)
        weight, bias = module.in_proj_weight[rows], module.in_proj_bias[rows]
        y: Tensor = functional.linear(x if module.batch_first else x.transpose(0, 1), weight, bias)
        parts: Tensor = y.unflatten(-1, (heads, width // heads))
        return parts.transpose(1, 2)  # [N, heads, L, D / heads]

    q, k, v = (split(x, part) for part, x in enumerate((query, key, value)))
    scores = q @ k.transpose(-1, -2) * (width // heads) ** -0.5
    if mask is not None:
        # One mask for all rows [L, S], or one for each row and head [N * heads, L, S].
        scores = scores + (mask if mask.ndim == 2 else mask.unflatten(0, (-1, heads)))
    y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)
    y = functional.linear(y, module.out_proj.weight, module.out_proj.bias)
    return y if module.batch_first else y.transpose(0, 1)


def patches_by_matmul(module: Any) -> None:
    """Compute a convolution over non-overlapping patches as one matrix product."""

    def forward(x: Tensor) -> Tensor:
        rows = x.shape[-2] // module.stride[0]
        patches = functional.unfold(x, module.kernel_size, stride=module.stride)  # [N, CPP, L]
        y: Tensor = module.weight.flatten(1) @ patches
        if module.bias is not None:
            y = y + module.bias[:, None]
        grid: Tensor = y.unflatten(-1, (rows, -1))
        return grid

    put(module, "forward", forward)
