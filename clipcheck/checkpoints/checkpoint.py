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

from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.dimensions import listed
from clipcheck.checkpoints.finding import Origin
from clipcheck.checkpoints.keys import count_parameters, specs
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.checkpoints.naming import Naming
from clipcheck.checkpoints.records import MappedFile, Records
from clipcheck.checkpoints.training import Entry
from clipcheck.errors import DamagedError, NotFiniteError

if TYPE_CHECKING:
    import torch


class Format(StrEnum):
    """Format of a checkpoint's file."""

    ARCHIVE = "archive"
    """A TorchScript archive: code and weights, written by `torch.jit.save`."""

    STATE_DICT = "state-dict"
    """A dict of tensors, written by `torch.save`."""

    SAFETENSORS = "safetensors"
    """Only tensors, written by `safetensors`."""

    PT2 = "pt2"
    """A program of torch: exported by `torch.export.save`, or compiled ahead of time."""

    ONNX = "onnx"
    """A program of ONNX, with its weights in the file or in data files."""

    OPENVINO = "openvino"
    """A program of OpenVINO: a file ``.xml``, and a file ``.bin`` of the same name with its
    weights."""

    EXECUTORCH = "executorch"
    """A program of ExecuTorch, ``.pte``."""

    TRANSFORMERS = "transformers"
    """A folder with ``config.json`` and weights, written by transformers' ``save_pretrained``."""

    OPEN_CLIP = "open_clip"
    """A folder with ``open_clip_config.json`` and weights, like open_clip's on the hub."""


PROGRAM_FORMATS = (Format.PT2, Format.ONNX, Format.OPENVINO, Format.EXECUTORCH)
"""Formats of programs, see `Program`."""

FOLDER_FORMATS = (Format.TRANSFORMERS, Format.OPEN_CLIP)
"""Formats of folders."""


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
    """A program in a file, whose weights cannot be read by their keys, or in a file for each tower.

    Attributes:
        path: the file; of two files the folder, or both as the user named them.
        format: of `PROGRAM_FORMATS`; ``archive`` if it is frozen or of one tower.
        data: its data files with weights, in its folder or below.
        towers: the programs of images and of texts, if there are two.
        stamps: of each file, see `stamp_of`, when the program was opened.
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
        """All files of the program, itself first."""
        files = (file for part in self.parts for file in (part.path, *part.data))
        return tuple(dict.fromkeys(files))

    @property
    def names(self) -> list[str]:
        """Paths of all `files`, relative to their common folder."""
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


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file with the weights of a CLIP model.

    Attributes:
        path: the file, or the folder.
        format: of the file or folder.
        model: architecture, or a library's configuration.
        tensors: the weights by the keys of the released state dicts, or of the library's, mapped
            from the file and of the dtypes that they have there. Not to be written to.
        records: its zip records, if it is a zip file.
        files: of a folder, the configuration and weights, sorted by name, without tokenizer.
        parts: zip records of a folder's files.
        record: strings and numbers that training code saved beside the weights, such as
            open_clip's ``name``.
        origin: place of the model in the file.
        naming: an archive's names of weights and modules.
        told: source of activation, heads and epsilon, as a phrase; empty if those of the released
            models were assumed.
        untold: why a configuration that exists does not tell these, as a phrase.
        asked: ``--architecture``, or None.
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
        """The model's architecture.

        Raises:
            UnfitError: it is a library's own model.
        """
        if isinstance(self.model, LibraryArchitecture):
            raise self.model.unfit(self.path)
        return self.model

    @cached_property
    def buffers(self) -> frozenset[str]:
        """Keys of integers without effect, such as ``input_resolution``."""
        if isinstance(self.model, LibraryArchitecture):
            return frozenset()
        return frozenset(key for key, spec in specs(self.model) if spec.kind == "buffer")

    @property
    def parameters(self) -> int:
        """Number of trainable weights; for a library's model, of all floating-point numbers."""
        if isinstance(self.model, LibraryArchitecture):
            return sum(t.numel() for t in self.tensors.values() if t.dtype.is_floating_point)
        return count_parameters(self.model)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal; of a folder, see `sha256_of_all`."""
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
        """Name of the dtype of the image tower's first weights, in which the model
        computes; without image tower, of the text tower's."""
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
        """Compare the checksums of all records, and require finite weights.

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
        # Minimum and maximum, which are NaN if any value is; testing each takes 20 times as long.
        ends = tensor.aminmax() if tensor.numel() else ()
        self.give_back(key)
        return all(bool(end.isfinite()) for end in ends)

    def prefetch(self, key: str) -> None:
        """Read a mapped weight into memory at once, in place of page by page."""
        file, start, size = self._pages(key)
        if file is not None:
            file.prefetch(start, size)

    def give_back(self, key: str) -> None:
        """Free the memory of a mapped weight; it can be read again."""
        file, start, size = self._pages(key)
        if file is not None:
            file.give_back(start, size)

    def _pages(self, key: str) -> tuple[MappedFile | None, int, int]:
        tensor = self.tensors.get(key)
        if tensor is None or self.records is None or self.format is not Format.ARCHIVE:
            return None, 0, 0
        file = self.records.file
        start = file.offset_of(tensor.data_ptr())
        # A weight that replaced the file's, such as one of another dtype, is not in the map.
        mapped = 0 <= start <= len(file) - tensor.nbytes
        return (file, start, tensor.nbytes) if mapped else (None, 0, 0)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_all(files: Mapping[str, Path]) -> str:
    """Return one SHA-256 for all files of a subject, in hexadecimal.

    For several files it is the SHA-256 of a list, as printed by ``sha256sum FILES | sha256sum`` in
    their folder, with sorted names.

    Args:
        files: at least one, by name relative to their common folder.
    """
    if len(files) == 1:
        return sha256_of(next(iter(files.values())))
    lines = "".join(f"{sha256_of(files[name])}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def bytes_of(files: Sequence[Path]) -> int:
    """Return the total size of the files in bytes."""
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
