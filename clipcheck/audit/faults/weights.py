"""Faults of weights: the code uses a weight, or a whole block, wrongly."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional

from clipcheck.audit.faults.planting import (
    Alter,
    at,
    instead,
    one,
    put,
    text_block,
    text_blocks,
    vision_blocks,
    within,
)
from clipcheck.audit.faults.steps import (
    Projected,
    attention,
    in_projection,
)
from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.faults.where import (
    GIVEN,
    SUM,
    Select,
    Where,
)
from clipcheck.checkpoints.architecture import ResNet, ViT
from clipcheck.writers.legacy import Multimodal


def _swapped(first: int, second: int, attention: Any, x: Tensor) -> Projected:
    found = list(in_projection(attention, x))
    found[first], found[second] = found[second], found[first]
    return found[0], found[1], found[2]


def _by_head(attention: Any, x: Tensor) -> Projected:
    projected = functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    projected = projected.unflatten(-1, (attention.heads, 3, x.shape[2] // attention.heads))
    query, key, value = (part.flatten(start_dim=2) for part in projected.unbind(3))
    return query, key, value


def _without_bias(attention: Any, x: Tensor) -> Projected:
    query, key, value = functional.linear(x, attention.in_proj_weight).chunk(3, dim=-1)
    return query, key, value


def _transposed(attention: Any, y: Tensor) -> Tensor:
    return functional.linear(y, attention.out_proj.weight.t(), attention.out_proj.bias)


def _stale_bias(linear: Any) -> None:
    stale = linear.bias.detach() * 0.98

    def forward(x: Tensor) -> Tensor:
        return functional.linear(x, linear.weight, stale.type_as(x))

    put(linear, "forward", forward)


def _rounded_weight(module: Any) -> None:
    rounded = module.out_proj.weight.detach().bfloat16().half()

    def finish(module: Any, y: Tensor) -> Tensor:
        return functional.linear(y, rounded.type_as(y), module.out_proj.bias)

    attention(finish=finish)(module)


def _ordered(order: Any) -> Alter:
    """Run a stack of blocks in another order: ``order`` maps their list to the list that runs."""

    def forward(stack: Any, x: Tensor) -> Tensor:
        for block in order(list(stack)):
            x = block(x)
        return x

    return instead(forward)


def _two_swapped(found: list[Any]) -> list[Any]:
    place = len(found) // 2
    return [*found[: place - 1], found[place], found[place - 1], *found[place + 1 :]]


def _one_twice(found: list[Any]) -> list[Any]:
    place = len(found) // 2
    return [*found[: place + 1], *found[place:]]


def _one_skipped(found: list[Any]) -> list[Any]:
    place = len(found) // 2
    return [*found[:place], *found[place + 1 :]]


def _halfway(select: Select, part: str = "", before: int = 0) -> tuple[Where, ...]:
    """Return the middle block of a stack, or the block ``before`` places earlier."""
    return (Where(lambda model: [select(model)[len(select(model)) // 2 - before]], part),)


def _without_residual(block: Any, x: Tensor) -> Tensor:
    mask = None if block.mask is None else block.mask.to(x.device, x.dtype)
    x = x + block.attn(block.ln_1(x), mask)
    mixed: Tensor = block.mlp(block.ln_2(x))
    return mixed


def _second_stage(model: Multimodal) -> list[Any]:
    # Every ResNet has at least two bottlenecks in this stage.
    visual: Any = model.visual
    return list(visual.layer2)


_weight = partial(Variant, family="weights")

WEIGHTS = (
    _weight(
        name="query-and-key-swapped",
        reason="rows of in_proj_weight are read in the order key, query, value",
        plant=at(within(text_block, "attn"), attention(project=partial(_swapped, 0, 1))),
    ),
    _weight(
        name="fused-projection-split-by-head",
        reason="in_proj_weight is read in Megatron's layout, with heads outermost",
        plant=at(within(text_block, "attn"), attention(project=_by_head)),
    ),
    _weight(
        name="output-projection-transposed",
        reason="a converter transposes out_proj as for Keras or flax; being square, it still fits",
        plant=at(within(text_block, "attn"), attention(finish=_transposed)),
    ),
    _weight(
        name="attention-bias-left-out",
        reason="a converter drops in_proj_bias, as for models with qkv_bias=False",
        plant=at(within(text_block, "attn"), attention(project=_without_bias)),
    ),
    _weight(
        name="stale-bias-as-constant",
        reason="an old bias, 2 % lower, is a constant of the graph",
        plant=at(within(text_block, "mlp.c_fc"), _stale_bias),
    ),
    _weight(
        name="rounded-weight-as-constant",
        reason="a copy of one weight, rounded to bfloat16, is a graph constant",
        plant=at(within(text_block, "attn"), _rounded_weight),
    ),
    _weight(
        name="text-block-skipped",
        reason="one layer fewer, as if the penultimate layer were used (Stable Diffusion 2)",
        plant=at(one("transformer.resblocks"), _ordered(_one_skipped)),
        places=_halfway(text_blocks),
    ),
    _weight(
        name="image-block-skipped",
        reason="one layer of the image tower is skipped (layer drop)",
        plant=at(one("visual.transformer.resblocks"), _ordered(_one_skipped)),
        places=_halfway(vision_blocks),
        kinds=(ViT,),
    ),
    _weight(
        name="bottleneck-skipped",
        reason="a stage is built with one block fewer and loaded with strict=False",
        plant=at(one("visual.layer2"), _ordered(_one_skipped)),
        places=_halfway(_second_stage),
        kinds=(ResNet,),
    ),
    _weight(
        name="text-block-twice",
        reason="a loop over the blocks is off by one and runs one block twice",
        plant=at(one("transformer.resblocks"), _ordered(_one_twice)),
        places=_halfway(text_blocks, part=GIVEN),
    ),
    _weight(
        name="text-blocks-swapped",
        reason="blocks sorted by their number as text, 10 before 2",
        plant=at(one("transformer.resblocks"), _ordered(_two_swapped)),
        # The later block runs in place of the earlier one.
        places=_halfway(text_blocks, before=1),
    ),
    _weight(
        name="residual-left-out",
        reason="the residual sum after the MLP of one block is missing",
        plant=at(text_block, instead(_without_residual)),
        places=(Where(text_block, f"{SUM} behind mlp"),),
    ),
)
