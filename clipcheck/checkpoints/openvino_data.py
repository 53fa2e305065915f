"""Recognise a program of OpenVINO without OpenVINO, and find the file of its weights."""

from __future__ import annotations

from pathlib import Path

from clipcheck.errors import CheckpointError

_HEAD = 4096
"""Bytes in which the first element of a program begins."""


def is_openvino(path: Path) -> bool:
    """Tell whether a file is a program of OpenVINO: XML with the element ``net``.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    return head.startswith((b"<?xml", b"<net ")) and b"<net " in head


def weights_of(path: Path) -> Path:
    """Return the file of a program's weights.

    Raises:
        CheckpointError: it is missing.
    """
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise CheckpointError(
            f"expected its weights beside it, in {weights.name}, found no such file",
            remedy="Copy both files that OpenVINO wrote, the .xml and the .bin.",
            path=path,
        )
    return weights
