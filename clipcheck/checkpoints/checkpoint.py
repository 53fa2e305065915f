"""A checkpoint: a file with weights, of a known format and architecture."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.checkpoints.architecture import Architecture, listed, specs
from clipcheck.checkpoints.finding import Origin
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.checkpoints.naming import Naming
from clipcheck.checkpoints.records import MappedFile, Records
from clipcheck.checkpoints.training import Entry
from clipcheck.errors import DamagedError, NotFiniteError

if TYPE_CHECKING:
    import torch


class Format(StrEnum):
    """How a checkpoint's file is laid out."""

    ARCHIVE = "archive"
    """A TorchScript archive: code and weights, as `torch.jit.save` writes it."""

    STATE_DICT = "state-dict"
    """A dict of tensors, as `torch.save` writes it."""

    SAFETENSORS = "safetensors"
    """Tensors and nothing else, as `safetensors` writes it."""

    PT2 = "pt2"
    """A program of torch: exported, as `torch.export.save` writes it, or compiled ahead of time."""

    ONNX = "onnx"
    """A program of ONNX, in one file, with or without its weights beside it."""

    TRANSFORMERS = "transformers"
    """A folder: ``config.json`` and weights, as transformers' ``save_pretrained`` writes it."""

    OPEN_CLIP = "open_clip"
    """A folder: ``open_clip_config.json`` and weights, as open_clip has it on the hub."""


PROGRAM_FORMATS = (Format.PT2, Format.ONNX)
"""Those that compute by themselves, see `Program`."""

FOLDER_FORMATS = (Format.TRANSFORMERS, Format.OPEN_CLIP)
"""Those of a library's folder."""

FILE_FORMATS = (Format.ARCHIVE, Format.STATE_DICT, Format.SAFETENSORS)
"""Those that are a single file."""


Stamp = tuple[int, int, int] | None


