"""Choose the format of an output from its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from clipcheck.checkpoints.checkpoint import FOLDER_FORMATS, Format
from clipcheck.errors import UsageError

_ZIP = (Format.ARCHIVE, Format.STATE_DICT)
"""Formats that torch writes with the same suffixes."""

_FORMATS: dict[str, tuple[Format, ...]] = {
    ".pt": _ZIP,
    ".pth": _ZIP[::-1],
    ".bin": (Format.STATE_DICT,),
    ".ckpt": (Format.STATE_DICT,),
    ".jit": (Format.ARCHIVE,),
    ".ts": (Format.ARCHIVE,),
    ".torchscript": (Format.ARCHIVE,),
    ".safetensors": (Format.SAFETENSORS,),
    ".pt2": (Format.PT2,),
    ".onnx": (Format.ONNX,),
}
"""Possible formats by suffix; the first is the default."""


def format_for(output: str, wanted: str | None, offered: Sequence[str]) -> Format:
    """Return the format to write.

    Args:
        output: the path as the user gave it: a slash at its end, or an existing folder, means a
            folder.
        wanted: ``--format``; None to use the suffix.
        offered: all formats that can be written.

    Raises:
        UsageError: the path tells no format, or another one than ``--format``.
    """
    if output.endswith(("/", os.sep)) or Path(output).is_dir():
        return _folder(output, wanted, [form for form in FOLDER_FORMATS if form in offered])
    meant = _FORMATS.get(Path(output).suffix.lower(), ())
    if wanted is None:
        return _meant(output, meant, offered)
    if meant and wanted not in meant:
        raise UsageError(
            f"{output}: its suffix means {' or '.join(meant)}, but --format is {wanted}",
            remedy=f"Leave out --format, or give {_named(wanted)}.",
        )
    return Format(wanted)


def _folder(output: str, wanted: str | None, offered: Sequence[Format]) -> Format:
    if not offered:
        raise UsageError(
            f"{output}: expected the name of a file, found a folder",
            remedy="Name the file in it, as in model.pt.",
        )
    if wanted is None and len(offered) == 1:
        return offered[0]
    if wanted is None:
        raise UsageError(
            f"{output}: expected the format of a folder, found none",
            remedy=f"Give --format {' or --format '.join(offered)}.",
        )
    if wanted not in offered:
        raise UsageError(
            f"{output}: expected the name of a file for the format {wanted}, found a folder",
            remedy=f"Give the file in it, as {_named(wanted)}.",
        )
    return Format(wanted)


def _meant(output: str, meant: Sequence[Format], offered: Sequence[str]) -> Format:
    if not meant:
        raise UsageError(
            f"{output}: expected a name that ends in one of {', '.join(_FORMATS)}, or in a slash "
            "for a folder, or --format",
            remedy=f"The formats are {', '.join(offered)}.",
        )
    if meant[0] not in offered:
        raise UsageError(
            f"{output}: expected one of the formats {', '.join(offered)}, found {meant[0]}",
            remedy=f"Write model.pt, and then: clipcheck convert model.pt -o {output}",
        )
    return meant[0]


def _named(wanted: str) -> str:
    """Describe possible names of a file or folder in this format."""
    if wanted in FOLDER_FORMATS:
        return "the name of a folder, without such a suffix"
    return " or ".join(f"model{suffix}" for suffix, forms in _FORMATS.items() if wanted in forms)
