"""Save a failing input as a folder with JSON, a PNG of each image, and a text, and read it."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from clipcheck.errors import OutputError, ReplayError
from clipcheck.gates.tolerances import LIMITS, Allclose
from clipcheck.inputs.examples import Example, Prompt, from_png, to_png
from clipcheck.results.document import convert_to, parse_json, to_json
from clipcheck.results.judgement import Conditions, Subject
from clipcheck.writers.output import creating, removing

SCHEMA = 1

_NAME = "example.json"
_TEXT = "report.txt"
_PICTURE = r"image-\d{1,3}\.png"
_KIND = "clipcheck failing input"
_MOST_BYTES = 1 << 20
_MOST_PICTURE_BYTES = 64 << 20
_MOST_ROWS = 64
_MOST_TOKENS = 1 << 12
_MOST_ID = 1 << 31

_ASK = "Give the folder that a failing check saved, or the example.json in it."


@dataclass(frozen=True, kw_only=True)
class _Written(Conditions, Subject):
    """The JSON of a failing input, and of the run that failed on it.

    Attributes:
        prompts: texts, or the ids of one.
    """

    sha256: str = field()
    dtype: str = field()
    limits: Allclose = field()
    images: tuple[str, ...]
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, kw_only=True)
class Saved(_Written):
    """A failing input, read back."""

    example: Example


def write(target: Path, example: Example, described: Mapping[str, Any], text: str) -> None:
    """Write the folder atomically. One that was saved there before is replaced.

    Args:
        target: the folder; its parents are created.
        described: further fields of the JSON.
        text: of the report.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the failing input cannot be written ({error.strerror or error})",
            remedy="Give another folder, or free disk space or change permissions for this one.",
            path=target,
        ) from error
    with creating(target, ours=is_ours) as written:
        _write(written, example, described, text)


def is_ours(folder: Path) -> bool:
    """Tell whether a folder has only files that `write` wrote."""
    if folder.is_symlink() or not folder.is_dir() or not (folder / _NAME).is_file():
        return False
    names = {file.name for file in folder.iterdir()} - {_NAME, _TEXT}
    if not all(re.fullmatch(_PICTURE, name) for name in names):
        return False
    try:
        document = parse_json(_contents(folder / _NAME, _MOST_BYTES))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("kind") == _KIND


def remove(folder: Path) -> None:
    """Delete a folder that `write` wrote, in one step; leave it if it has other files.

    Raises:
        OutputError: it cannot be deleted.
    """
    if is_ours(folder):
        removing(folder)


def _write(folder: Path, example: Example, described: Mapping[str, Any], text: str) -> None:
    names = [f"image-{number}.png" for number in range(1, len(example.images) + 1)]
    for name, image in zip(names, example.images, strict=True):
        (folder / name).write_bytes(to_png(image))
    document = {
        "schema": SCHEMA,
        "kind": _KIND,
        **described,
        "images": names,
        "prompts": example.prompts,
    }
    (folder / _NAME).write_text(to_json(document), encoding="utf-8")
    (folder / _TEXT).write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> Saved:
    """Read a folder that `write` wrote, without running anything in it.

    Args:
        path: the folder, or the JSON file in it.

    Raises:
        ReplayError: it is no such folder, or it is damaged.
    """
    file = path / _NAME if path.is_dir() else path
    try:
        return _saved(parse_json(_contents(file, _MOST_BYTES)), file.parent)
    except (OSError, ValueError) as error:
        reason = str(error)
        if isinstance(error, OSError):
            reason = f"it cannot be read ({error.strerror or error})"
        raise ReplayError(
            f"expected a failing input that clipcheck saved, but {reason}", remedy=_ASK, path=file
        ) from error


def _contents(file: Path, most: int) -> bytes:
    """Return the bytes of a regular file: a device or a pipe may have no end.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or larger than ``most``.
    """
    if file.exists() and not file.is_file():
        raise ValueError(f"{file.name} is no file")
    with file.open("rb") as opened:
        data = opened.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{file.name} has more than {most:,} bytes")
    return data


def _saved(document: Any, folder: Path) -> Saved:
    if not isinstance(document, dict) or document.get("kind") != _KIND:
        raise ValueError("this file is not one")
    schema = document.get("schema")
    if schema != SCHEMA:
        told = reprlib.repr(schema)
        raise ValueError(f"it has schema {told}; this clipcheck reads schema {SCHEMA}")
    for name in ("sha256", "dtype"):  # optional in other results
        if name not in document:
            raise ValueError(f"the field {name} is missing")
    written = convert_to(document, _Written)
    if not written.images and not written.prompts:
        raise ValueError("it has neither an image nor a prompt")
    if max(len(written.images), len(written.prompts)) > _MOST_ROWS:
        raise ValueError(f"it has more than {_MOST_ROWS} images or prompts")
    if written.dtype not in LIMITS:
        raise ValueError(f"dtype is {reprlib.repr(written.dtype)}")
    for name, value in asdict(written.limits).items():
        if not 0 <= value < 1e9:
            raise ValueError(f"{name} is no number of at least 0")
    for prompt in written.prompts:
        _require_ids(prompt)
    images = tuple(_image(name, folder) for name in written.images)
    return Saved(**vars(written), example=Example(images, written.prompts))


def _image(name: str, folder: Path) -> Image.Image:
    # Only a file's name: a path could lead out of the folder.
    if not re.fullmatch(_PICTURE, name):
        raise ValueError(f"a picture is named {reprlib.repr(name)}")
    try:
        return from_png(_contents(folder / name, _MOST_PICTURE_BYTES))
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror or error})") from error


def _require_ids(prompt: Prompt) -> None:
    if isinstance(prompt, str):
        return
    if not 2 <= len(prompt) <= _MOST_TOKENS:
        raise ValueError(f"a prompt has {len(prompt)} ids")
    if not all(0 <= each < _MOST_ID for each in prompt):
        raise ValueError("a prompt has numbers that are no ids")
