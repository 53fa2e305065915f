"""Measure the smallest change that a gate detects, by kind and depth: a table of the documentation.

Each change is planted into archives at sizes a factor of sqrt(10) apart; bisection finds the
smallest size for which a gate fails. Sizes are relative to the weight, constant, scale or number
that is changed, except for norms of features, to which the size itself is added.

    python -m benchmarks.smallest --arch tiny-vit --arch tiny-resnet --weights trained
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.tables import add_option, table
from clipcheck.audit.bench import Bench, Model
from clipcheck.audit.faults.planting import (
    Pair,
    Plant,
    at,
    bottlenecks,
    instead,
    on_image_features,
    on_text_features,
    one,
    text_blocks,
    unit,
    vision_blocks,
    with_head,
    within,
)
from clipcheck.audit.faults.steps import attend, attention, attention_pool
from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.faults.where import Select
from clipcheck.backends.names import OF_ARCHIVES
from clipcheck.checkpoints.architecture import ResNet, ViT
from clipcheck.writers.legacy import Multimodal
from clipcheck.writers.trained import KINDS

Changes = Callable[[float], Plant]
Change = tuple[str, Changes, tuple[type, ...]]

SIZES = tuple(10 ** (power / 2) for power in range(-15, -5))
"""From 3e-8 to 1e-3."""

OF_EPSILON = tuple(10 ** (power / 2) for power in range(-3, 3))
"""From 0.03 to 10: an epsilon is small relative to a variance."""


def noise(size: float, x: Tensor) -> Tensor:
    """Return different noise in each call."""
    return x * (1 + size * torch.randn_like(x))


def of_scale(size: float) -> Plant:
    def head(model: Multimodal, image: Tensor, text: Tensor) -> Pair:
        per_image = (1 + size) * model.logit_scale.exp() * unit(image) @ unit(text).t()
        return per_image, per_image.t()

    return with_head(head)


def of_norms(size: float) -> Plant:
    def head(model: Multimodal, image: Tensor, text: Tensor) -> Pair:
        near = image / (image.norm(dim=-1, keepdim=True) + size)
        per_image = model.logit_scale.exp() * near @ unit(text).t()
        return per_image, per_image.t()

    return with_head(head)


def of_slope(blocks: Select, size: float) -> Plant:
    def gelu(_: object, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * (1 + size) * x)

    return at(within(blocks, "mlp.gelu"), instead(gelu))


def of_matrix(blocks: Select, size: float) -> Plant:
    def linear(module: Any, x: Tensor) -> Tensor:
        weight = module.weight + size * module.weight.roll(1, -1)
        return functional.linear(x, weight, module.bias)

    return at(within(blocks, "mlp.c_fc"), instead(linear))


def of_convolution(blocks: Select, size: float) -> Plant:
    def convolution(module: Any, x: Tensor) -> Tensor:
        return functional.conv2d(x, module.weight + size * module.weight.roll(1, 1), padding=1)

    return at(within(blocks, "conv2"), instead(convolution))


def of_epsilon(norms: Select, size: float) -> Plant:
    def alter(norm: Any) -> None:
        norm.eps *= 1 + size

    return at(norms, alter)


def of_attention(blocks: Select, size: float) -> Plant:
    return at(within(blocks, "attn"), attention(attend=partial(scaled, size)))


def of_pool(size: float) -> Plant:
    return at(one("visual.attnpool"), attention_pool(attend=partial(scaled, size)))


def scaled(size: float, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return attend((1 + size) * query, key, value, mask)


def place(select: Select, number: int) -> Select:
    return lambda model: [select(model)[number]]


def changes() -> Iterator[Change]:
    """Yield each change with its architecture: both small ones have the same text tower."""
    both, vit, resnet = (ViT, ResNet), (ViT,), (ResNet,)
    yield "noise on features of images", lambda s: on_image_features(partial(noise, s)), both
    yield "noise on features of texts", lambda s: on_text_features(partial(noise, s)), vit
    yield "norms of images", of_norms, both
    yield "logit scale", of_scale, both
    for depth, number in (("first", 0), ("last", -1)):
        for tower, blocks in (("text", text_blocks), ("image", vision_blocks)):
            block, where = place(blocks, number), f", {depth} {tower} block"
            yield f"slope of QuickGELU{where}", partial(of_slope, block), vit
            yield f"one weight matrix{where}", partial(of_matrix, block), vit
            yield f"scale of attention{where}", partial(of_attention, block), vit
            yield f"epsilon of ln_2{where}", partial(of_epsilon, within(block, "ln_2")), vit
        block, where = place(bottlenecks, number), f", {depth} bottleneck"
        yield f"one weight matrix{where}", partial(of_convolution, block), resnet
        yield f"epsilon of bn2{where}", partial(of_epsilon, within(block, "bn2")), resnet
    yield "epsilon of ln_final", partial(of_epsilon, one("ln_final")), vit
    yield "epsilon of visual.ln_post", partial(of_epsilon, one("visual.ln_post")), vit
    yield "scale of attention, attention pool", of_pool, resnet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", help="default: tiny-vit")
    parser.add_argument("--weights", action="append", choices=KINDS, help="default: seeded")
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = ["change", "in", "weights", "smallest seen", "gate"]
    plan = itertools.product(arguments.arch or ["tiny-vit"], arguments.weights or ["seeded"])
    with table("smallest", columns, arguments.tables) as row:
        for arch, weights in plan:
            with tempfile.TemporaryDirectory() as folder:
                bench = Bench(Model(arch, 0, weights, "float32"), Path(folder))
                for name, change, kinds in changes():
                    if isinstance(bench.architecture.vision, kinds):
                        sizes = OF_EPSILON if name.startswith("epsilon") else SIZES
                        row(name, arch, weights, *smallest(bench, change, sizes))


def smallest(bench: Bench, change: Changes, sizes: Sequence[float]) -> tuple[str, str]:
    """Return the smallest detected size and its gates, if all larger sizes are detected too."""
    seen, gate = len(sizes), ""
    unseen = -1
    while seen - unseen > 1:
        tried = (seen + unseen) // 2
        small = Variant(name="small", family="numerics", reason="small", plant=change(sizes[tried]))
        found = bench.find(small, OF_ARCHIVES)
        if found.gate is None:
            unseen = tried
        else:
            seen, gate = tried, found.gate
    return (f"{sizes[seen]:.0e}" if gate else "none"), gate


if __name__ == "__main__":
    main()
