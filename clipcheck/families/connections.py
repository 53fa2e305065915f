"""Connections between the modules of an eager model: sums, positions, pooling, projections.

A connection computes the input of a module, or the output of a tower, from outputs of earlier
modules. Most connections pass a tensor on unchanged; these are checked, too: a module that is
skipped or runs twice shows there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn

from clipcheck.families import eager


class End(NamedTuple):
    """One end of a connection: the input or output of a module.

    Of the model itself: its inputs ``pixels`` and ``tokens``, and its outputs ``image_features``
    and ``text_features``.
    """

    name: str
    side: Literal["in", "out", "model"]


PIXELS, TOKENS = End("pixels", "model"), End("tokens", "model")
IMAGE_FEATURES, TEXT_FEATURES = End("image_features", "model"), End("text_features", "model")

LAST = ("visual.ln_post", "visual.attnpool", "ln_final")
"""The last modules of the towers: their outputs are pooled and projected."""

Compute = Callable[..., Tensor]


@dataclass(frozen=True)
class Connection:
    """Computation of a tensor from others, between modules.

    Attributes:
        target: its result.
        sources: its operands, in the order of ``compute``'s arguments.
        compute: function of tensors in any floating dtype; sequences are [N, L, D].
        name: name of the module or weight that reports show.
        part: description for reports.
    """

    target: End
    sources: Sequence[End]
    compute: Compute
    name: str
    part: str

    @property
    def passes(self) -> bool:
        """Whether it passes a tensor on unchanged."""
        return self.compute is _same

    @property
    def by_rows(self) -> bool:
        """Whether it depends on which dimension counts the rows; a sum does, as one of its operands
        may have the rows first."""
        return not self.passes


def connections(model: eager.CLIP) -> Iterator[Connection]:
    """Yield the connections between the modules of a model."""
    visual = model.visual
    if isinstance(visual, eager.VisionTransformer):
        yield from _vision_transformer(visual)
    else:
        yield from _resnet(visual)
    yield from _text(model)
    for name, module in model.named_modules():
        if isinstance(module, eager.ResidualAttentionBlock):
            yield from _attention_block(name)
        elif isinstance(module, eager.Bottleneck):
            yield from _bottleneck(name, module)


def _vision_transformer(visual: eager.VisionTransformer) -> Iterator[Connection]:
    blocks = _blocks("visual.transformer.resblocks", visual.transformer.resblocks)
    yield _passed(PIXELS, "visual.conv1")
    yield Connection(
        End("visual.ln_pre", "in"),
        [End("visual.conv1", "out")],
        visual.embed,
        "visual.positional_embedding",
        "class token and positions",
    )
    yield from _chain(["visual.ln_pre", *blocks])
    yield Connection(
        End("visual.ln_post", "in"),
        [End(blocks[-1], "out")],
        visual.pool,
        "visual.ln_post",
        "pooling before it",
    )
    yield Connection(
        IMAGE_FEATURES,
        [End("visual.ln_post", "out")],
        # A library may normalise all positions, and then pool.
        lambda x: visual.project(visual.pool(x) if x.dim() == 3 else x),
        "visual.proj",
        "projection",
    )


def _resnet(visual: eager.ModifiedResNet) -> Iterator[Connection]:
    layers = [f"{kind}{number}" for number in (1, 2, 3) for kind in ("conv", "bn", "relu")]
    stem = [f"visual.{name}" for name in (*layers, "avgpool")]
    stages = [
        name
        for stage in ("layer1", "layer2", "layer3", "layer4")
        for name in _blocks(f"visual.{stage}", visual.get_submodule(stage))
    ]
    yield _passed(PIXELS, stem[0])
    yield from _chain([*stem, *stages, "visual.attnpool"])
    yield Connection(
        IMAGE_FEATURES, [End("visual.attnpool", "out")], _same, "visual.attnpool", "what follows it"
    )


def _text(model: eager.CLIP) -> Iterator[Connection]:
    blocks = _blocks("transformer.resblocks", model.transformer.resblocks)
    yield _passed(TOKENS, "token_embedding")
    yield Connection(
        End(blocks[0], "in"),
        [End("token_embedding", "out")],
        model.embed,
        "positional_embedding",
        "positions",
    )
    yield from _chain([*blocks, "ln_final"])
    yield Connection(
        TEXT_FEATURES,
        [End("ln_final", "out"), TOKENS],
        lambda x, text: model.project(model.pool(x, text)),
        "text_projection",
        "pooling and projection",
    )


def _attention_block(name: str) -> Iterator[Connection]:
    first, attention, second = (f"{name}.{part}" for part in ("ln_1", "attn", "ln_2"))
    layers = [f"{name}.mlp.{part}" for part in ("c_fc", "gelu", "c_proj")]
    yield _passed(End(name, "in"), first)
    yield from _chain([first, attention])
    yield _sum(End(second, "in"), [End(name, "in"), End(attention, "out")], name, "attn")
    yield from _chain([second, *layers])
    yield _sum(End(name, "out"), [End(second, "in"), End(layers[-1], "out")], name, "mlp")


def _bottleneck(name: str, block: eager.Bottleneck) -> Iterator[Connection]:
    parts = ["conv1", "bn1", "relu1", "conv2", "bn2", "relu2", "avgpool", "conv3", "bn3"]
    if isinstance(block.avgpool, nn.Identity):
        parts.remove("avgpool")
    yield _passed(End(name, "in"), f"{name}.conv1")
    yield from _chain([f"{name}.{part}" for part in parts])
    shortcut = End(name, "in")
    if block.downsample is not None:
        layers = [f"{name}.downsample.{part}" for part in ("-1", "0", "1")]
        yield _passed(shortcut, layers[0])
        yield from _chain(layers)
        shortcut = End(layers[-1], "out")
    yield _sum(End(f"{name}.relu3", "in"), [End(f"{name}.bn3", "out"), shortcut], name, "bn3")
    yield Connection(
        End(name, "out"), [End(f"{name}.relu3", "out")], _same, name, "what follows relu3"
    )


def _chain(names: Sequence[str]) -> Iterator[Connection]:
    for before, after in itertools.pairwise(names):
        yield _passed(End(before, "out"), after)


def _passed(source: End, name: str) -> Connection:
    return Connection(End(name, "in"), [source], _same, name, "what it is given")


def _sum(target: End, sources: Sequence[End], name: str, behind: str) -> Connection:
    return Connection(target, sources, _add, name, f"residual sum behind {behind}")


def _same(x: Tensor) -> Tensor:
    return x


def _add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def _blocks(prefix: str, sequence: nn.Module) -> list[str]:
    return [f"{prefix}.{number}" for number, _ in sequence.named_children()]
