"""Faults of the patch embedding, of a ResNet's stem, and of its pools and shortcuts."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional

from clipcheck.audit.faults.planting import at, before, instead, middle, one, within
from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.faults.where import Where
from clipcheck.checkpoints.architecture import ResNet, ViT
from clipcheck.writers.legacy import Multimodal


def _strided(model: Multimodal) -> list[Any]:
    """List the bottlenecks that halve the resolution."""
    visual: Any = model.visual
    return [visual.layer2[0], visual.layer3[0], visual.layer4[0]]


_shortcut_pool = within(middle(_strided), "downsample.-1")


def _replicated(convolution: Any, x: Tensor) -> Tensor:
    x = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(x, convolution.weight, None, convolution.stride)


def _without_shortcut(block: Any, x: Tensor) -> Tensor:
    y: Tensor = block.relu(block.bn1(block.conv1(x)))
    y = block.relu(block.bn2(block.conv2(y)))
    y = block.bn3(block.conv3(block.avgpool(y)))
    return y.relu()


_stem_fault = partial(Variant, family="stem")

STEM = (
    _stem_fault(
        name="stem-padded-by-replication",
        reason="the first convolution pads by replication instead of zeros",
        plant=at(one("visual.conv1"), instead(_replicated)),
        kinds=(ResNet,),
    ),
    _stem_fault(
        name="max-pool-in-stem",
        reason="max pooling, as in a plain ResNet, instead of average pooling",
        plant=at(one("visual.avgpool"), instead(lambda _, x: functional.max_pool2d(x, 2))),
        kinds=(ResNet,),
    ),
    _stem_fault(
        name="shortcut-without-anti-aliasing",
        reason="one shortcut takes every second pixel, as a convolution with stride 2 does",
        plant=at(_shortcut_pool, instead(lambda _, x: x[:, :, ::2, ::2])),
        kinds=(ResNet,),
    ),
    _stem_fault(
        name="shortcut-left-out",
        reason="one block has no residual shortcut",
        plant=at(middle(_strided), instead(_without_shortcut)),
        # The whole shortcut is skipped; this is its first module.
        places=(Where(_shortcut_pool),),
        kinds=(ResNet,),
    ),
    _stem_fault(
        name="patches-one-pixel-off",
        reason="the patch embedding is padded in front and so shifted by one pixel",
        plant=at(
            one("visual.conv1"),
            before(lambda x: functional.pad(x, (1, -1, 1, -1))),
        ),
        kinds=(ViT,),
    ),
)
