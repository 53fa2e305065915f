"""Numbers of rows that a program runs with, in words."""

from __future__ import annotations

from collections.abc import Sequence

from clipcheck.system.figures import counted

REMEDY = (
    "For any number, export it with dynamic axes (dynamic_axes or dynamic_shapes of "
    "torch.onnx.export, dynamic_shapes of torch.export.export); in a trace, take sizes from "
    "tensors (x.shape[0])."
)


def told(batches: Sequence[Sequence[int | None]]) -> str:
    """Say which numbers of images and texts a program runs with; nothing for any."""
    if not batches:
        return ""
    if len(batches) == 1:
        return f"runs batches of {_written(batches[0])} only"
    listed = ", ".join(_written(each) for each in batches)
    return f"does not run any number of images and texts; of those that were tried it runs {listed}"


def _written(batch: Sequence[int | None]) -> str:
    numbers = zip(batch, ("image", "text"), strict=True)
    return " and ".join(counted(each, what) for each, what in numbers if each is not None)
