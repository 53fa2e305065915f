"""The smallest relative change that is seen, by kind and depth: the README's table.

Each change is planted into archives, smaller each time by a factor of the root of ten, until all
gates pass. What is still caught is below what float32 rounds to in the end, or it is not a change.

    python -m benchmarks.smallest --weights seeded --weights trained
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from clipcheck.audit import _Bench, _Unit
from clipcheck.faults.planting import (
    Plant,
    after,
    at,
    instead,
    on_image_features,
    text_blocks,
    unit,
    with_head,
    within,
)
from clipcheck.faults.variant import Variant
from clipcheck.writers.legacy import Multimodal
from clipcheck.writers.trained import KINDS

SIZES = tuple(10 ** (-power / 2) for power in range(6, 16))
"""From 1e-3 to 3e-8."""

Changes = Callable[[float], Plant]


def disturbed(size: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Off by that share, in another direction."""
    return lambda x: x + size * x.roll(1, -1)


def of_scale(size: float) -> Plant:
    def head(
        model: Multimodal, image: torch.Tensor, text: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        per_image = (1 + size) * model.logit_scale.exp() * unit(image) @ unit(text).t()
        return per_image, per_image.t()

    return with_head(head)


def in_text(number: int, path: str) -> Changes:
    def blocks(model: Multimodal) -> list[object]:
        return [text_blocks(model)[number]]

    return lambda size: at(within(blocks, path), after(disturbed(size)))


def of_slope(size: float) -> Plant:
    def gelu(_: object, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * (1 + size) * x)

    return at(within(text_blocks, "mlp.gelu"), instead(gelu))


CHANGES: dict[str, Changes] = {
    "image features": lambda size: on_image_features(disturbed(size)),
    "logit scale": of_scale,
    "slope of QuickGELU, every text block": of_slope,
    "one linear layer, first text block": in_text(0, "mlp.c_fc"),
    "one linear layer, last text block": in_text(-1, "mlp.c_fc"),
    "one attention, first text block": in_text(0, "attn"),
    "one LayerNorm, last text block": in_text(-1, "ln_2"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="tiny-vit")
    parser.add_argument("--weights", action="append", choices=KINDS, help="default: seeded")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| change | weights | smallest seen | gate |")
    print("|---|---|---|---|")
    for weights in arguments.weights or ["seeded"]:
        part = _Unit(arguments.arch, 0, weights, "float32", ("jit",), (), 0, 1, 1, False)
        with tempfile.TemporaryDirectory() as folder:
            bench = _Bench(part, Path(folder))
            for name, change in CHANGES.items():
                seen, gate = smallest(bench, change)
                print(f"| {name} | {weights} | {seen} | {gate} |", flush=True)


def smallest(bench: _Bench, change: Changes) -> tuple[str, str]:
    seen, gate = "none", ""
    for size in SIZES:
        found = bench.judge(Variant("small", "numerics", "small", change(size)))
        if found.gate is None:
            break
        seen, gate = f"{size:.0e}", found.gate
    return seen, gate


if __name__ == "__main__":
    main()
