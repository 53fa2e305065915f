"""Find the architecture of a state dict, and what does not fit it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from clipcheck.checkpoints.architecture import (
    HEAD_WIDTH,
    RESNET_STRIDE,
    Architecture,
    Blocks,
    ResNet,
    ViT,
)
from clipcheck.checkpoints.keys import Spec, specs
from clipcheck.errors import ArchitectureError

if TYPE_CHECKING:
    import os


ASKED = "--architecture (in pytest --clip-architecture, in Python architecture=)"
"""The option for the architecture, for messages of the command, pytest and Python alike."""

_MOST_POSITIONS = 4096
"""Most tokens of a text, and patches of an image: attention needs the square of it in memory.
Released models have 77 and 577."""

_MOST_PIXELS = 4096
"""Most pixels along one side of an image."""


class HasShape(Protocol):
    """Anything with a shape: a tensor, or the record of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each dimension."""


class _MisfitError(ValueError):
    """The tensor under ``key`` does not fit."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(problem)
        self.key = key


def infer(
    tensors: Mapping[str, HasShape],
    path: str | os.PathLike[str],
    spelled: Callable[[str], str] = str,
) -> Architecture:
    """Return the architecture of a state dict, with the released activation, heads and epsilon.

    Args:
        tensors: by key, without prefix; only names and shapes are used.
        spelled: returns a key's name in the file, for messages.

    Raises:
        ArchitectureError: a key is missing or unknown, or its shape does not fit the others.
    """
    found = dimensions_of(tensors, path, spelled)
    _require_heads(found, path)
    return found


def dimensions_of(
    tensors: Mapping[str, HasShape],
    path: str | os.PathLike[str],
    spelled: Callable[[str], str] = str,
) -> Architecture:
    """Return the dimensions of the model of a state dict.

    Returns:
        An architecture with these dimensions. Activation, heads and epsilon must come from
        elsewhere, see `Architecture.computing_as`.

    Raises:
        ArchitectureError: a key is missing or unknown, or its shape does not fit the others.
    """
    try:
        architecture = _dimensions(tensors)
        _require_layers(architecture)
    except (KeyError, ValueError) as error:
        raise _foreign(tensors, error, path, spelled) from error
    _compare(tensors, dict(specs(architecture)), path, spelled)
    _require_bounded(architecture, path)
    return architecture


def _require_bounded(a: Architecture, path: str | os.PathLike[str]) -> None:
    """Raise if running the model would need far more memory than its weights."""
    limits = (
        (a.context_length, _MOST_POSITIONS, "tokens of a text"),
        (a.grid**2, _MOST_POSITIONS, "patches of an image"),
        (a.image_resolution, _MOST_PIXELS, "pixels a side"),
    )
    for found, most, unit in limits:
        if found > most:
            raise ArchitectureError(
                f"expected a CLIP model of at most {most} {unit}, found {found:,}: running it "
                "would take more memory than there is",
                remedy="Give a CLIP checkpoint of a usual size.",
                path=path,
            )


def _dimensions(tensors: Mapping[str, HasShape]) -> Architecture:
    context_length, text_width = _sizes(tensors, "positional_embedding", 2)
    vision: ViT | ResNet
    # A prefix decides, not a single key, so that a missing key is named.
    if any(key.startswith(("visual.layer", "visual.attnpool.")) for key in tensors):
        vision, grid, stride = _resnet_dimensions(tensors)
    else:
        vision, grid, stride = _vit_dimensions(tensors)
    return Architecture(
        embed_dim=_sizes(tensors, "text_projection", 2)[1],
        image_resolution=grid * stride,
        vision=vision,
        text_width=text_width,
        text_layers=_count(tensors, "transformer.resblocks."),
        context_length=context_length,
        vocab_size=_sizes(tensors, "token_embedding.weight", 2)[0],
        text_blocks=_blocks(tensors, "transformer", text_width),
    )


def _blocks(tensors: Mapping[str, HasShape], prefix: str, width: int) -> Blocks:
    """Return the residual blocks of a tower: as released, with the MLP's width from the weights."""
    key = f"{prefix}.resblocks.0.mlp.c_fc.weight"
    # If it is missing or misshapen, `_compare` reports it with the others.
    shape = tuple(tensors[key].shape) if key in tensors else ()
    return Blocks(mlp_ratio=shape[0] / width) if len(shape) == 2 and shape[0] else Blocks()


def _vit_dimensions(tensors: Mapping[str, HasShape]) -> tuple[ViT, int, int]:
    width, _, _, patch = _sizes(tensors, "visual.conv1.weight", 4)
    layers = _count(tensors, "visual.transformer.resblocks.")
    grid = _grid(_sizes(tensors, "visual.positional_embedding", 2)[0])
    blocks = _blocks(tensors, "visual.transformer", width)
    return ViT(layers, width, patch, blocks=blocks), grid, patch


def _resnet_dimensions(tensors: Mapping[str, HasShape]) -> tuple[ResNet, int, int]:
    one, two, three, four = (_count(tensors, f"visual.layer{stage}.") for stage in range(1, 5))
    width = _sizes(tensors, "visual.layer1.0.conv1.weight", 4)[0]
    grid = _grid(_sizes(tensors, "visual.attnpool.positional_embedding", 2)[0])
    return ResNet((one, two, three, four), width), grid, RESNET_STRIDE


