"""A failing input as a folder that people can open: JSON, a PNG of each image, and a text."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from clipcheck.errors import OutputError, ReplayError
from clipcheck.gates.tolerances import LIMITS, Allclose
from clipcheck.inputs.examples import Example, Prompt, from_png, to_png
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

_ASK = "Give the folder that a failing check has saved, or the example.json in it."


@dataclass(frozen=True)
class Saved:
    """A failing input, read back.

    Attributes:
        example: the images and prompts.
        checkpoint: which failed on it, as it was asked for or where it was.
        sha256: of that file.
        device: where.
        dtype: in which.
        limits: of the gate ``allclose``.
        backend: which ran it, with its options.
        reference: the file that it was compared with; None for its own eager model.
        architecture: the dimensions of the weights; None where an older version has saved it.
        key: the name of the model in the file, where one was asked for.
        asked_architecture: what the user said that the checkpoint is of; None where they did not.
    """

    example: Example
    checkpoint: str
    sha256: str
    device: str
    dtype: str
    limits: Allclose
    backend: str = "jit"
    reference: str | None = None
    architecture: Mapping[str, int | str] | None = None
    key: str | None = None
    asked_architecture: str | None = None


def write(target: Path, example: Example, described: Mapping[str, Any], text: str) -> None:
    """Write the folder whole, or not at all. One that was saved there before is replaced.

    Args:
        target: the folder; the one that it is in is made where it is not there.
        example: what failed.
        described: all that goes into the JSON beside the example.
        text: for people.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"the failing input cannot be written ({error.strerror or error})",
            remedy="Give another folder, or make room or permission for this one.",
            path=target,
        ) from error
    with creating(target, ours=is_ours) as written:
        _write(written, example, described, text)


def is_ours(folder: Path) -> bool:
    """Whether all that is in a folder is what `write` wrote."""
    if folder.is_symlink() or not folder.is_dir() or not (folder / _NAME).is_file():
        return False
    names = {file.name for file in folder.iterdir()} - {_NAME, _TEXT}
    if not all(re.fullmatch(_PICTURE, name) for name in names):
        return False
    try:
        document = json.loads(_contents(folder / _NAME, _MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("kind") == _KIND


def remove(folder: Path) -> None:
    """Take away what `write` wrote, in one step; a folder with anything else in it stays.

    Raises:
        OutputError: it cannot be removed.
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
        "prompts": list(example.prompts),
    }
    contents = json.dumps(document, indent=2, allow_nan=False)
    (folder / _NAME).write_text(contents + "\n", encoding="utf-8")
    (folder / _TEXT).write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> Saved:
    """Read what `write` wrote. Nothing in it is run.

    Args:
        path: the folder, or the JSON file in it.

    Raises:
        ReplayError: it is no such folder, or it is damaged.
    """
    file = path / _NAME if path.is_dir() else path
    document = _document(file)
    try:
        return _saved(document, file.parent)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ReplayError(
            f"expected a failing input that clipcheck saved, but {reason}", remedy=_ASK, path=file
        ) from error


def _document(file: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(_contents(file, _MOST_BYTES))
    except OSError as error:
        raise ReplayError(
            f"expected a failing input that clipcheck saved, but it cannot be read "
            f"({error.strerror or error})",
            remedy=_ASK,
            path=file,
        ) from error
    except (ValueError, RecursionError) as error:
        raise ReplayError(
            f"expected a failing input that clipcheck saved, but it is no such JSON ({error})",
            remedy=_ASK,
            path=file,
        ) from error
    if not isinstance(document, dict) or document.get("kind") != _KIND:
        raise ReplayError(
            "expected a failing input that clipcheck saved, but this is something else",
            remedy=_ASK,
            path=file,
        )
    if document.get("schema") != SCHEMA:
        raise ReplayError(
            f"expected a failing input of schema {SCHEMA}, found "
            f"{reprlib.repr(document.get('schema'))}",
            remedy="Replay it with the version of clipcheck that saved it.",
            path=file,
        )
    return document


def _contents(file: Path, most: int) -> bytes:
    """The bytes of a file, and not of a device or a pipe, which may have no end.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file, or larger than ``most``.
    """
    if file.exists() and not file.is_file():
        raise ValueError(f"{file.name} is no file")
    with file.open("rb") as opened:
        data = opened.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{file.name} has more than {most:,} bytes")
    return data


def _saved(document: Mapping[str, Any], folder: Path) -> Saved:
    images = tuple(_image(name, folder) for name in _list(document, "images"))
    prompts = tuple(_prompt(prompt) for prompt in _list(document, "prompts"))
    if not images and not prompts:
        raise ValueError("it has neither an image nor a prompt")
    texts = {key: document[key] for key in ("checkpoint", "sha256", "device", "dtype")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise ValueError(f"{key} is no text")
    if texts["dtype"] not in LIMITS:
        raise ValueError(f"dtype is {reprlib.repr(texts['dtype'])}")
    limits = Allclose(_number(document, "atol"), _number(document, "rtol"))
    # Those that were saved before there were other backends have none of these.
    backend, reference = document.get("backend", "jit"), document.get("reference_checkpoint")
    model = document.get("key")
    if not isinstance(backend, str) or not isinstance(reference, str | None):
        raise ValueError("backend or reference_checkpoint is no text")
    asked = document.get("asked_architecture")
    if not isinstance(model, str | None) or not isinstance(asked, str | None):
        raise ValueError("key or asked_architecture is no text")
    return Saved(
        Example(images, prompts),
        **texts,
        limits=limits,
        backend=backend,
        reference=reference,
        architecture=_dimensions(document.get("architecture")),
        key=model,
        asked_architecture=asked,
    )


def _dimensions(value: Any) -> Mapping[str, int | str] | None:
    if value is not None and not (
        isinstance(value, dict) and all(type(each) in (int, str) for each in value.values())
    ):
        raise ValueError("architecture is no list of dimensions")
    return value


def _list(document: Mapping[str, Any], key: str) -> list[Any]:
    value = document[key]
    if not isinstance(value, list) or len(value) > _MOST_ROWS:
        raise ValueError(f"{key} is no list of at most {_MOST_ROWS}")
    return value


def _number(document: Mapping[str, Any], key: str) -> float:
    value = document[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise ValueError(f"{key} is no number of at least 0")
    return float(value)


def _image(name: Any, folder: Path) -> Image.Image:
    # A name and nothing else: it must not lead out of the folder.
    if not isinstance(name, str) or not re.fullmatch(_PICTURE, name):
        raise ValueError(f"a picture is named {reprlib.repr(name)}")
    try:
        return from_png(_contents(folder / name, _MOST_PICTURE_BYTES))
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror or error})") from error


def _prompt(prompt: Any) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not all(
        isinstance(i, int) and not isinstance(i, bool) and 0 <= i < _MOST_ID for i in prompt
    ):
        raise ValueError("a prompt is neither a text nor ids")
    if not 2 <= len(prompt) <= _MOST_TOKENS:
        raise ValueError(f"a prompt has {len(prompt)} ids")
    return tuple(prompt)