def stamp_of(file: Path) -> Stamp:
    """Number on the disk, size and time of change of a file, one of which is another once it is
    written to; None where it is not there."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class Program:
    """A file that computes, and whose weights cannot be read by their keys; or two of them, one for
    each tower.

    Attributes:
        path: the file; of two the folder, or both as they were named.
        format: ``pt2`` or ``onnx``; ``archive`` of one that is frozen, or of one tower.
        data: the files that it names for its weights, in its folder or below.
        towers: the program of images and that of texts, where they are two.
        stamps: of each file, see `stamp_of`, as it was when the program was opened.
    """

    path: Path
    format: Format
    data: tuple[Path, ...] = ()
    towers: tuple[Program, ...] = ()
    stamps: tuple[Stamp, ...] = ()

    @property
    def parts(self) -> tuple[Program, ...]:
        """The programs that it is made of: itself, or that of each tower."""
        return self.towers or (self,)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the program is made of, itself first."""
        files = (file for part in self.parts for file in (part.path, *part.data))
        return tuple(dict.fromkeys(files))

    @property
    def names(self) -> list[str]:
        """Paths of all `files` from the folder on that all are in."""
        files = [file.absolute() for file in self.files]
        folder = os.path.commonpath([file.parent for file in files])
        return [file.relative_to(folder).as_posix() for file in files]

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal; of several files, see `sha256_of_all`."""
        return sha256_of_all(dict(zip(self.names, self.files, strict=True)))

    @property
    def size(self) -> int:
        """Bytes of all `files`."""
        return bytes_of(self.files)

    def require_unchanged(self) -> None:
        """See that no file was written to since the program was opened.

        Raises:
            DamagedError: one was: what was hashed need not be what was run.
        """
        for part in self.parts:
            for file, stamp in zip((part.path, *part.data), part.stamps, strict=True):
                if stamp_of(file) != stamp:
                    raise DamagedError(
                        f"{file.name} changed while it was read, so that nothing can be said of it",
                        remedy="Judge it once nobody writes to it.",
                        path=part.path,
                    )


@dataclass(frozen=True)
class Checkpoint:
    """A file with the weights of a CLIP model.

    Attributes:
        path: the file, or the folder.
        format: how it is laid out.
        model: what it is a model of: the dimensions, and how it computes with them; or a library's
            configuration.
        tensors: the weights by the keys of the released state dicts, or of the library's, mapped
            from the file and of the dtypes that they have there. Not to be written to.
        records: the zip records, where the file has them.
        files: of a folder, those that make up the model, sorted by name: the configuration and
            the weights; no tokenizer.
        parts: the zip records of those of a folder's files that have them.
        record: the strings and numbers that training code saved beside the weights, such as
            open_clip's ``name``; empty where there are none.
        origin: where in the file the model was found.
        naming: how an archive names its weights and modules.
        told: what told how the model computes, for people. Nothing where it was assumed to compute
            as the released models do: weights do not tell.
        untold: what is there and does not tell, for people.
        asked: where the user told it, as ``--architecture``.
    """

    path: Path
    format: Format
    model: Architecture | LibraryArchitecture
    tensors: Mapping[str, torch.Tensor]
    records: Records | None = None
    files: tuple[Path, ...] = ()
    parts: tuple[Records, ...] = ()
    record: Mapping[str, Entry] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    naming: Naming = field(default_factory=Naming)
    told: str = ""
    untold: str = ""
    asked: str = ""

    @property
    def architecture(self) -> Architecture:
        """The model's dimensions, where clipcheck's own modules compute it.

        Raises:
            UnfitError: a library's do.
        """
        if isinstance(self.model, LibraryArchitecture):
            raise self.model.unfit(self.path)
        return self.model

    @cached_property
    def buffers(self) -> frozenset[str]:
        """The keys of integers that nothing is computed with, as ``input_resolution``."""
        if isinstance(self.model, LibraryArchitecture):
            return frozenset()
        return frozenset(key for key, spec in specs(self.model) if spec.kind == "buffer")

    @property
    def parameters(self) -> int:
        """Number of trainable weights; of a library's model, of all floating-point numbers."""
        if isinstance(self.model, LibraryArchitecture):
            return sum(t.numel() for t in self.tensors.values() if t.dtype.is_floating_point)
        return self.model.parameters

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal; of a folder that of its `files`, see
        `sha256_of_all`."""
        if not self.files:
            return sha256_of(self.path)
        return sha256_of_all({each.relative_to(self.path).as_posix(): each for each in self.files})

    @property
    def size(self) -> int:
        """Bytes of the file, or of a folder's `files`."""
        return bytes_of(self.files or (self.path,))

    @property
    def dtypes(self) -> list[str]:
        """Names of the dtypes of the floating-point weights, sorted."""
        found = {t.dtype for t in self.tensors.values() if t.dtype.is_floating_point}
        return sorted(str(dtype).removeprefix("torch.") for dtype in found)

    @property
    def compute_dtype(self) -> str:
        """Name of the dtype of the image tower's first weights, which the model computes in; of the
        text tower's where that is alone."""
        weights = {k: t for k, t in self.tensors.items() if k.endswith(".weight") and t.ndim > 1}
        images = [key for key in weights if key.startswith(("visual.", "vision_model."))]
        found = (weights[key].dtype for key in images or weights)
        return str(next(found)).removeprefix("torch.")

    @property
    def weight_dtypes(self) -> list[str]:
        """Names of the dtypes of the weights that released files have in half, sorted; of a
        library's model, of all weights."""
        if isinstance(self.model, LibraryArchitecture):
            return self.dtypes
        half = (k for k, spec in specs(self.model) if spec.released_dtype == "float16")
        return sorted({str(self.tensors[key].dtype).removeprefix("torch.") for key in half})

    def verify(self) -> None:
        """Compare the checksums of all records, and see that all weights are finite.

        Raises:
            DamagedError: a record was altered.
            NotFiniteError: a weight is NaN or infinite; the message names the keys.
        """
        for records in self.parts if self.records is None else (self.records,):
            records.verify()
        bad = [key for key in self.tensors if not self._is_finite(key)]
        if bad:
            raise NotFiniteError(
                f"NaN or infinite weights in {listed('', bad)}",
                remedy="Take a checkpoint from before the training diverged, or one that did not "
                "overflow when it was cast to half precision.",
                path=self.path,
            )

    def _is_finite(self, key: str) -> bool:
        tensor = self.tensors[key]
        # Its ends, of which NaN makes NaN: asking each number takes twenty times as long.
        ends = tensor.aminmax() if tensor.numel() else ()
        self.give_back(key)
        return all(bool(end.isfinite()) for end in ends)

    def prefetch(self, key: str) -> None:
        """Have all of a mapped weight in memory at once, in place of page by page."""
        file, start, size = self._pages(key)
        if file is not None:
            file.prefetch(start, size)

    def give_back(self, key: str) -> None:
        """Let go of the memory that reading a mapped weight took; it can be read again."""
        file, start, size = self._pages(key)
        if file is not None:
            file.give_back(start, size)

    def _pages(self, key: str) -> tuple[MappedFile | None, int, int]:
        tensor = self.tensors.get(key)
        if tensor is None or self.records is None or self.format is not Format.ARCHIVE:
            return None, 0, 0
        file = self.records.file
        start = file.offset_of(tensor.data_ptr())
        # A weight that was put in the place of the file's, as one of another dtype, lies elsewhere.
        mapped = 0 <= start <= len(file) - tensor.nbytes
        return (file, start, tensor.nbytes) if mapped else (None, 0, 0)


def sha256_of(path: Path) -> str:
    """SHA-256 of the bytes of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_all(files: Mapping[str, Path]) -> str:
    """One SHA-256 for all files that a subject is made of, in hexadecimal.

    Of several files it is that of a list: what ``sha256sum FILES | sha256sum`` prints in their
    folder, with the names sorted.

    Args:
        files: at least one, by their names from that folder on.
    """
    if len(files) == 1:
        return sha256_of(next(iter(files.values())))
    lines = "".join(f"{sha256_of(files[name])}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def bytes_of(files: Sequence[Path]) -> int:
    """Bytes of all these files."""
    return sum(file.stat().st_size for file in files)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits: NaN equals itself, 0 is not -0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    # As wide as they go: comparing takes a third of the time that it takes by two bytes.
    wide = one.nbytes % 8 == 0 and one.is_contiguous() and other.is_contiguous()
    return bool(_bits(one, wide).equal(_bits(other, wide)))


def _bits(tensor: torch.Tensor, wide: bool) -> torch.Tensor:
    import torch

    if not tensor.dtype.is_floating_point:
        return tensor
    if wide:
        return tensor.view(-1).view(torch.int64)
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])
