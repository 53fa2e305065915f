"""The user's own images and prompts: listed at once, read and converted batch by batch."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from clipcheck.errors import UsageError, first_line
from clipcheck.inputs.batches import MOST_ROWS, Pixels, length_of
from clipcheck.inputs.examples import MOST_ASPECT, Preprocessing, describe_prompt

OwnKind = Literal["image", "prompt"]

IMAGES, PROMPTS = "--images", "--prompts"

MOST_CHARACTERS = 10_000
"""Most characters of a prompt. Any tokenizer truncates a text of this length."""

_NAMED = 5
"""Files that are no readable images, of which the names are kept."""


@dataclass(frozen=True)
class OwnRows:
    """A batch of the user's images or prompts, converted.

    Attributes:
        first: number of rows of this kind in earlier batches.
        names: a file relative to the folder, or a line's number and text; for each row.
        array: pixels, float32 [N, 3, R, R], or ids, int32 [N, L].
    """

    kind: OwnKind
    first: int
    names: tuple[str, ...]
    array: NDArray[Any]


@dataclass
class Skipped:
    """Files and prompts that did not run as they are.

    Attributes:
        files: number of files that cannot be read as images.
        named: the first of them, with the reasons.
        truncated: number of prompts that are longer than the model's context.
    """

    files: int = 0
    named: list[str] = field(default_factory=list)
    truncated: int = 0

    def add(self, name: str, reason: str) -> None:
        """Count a file, and keep the names of the first ones."""
        self.files += 1
        if len(self.named) < _NAMED:
            self.named.append(f"{name} ({reason})")


@dataclass(frozen=True)
class OwnData:
    """The user's images and prompts.

    Attributes:
        folder: of the images; None without images.
        files: in the folder and below, relative to it, sorted; hidden ones are left out. Files that
            are no images are among them.
        prompts: number of the line, and its text.
    """

    folder: Path | None = None
    files: Sequence[str] = ()
    prompts: Sequence[tuple[int, str]] = ()

    @classmethod
    def of(cls, images: str | None, prompts: str | None) -> OwnData:
        """List the files of a folder, and read a file with a prompt on each line.

        Raises:
            UsageError: see `list_images` and `read_prompts`.
        """
        return cls(
            None if images is None else Path(images),
            () if images is None else list_images(Path(images)),
            () if prompts is None else read_prompts(Path(prompts)),
        )

    def __bool__(self) -> bool:
        """Return whether there is any."""
        return bool(self.files or self.prompts)

    def count(self, kind: OwnKind) -> int:
        """Return the number of files, or of prompts."""
        return len(self.files if kind == "image" else self.prompts)

    def rows(
        self, kind: OwnKind, preprocessing: Preprocessing, skipped: Skipped
    ) -> Iterator[OwnRows]:
        """Yield all rows of a kind in batches of at most `MOST_ROWS`, read when they are asked for.

        Args:
            preprocessing: converts them.
            skipped: what cannot be read or is cut is added there.

        Raises:
            UsageError: a prompt cannot be tokenized, because no tokenizer is at hand.
        """
        read = self._pixels if kind == "image" else self._tokens
        names: list[str] = []
        arrays: list[NDArray[Any]] = []
        first = 0
        for name, array in read(preprocessing, skipped):
            names.append(name)
            arrays.append(array)
            if len(names) == MOST_ROWS:
                yield OwnRows(kind, first, tuple(names), np.stack(arrays))
                first += len(names)
                names, arrays = [], []
        if names:
            yield OwnRows(kind, first, tuple(names), np.stack(arrays))

    def _pixels(
        self, preprocessing: Preprocessing, skipped: Skipped
    ) -> Iterator[tuple[str, Pixels]]:
        for name in self.files:
            try:
                yield name, read_pixels(Path(self.folder or "") / name, preprocessing)
            except ValueError as error:
                skipped.add(name, str(error))

    def _tokens(
        self, preprocessing: Preprocessing, skipped: Skipped
    ) -> Iterator[tuple[str, NDArray[np.int32]]]:
        tokenizer, length = preprocessing.texts.tokenizer, preprocessing.context_length
        if self.prompts and tokenizer is None:
            raise UsageError(
                f"{PROMPTS}: expected a model with a tokenizer at hand, found one whose ids are "
                "drawn at random",
                remedy=f"Put its tokenizer.json into its folder, or leave {PROMPTS} out.",
            )
        for line, text in self.prompts:
            tokens = preprocessing.tokens(text)
            if tokenizer is not None and length_of(preprocessing.texts, tokens) == length:
                longer = tokenizer.row(text, length + 1)
                skipped.truncated += length_of(preprocessing.texts, longer) > length
            yield f"line {line}, {describe_prompt(text)}", tokens

    def stamp(self) -> str:
        """Return a digest of the prompts, and of the names, sizes and times of all files: it
        changes when one of them does. Empty without any."""
        if not self:
            return ""
        hashed = hashlib.blake2b(repr(self.prompts).encode(), digest_size=16)
        for name in self.files:
            found = (Path(self.folder or "") / name).stat()
            hashed.update(f"{name} {found.st_size} {found.st_mtime_ns}\n".encode())
        return hashed.hexdigest()


def list_images(folder: Path) -> list[str]:
    """List the files in a folder and below, relative to it, in a fixed order, without hidden ones.

    Raises:
        UsageError: it is no folder, cannot be read, or has no files.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing"
        raise UsageError(
            f"{IMAGES}: expected a folder of images, found {what}",
            remedy="Give the folder that the images are in.",
            path=folder,
        )
    found: list[str] = []

    def refuse(error: OSError) -> None:
        raise UsageError(
            f"{IMAGES}: expected a folder that can be read, found one that cannot "
            f"({error.strerror or error})",
            remedy="Change its permissions, or give another folder.",
            path=error.filename or folder,
        ) from error

    for path, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(path, folder)
        found += [
            os.path.normpath(os.path.join(inside, name))  # noqa: PTH118 - strings, of many files
            for name in sorted(files)
            if not name.startswith(".")
        ]
    if not found:
        raise UsageError(
            f"{IMAGES}: expected images in this folder or below, found no files",
            remedy="Give the folder that the images are in.",
            path=folder,
        )
    return found