def _sizes(tensors: Mapping[str, HasShape], key: str, dimensions: int) -> tuple[int, ...]:
    """Return the shape under ``key``; raise if it has not ``dimensions`` sizes of at least 1."""
    shape = tuple(tensors[key].shape)
    if len(shape) != dimensions or 0 in shape:
        raise _MisfitError(key, f"{list(shape)} instead of {dimensions} sizes above 0")
    return shape


def _require_layers(a: Architecture) -> None:
    """Raise if a tower has no layers: the other dimensions would fit, but it would not run."""
    if isinstance(a.vision, ViT):
        counts = {"visual.transformer.resblocks": a.vision.layers}
    else:
        counts = {f"visual.layer{n}": blocks for n, blocks in enumerate(a.vision.layers, start=1)}
    counts["transformer.resblocks"] = a.text_layers
    for prefix, count in counts.items():
        if count == 0:
            raise KeyError(f"{prefix}.0")


def _require_heads(a: Architecture, path: str | os.PathLike[str]) -> None:
    vision = a.vision
    image_width = vision.width if isinstance(vision, ViT) else vision.embed_width
    for tower, width in (("image", image_width), ("text", a.text_width)):
        if width < HEAD_WIDTH or width % HEAD_WIDTH:
            raise ArchitectureError(
                f"a width of {width} in the {tower} tower is no multiple of {HEAD_WIDTH}, the "
                "channels of a head in the released models, and nothing tells how many it has",
                remedy=f"Say so with {ASKED}: the open_clip_config.json or config.json "
                "(transformers) that it was trained with.",
                path=path,
            )


def _count(tensors: Mapping[str, HasShape], prefix: str) -> int:
    """Return the number of layers of the sequence with this prefix."""
    return len({key[len(prefix) :].split(".")[0] for key in tensors if key.startswith(prefix)})


def _grid(positions: int) -> int:
    """Return the side of the square of ``positions - 1`` cells; one position is the class token."""
    side = math.isqrt(max(positions - 1, 0))
    if side == 0 or side**2 + 1 != positions:
        raise ValueError(f"{positions} image positions are not a square and one")
    return side


def _foreign(
    tensors: Mapping[str, HasShape],
    error: Exception,
    path: str | os.PathLike[str],
    spelled: Callable[[str], str],
) -> ArchitectureError:
    if isinstance(error, KeyError):
        found = f"it lacks {spelled(error.args[0])!r}"
    else:
        name = f"{spelled(error.key)} " if isinstance(error, _MisfitError) else ""
        found = f"its dimensions do not fit together ({name}{error})"
    some = ", ".join(repr(spelled(key)) for key in list(tensors)[:3])
    return ArchitectureError(
        f"expected the state dict of a CLIP model, but {found}; its {len(tensors)} keys begin "
        f"with {some or 'nothing'}",
        remedy="Give a CLIP checkpoint with the keys of the reference implementation, of "
        "open_clip or of transformers.",
        path=path,
    )


def _compare(
    tensors: Mapping[str, HasShape],
    expected: Mapping[str, Spec],
    path: str | os.PathLike[str],
    spelled: Callable[[str], str],
) -> None:
    optional = {key for key, spec in expected.items() if spec.kind == "buffer"}
    missing = [key for key in expected if key not in tensors and key not in optional]
    unexpected = [spelled(key) for key in tensors if key not in expected]
    problems = [
        listed("missing", [spelled(key) for key in missing]),
        listed("unexpected", unexpected),
        listed("misshapen", list(_misshapen(tensors, expected, spelled))),
    ]
    found = "; ".join(problem for problem in problems if problem)
    if found:
        raise ArchitectureError(
            f"its tensors do not make up a CLIP model: {found}",
            remedy=remedy_for(unexpected=bool(unexpected)),
            path=path,
        )


def remedy_for(*, unexpected: bool) -> str:
    """Return the remedy for a state dict that is not that of a CLIP model."""
    if unexpected:
        return (
            "Weights that a CLIP model does not have make another model of it, which is not "
            "supported. If they are no part of the model, save the state dict without them."
        )
    return "Save the model's whole state dict, from the code that trained it."


def _misshapen(
    tensors: Mapping[str, HasShape], expected: Mapping[str, Spec], spelled: Callable[[str], str]
) -> Iterator[str]:
    for key, spec in expected.items():
        found = tuple(tensors[key].shape) if key in tensors else spec.shape
        # openai/CLIP#67: the released logit_scale has shape [], some training code makes it [1].
        if found != spec.shape and not (key == "logit_scale" and found == (1,)):
            yield f"{spelled(key)} {list(found)} instead of {list(spec.shape)}"


def listed(label: str, items: list[str], most: int = 5) -> str:
    """List the first items and the number of others, or return an empty string."""
    if not items:
        return ""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{label}{': ' if label else ''}{', '.join(items[:most])}{more}"
