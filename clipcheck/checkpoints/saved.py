"""Read what a file of weights saves, in torch's two formats and safetensors.

Tensors are mapped, not copied. No code of the file runs: pickles go through restricted unpicklers,
and safetensors has no code.
"""

from __future__ import annotations

import dataclasses
import functools
import mmap
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcheck.checkpoints import directories
from clipcheck.checkpoints.artefacts import kind_of
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.records import ZIP_MAGIC, MappedFile, Records
from clipcheck.checkpoints.state_dicts import LEGACY_MAGIC, LegacyFile, read_pickle
from clipcheck.checkpoints.told import EXTRA, METADATA, MOST_RECORD
from clipcheck.checkpoints.unpickle import META, TensorRecord, read_tensors
from clipcheck.errors import DamagedError, UnknownFormatError, first_line

if TYPE_CHECKING:
    import torch


WEIGHTS = "a TorchScript archive, a state dict saved by torch.save, or a safetensors file"
"""Description of all files with named weights."""

_MOST_HEADER = 16 << 20
"""Most bytes of a safetensors file's header. A weight needs about 100."""


def is_archive(records: Records) -> bool:
    """Tell whether a zip file is a TorchScript archive."""
    return "constants.pkl" in records or bool(records.names("code/"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saved:
    """The contents of a file.

    Attributes:
        format: of the file.
        saved: content; except for a state dict, tensors by name.
        kind: class of its tensors.
        load: function that turns these into torch's tensors.
        records: its zip records, if it is a zip file.
        computes: clipcheck's own record of the architecture, or None.
    """

    format: Format
    saved: object
    kind: type[Any]
    load: Callable[[Any], torch.Tensor]
    records: Records | None = None
    computes: str | None = None

    def keys(self) -> list[str]:
        """Names at the top level."""
        found = self.saved if isinstance(self.saved, Mapping) else {}
        return [key for key in found if isinstance(key, str)]


def merged(files: list[Saved]) -> Saved:
    """Combine the tensors of all files as one file."""
    if len(files) == 1:
        return files[0]
    import torch

    tensors = {
        key: file.load(value)
        for file in files
        if isinstance(file.saved, Mapping)
        for key, value in file.saved.items()
        if isinstance(value, file.kind)
    }
    return Saved(format=files[0].format, saved=tensors, kind=torch.Tensor, load=_as_it_is)


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def read(path: Path, accepted: str = WEIGHTS) -> Saved:
    """Return what a file saves.

    Args:
        accepted: description of the formats, for the message about another one.

    Raises:
        UnknownFormatError: it is none of them.
        DamagedError: it is cut off or changed.
    """
    import torch

    head = first_bytes(path, accepted)
    program = kind_of(path)
    if program is not None:
        raise UnknownFormatError(
            f"expected {WEIGHTS}; found a program ({program})",
            remedy="Give the checkpoint that it was made from.",
            path=path,
        )
    if head.startswith(ZIP_MAGIC):
        return _read_zip(path)
    if head.startswith(LEGACY_MAGIC):
        file = LegacyFile(path)
        load = functools.partial(_load_legacy, file)
        return Saved(format=Format.STATE_DICT, saved=file.saved, kind=TensorRecord, load=load)
    if _looks_like_safetensors(head, path.stat().st_size):
        tensors, computes = _load_safetensors(path, head)
        return Saved(
            format=Format.SAFETENSORS,
            saved=tensors,
            kind=torch.Tensor,
            load=_as_it_is,
            computes=computes,
        )
    found, remedy = _describe(head)
    raise UnknownFormatError(f"expected {accepted}; found {found}", remedy=remedy, path=path)


def mode(path: Path) -> int:
    """Return the file mode of the path, as `stat` has it."""
    try:
        return path.stat().st_mode
    except OSError as error:
        raise directories.unreadable(path, error) from error


def first_bytes(path: Path, accepted: str = WEIGHTS) -> bytes:
    """Return the first bytes of a regular file, which show its format."""
    if not stat.S_ISREG(mode(path)):
        # Opening a pipe would block.
        raise UnknownFormatError(
            f"expected {accepted}; found a device",
            remedy="Give the path of the file itself.",
            path=path,
        )
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise directories.unreadable(path, error) from error
    if not head:
        raise UnknownFormatError(
            f"expected {accepted}; the file is empty",
            remedy="Copy or download the file again, or write it anew.",
            path=path,
        )
    return head


def _describe(head: bytes) -> tuple[str, str]:
    """Describe a file that is no checkpoint, and return the remedy."""
    if head.startswith(b"version https://git-lfs"):
        return (
            "a Git LFS pointer, which stands for a file that was not fetched",
            "Fetch the file: git lfs pull.",
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return (
            "an HTML page, as servers send in place of a file that they do not give out",
            "Download the file again; the page tells what the server asks for, as a login.",
        )
    remedy = "Give the path of a checkpoint."
    if all(32 <= byte < 127 or byte in b"\t\n\r" for byte in head):
        return f"text that begins with {head[:24].decode('ascii')!r}", remedy
    return f"bytes that begin with {head[:8].hex(' ')}", remedy


def _read_zip(path: Path) -> Saved:
    import torch

    records = Records(MappedFile(path))
    # Compare the checksums of code, pickles and constants now: they are small, and determine how
    # the rest is read and run. torch compares none. `Checkpoint.verify` compares the weights'.
    records.verify(name for name in records.names() if not name.startswith("data/"))
    if is_archive(records):
        tensors = map_tensors(records, read_tensors(records))
        computes = None
        if EXTRA in records and records[EXTRA].size <= MOST_RECORD:
            computes = records.read(EXTRA).decode(errors="replace")
        return Saved(
            format=Format.ARCHIVE,
            saved=tensors,
            kind=torch.Tensor,
            load=_as_it_is,
            records=records,
            computes=computes,
        )
    saved = read_pickle(records.read("data.pkl"), path)
    _require_little_endian(records)
    load = functools.partial(_map_tensor, records)
    return Saved(
        format=Format.STATE_DICT, saved=saved, kind=TensorRecord, load=load, records=records
    )


def map_tensors(records: Records, found: Mapping[str, TensorRecord]) -> dict[str, torch.Tensor]:
    """Return tensors over the memory map of the file; they are loaded on first access.

    Raises:
        DamagedError: a record is shorter than its tensor needs.
    """
    _require_little_endian(records)
    return {key: _map_tensor(records, tensor) for key, tensor in found.items()}


def _require_little_endian(records: Records) -> None:
    if "byteorder" in records and records.read("byteorder") != b"little":
        raise DamagedError(
            "its weights are big-endian, or its byte order was altered",
            remedy="Write the file again on a little-endian machine.",
            path=records.file.path,
        )


def _map_tensor(records: Records, tensor: TensorRecord) -> torch.Tensor:
    if tensor.storage.location == META:
        return _without_values(tensor)
    record = records[f"data/{tensor.storage.key}"]
    if record.size < tensor.storage.length * _dtype(tensor).itemsize:
        raise DamagedError(
            f"the record {record.name!r} has {record.size} bytes, fewer than its tensor needs",
            path=records.file.path,
        )
    return _over(records.file.buffer, tensor, record.offset)


def _load_legacy(file: LegacyFile, tensor: TensorRecord) -> torch.Tensor:
    if tensor.storage.location == META:
        return _without_values(tensor)
    return _over(file.read(tensor.storage), tensor)


def _dtype(tensor: TensorRecord) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, tensor.storage.dtype)
    return found


def _over(buffer: bytearray | mmap.mmap, tensor: TensorRecord, start: int = 0) -> torch.Tensor:
    """Return a tensor over its storage, which starts at ``start`` of a buffer."""
    import torch

    dtype, length = _dtype(tensor), tensor.storage.length
    if length == 0:
        return torch.empty(tensor.shape, dtype=dtype)
    flat = torch.frombuffer(buffer, dtype=dtype, count=length, offset=start)
    return flat.as_strided(tensor.shape, tensor.stride, tensor.offset)


def _without_values(tensor: TensorRecord) -> torch.Tensor:
    import torch

    return torch.empty(tensor.shape, dtype=_dtype(tensor), device=META)


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    """Whether a file starts like safetensors: the length of a JSON header in 8 bytes, then JSON.

    A file that is shorter than its header was cut off.
    """
    whole = int.from_bytes(head[:8], "little") <= size - 8
    return head[8:10] == b'{"' or (head[8:9] == b"{" and whole)


def _load_safetensors(path: Path, head: bytes) -> tuple[dict[str, torch.Tensor], str | None]:
    """Return the weights, and clipcheck's own record of the architecture, or None."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    header = int.from_bytes(head[:8], "little")
    if header > _MOST_HEADER:
        raise DamagedError(
            f"its header has {header:,} bytes, and that of no model has more than {_MOST_HEADER:,}",
            path=path,
        )
    size = path.stat().st_size
    if header > size - 8:
        raise DamagedError(
            f"its header has {header:,} bytes, and the file {size:,}: it was cut off", path=path
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        _require_model(metadata, path)
        return load_file(path), metadata.get(METADATA)
    except (SafetensorError, ValueError, OSError) as error:
        raise DamagedError(
            f"not a valid safetensors file ({first_line(error)[:120]})", path=path
        ) from error


_REMEDIES = {
    '{"kind": "pin",': (
        "a pin",
        "Judge a checkpoint or program by it: clipcheck check FILE --pinned PIN.",
    ),
    '{"kind": "outputs",': ("outputs of a check", "Judge them again: clipcheck rejudge FOLDER."),
}
"""Names and remedies of clipcheck's own safetensors files, by how their header begins."""


def _require_model(metadata: Mapping[str, str], path: Path) -> None:
    for begin, (what, remedy) in _REMEDIES.items():
        if metadata.get("clipcheck", "").startswith(begin):
            raise UnknownFormatError(
                f"expected a checkpoint, found {what} that clipcheck wrote",
                remedy=remedy,
                path=path,
            )
