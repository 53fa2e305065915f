"""Plant variants: replace a module's ``forward``, or a method, by a function.

The tracer calls attributes of the instance first, so it records the function. A tensor in the
function's closure becomes a constant of the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from clipcheck.audit.faults.where import (
    IDS,
    IMAGE_FEATURES,
    LOGITS,
    PIXELS,
    TEXT_FEATURES,
    Select,
    Where,
)
from clipcheck.writers.legacy import LayerNorm, Multimodal, QuickGELU

Alter = Callable[[Any], None]
Change = Callable[[Tensor], Tensor]
Compute = Callable[..., Tensor]
Pair = tuple[Tensor, Tensor]
Head = Callable[[Multimodal, Tensor, Tensor], Pair]


@dataclass(frozen=True)
class Plant:
    """Alteration of an archive's modules before they are traced.

    Attributes:
        alter: alters the whole model.
        places: where localisation has to find the fault.
    """

    alter: Callable[[Multimodal], None]
    places: tuple[Where, ...]

    def __call__(self, model: Multimodal) -> None:
        """Alter the modules."""
        self.alter(model)


def at(select: Select, alter: Alter) -> Plant:
    """Alter each selected module."""

    def plant(model: Multimodal) -> None:
        for module in select(model):
            alter(module)

    return Plant(plant, (Where(select),))


def both(*plants: Plant) -> Plant:
    """Combine several plants in one."""

    def plant(model: Multimodal) -> None:
        for each in plants:
            each(model)

    return Plant(plant, tuple(place for each in plants for place in each.places))


def put(owner: object, name: str, function: Callable[..., Any]) -> None:
    """Set ``owner.name`` to ``function``."""
    setattr(owner, name, function)


def instead(compute: Compute) -> Alter:
    """Replace the module's ``forward`` by ``compute(module, *inputs)``."""
    return lambda module: put(module, "forward", partial(compute, module))


def before(change: Change) -> Alter:
    """Change a module's first input."""
    return lambda module: _before(module, "forward", change)


def after(change: Change) -> Alter:
    """Change a module's output."""
    return lambda module: _after(module, "forward", change)


def setting(name: str, value: object) -> Alter:
    """Set an attribute that ``forward`` reads."""
    return lambda module: setattr(module, name, value)


def _before(owner: object, name: str, change: Change) -> None:
    original: Compute = getattr(owner, name)
    put(owner, name, lambda x, *more: original(change(x), *more))


def _after(owner: object, name: str, change: Change) -> None:
    original: Compute = getattr(owner, name)
    put(owner, name, lambda *inputs: change(original(*inputs)))


# ---------------------------------------------------------------------------------- methods


def on_pixels(change: Change) -> Plant:
    """Change the pixels [N, 3, H, W] that enter the image tower."""
    return Plant(lambda model: _before(model, "encode_image", change), PIXELS)


def on_tokens(change: Change) -> Plant:
    """Change the ids [M, L] that enter the text tower."""
    return Plant(lambda model: _before(model, "encode_text", change), IDS)


def on_image_features(change: Change) -> Plant:
    """Change the features [N, E] of images, in both methods that compute them."""
    return Plant(lambda model: _after(model, "encode_image", change), IMAGE_FEATURES)


def on_text_features(change: Change) -> Plant:
    """Change the features [M, E] of texts, in both methods that compute them."""
    return Plant(lambda model: _after(model, "encode_text", change), TEXT_FEATURES)


def by_input(method: str, compute: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any], None]:
    """Replace the features that a method returns by ``compute(features, inputs)``."""

    def alter(model: Any) -> None:
        encode: Callable[[Tensor], Tensor] = getattr(model, method)
        put(model, method, lambda given: compute(encode(given), given))

    return alter


def with_head(head: Head) -> Plant:
    """Compute both logits by ``head(model, image_features, text_features)``."""

    def plant(model: Multimodal) -> None:
        put(
            model,
            "forward",
            lambda image, text: head(model, model.encode_image(image), model.encode_text(text)),
        )

    return Plant(plant, LOGITS)


def only_in_forward(method: str, change: Change) -> Plant:
    """Change what ``method`` returns to ``forward``, but not what it returns to callers."""

    def plant(model: Multimodal) -> None:
        def call(image: Tensor, text: Tensor) -> Pair:
            features = {"encode_image": model.encode_image(image)}
            features["encode_text"] = model.encode_text(text)
            features[method] = change(features[method])
            return logits(model, features["encode_image"], features["encode_text"])

        put(model, "forward", call)

    return Plant(plant, LOGITS)


def logits(model: Multimodal, image_features: Tensor, text_features: Tensor) -> Pair:
    """Compute the logits correctly, as the end of ``forward`` does."""
    scaled = model.logit_scale.exp() * unit(image_features)
    per_image = scaled @ unit(text_features).t()
    return per_image, per_image.t()


def unit(features: Tensor) -> Tensor:
    """Normalise rows to length 1."""
    length: Tensor = features.norm(dim=-1, keepdim=True)
    return features / length


# ------------------------------------------------------------------------------ modules


def text_blocks(model: Multimodal) -> list[Any]:
    """List the residual attention blocks of the text tower."""
    return list(model.transformer.resblocks)


def vision_blocks(model: Multimodal) -> list[Any]:
    """List the residual attention blocks of the image tower; a ResNet has none."""
    visual: Any = model.visual
    return list(visual.transformer.resblocks) if hasattr(visual, "transformer") else []


def bottlenecks(model: Multimodal) -> list[Any]:
    """List the residual blocks of a ResNet, all stages in one list."""
    visual: Any = model.visual
    stages = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
    return [block for stage in stages for block in stage]


def blocks(model: Multimodal) -> list[Any]:
    """List the residual attention blocks of both towers."""
    return [*vision_blocks(model), *text_blocks(model)]


def middle(select: Select) -> Select:
    """Select the middle one of the selected modules."""

    def one(model: Multimodal) -> list[Any]:
        found = select(model)
        # The first of two, not the last block, which other faults alter.
        return [found[(len(found) - 1) // 2]]

    return one


def within(select: Select, path: str) -> Select:
    """Select the submodule ``path`` of each selected module."""
    return lambda model: [module.get_submodule(path) for module in select(model)]


def instances(kind: type[nn.Module]) -> Select:
    """Select every module of the class ``kind``."""
    return lambda model: [module for module in model.modules() if isinstance(module, kind)]


def one(path: str) -> Select:
    """Select the module ``path``."""
    return lambda model: [model.get_submodule(path)]


text_block = middle(text_blocks)
vision_block = middle(vision_blocks)
bottleneck = middle(bottlenecks)
gelus = instances(QuickGELU)
layer_norms = instances(LayerNorm)
batch_norms = instances(nn.BatchNorm2d)


# ----------------------------------------------------------------------------- numbers


def row_numbers(x: Tensor) -> Tensor:
    """Return 0 to N - 1 as [N], on the device of ``x``, computed in the traced graph."""
    column = x.flatten(start_dim=1)[:, 0]
    return column.new_ones(x.shape[0]).cumsum(0) - 1


def where_row(chosen: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """Take the rows of ``x`` where ``chosen`` [N] is true, else those of ``other``."""
    return x.where(chosen.reshape(-1, *[1] * (x.dim() - 1)), other)


def positions(text: Tensor) -> Tensor:
    """Return 0 to L - 1 for each row of ids [M, L]."""
    return text.new_ones(text.shape).cumsum(-1) - 1