def read_pixels(path: Path, preprocessing: Preprocessing) -> Pixels:
    """Read an image and preprocess it, float32 [3, R, R].

    As in the reference implementation, the orientation in EXIF data is not applied.

    Raises:
        ValueError: it cannot be read; the message is the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of many pixels and of damaged EXIF data
            with Image.open(path) as image:
                short, long = sorted(image.size)
                if long > MOST_ASPECT * short:
                    raise ValueError(f"one side is more than {MOST_ASPECT} times the other")
                return preprocessing.pixels(image)
    except UnidentifiedImageError as error:
        raise ValueError("no image") from error
    # Pillow raises nearly any exception on a damaged file.
    except Exception as error:
        raise ValueError(first_line(error)) from error


def read_prompts(path: Path) -> list[tuple[int, str]]:
    """Return the number and text of each line that is not blank.

    Raises:
        UsageError: it cannot be read, is not in UTF-8, has only blank lines, or a line of more than
            `MOST_CHARACTERS`.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        problem, remedy = f"found none that can be read ({error.strerror or error})", "Give a file."
        raise _refused(problem, remedy, path) from error
    except UnicodeDecodeError as error:
        problem = f"found a file that is not in UTF-8, at byte {error.start}"
        raise _refused(problem, "Save it in UTF-8.", path) from error
    # Only line feeds: `splitlines` would cut at characters that a prompt may have.
    lines = ((number, line.strip("\r")) for number, line in enumerate(text.split("\n"), 1))
    found = [(number, line) for number, line in lines if line.strip()]
    if not found:
        raise _refused("found no text", "Write a prompt on each line.", path)
    for number, line in found:
        if len(line) > MOST_CHARACTERS:
            problem = f"found {len(line):,} characters on line {number}, more than any model takes"
            raise _refused(problem, f"Write at most {MOST_CHARACTERS:,} on a line.", path)
    return found


def _refused(problem: str, remedy: str, path: Path) -> UsageError:
    expected = f"{PROMPTS}: expected a text file with a prompt on each line, {problem}"
    return UsageError(expected, remedy=remedy, path=path)
