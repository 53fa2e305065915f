"""Read the records of a torch zip file from a memory map, without unpacking or running any.

torch stores weights uncompressed and aligned, so that each record is a plain range of bytes in the
file; code may be compressed (caffe2/serialize/inline_container.h). Any other file was not written
by torch, or was altered since, and is refused: a second reader, such as the TorchScript
interpreter, might see other contents in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from clipcheck.errors import CheckpointError, DamagedError, UnknownFormatError

ZIP_MAGIC = b"PK\x03\x04"

_WORTH_THREADS = 16 << 20
"""From this many bytes, several threads compute checksums faster than one."""

_DONT_NEED = 4
"""MADV_DONTNEED (asm-generic/mman-common.h)."""

_POPULATE_READ = 22
"""MADV_POPULATE_READ (linux/mman-common.h, since Linux 5.14)."""

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # PKWARE APPNOTE 4.3.7
_ENCRYPTED = 0x1
_DIRECTORY_END = struct.Struct("<4s4H2IH")
_DIRECTORY_END_MAGIC = b"PK\x05\x06"
_LARGE_END = struct.Struct("<4sQ2H2I4Q")  # PKWARE APPNOTE 4.3.14, of zip64
_LARGE_END_MAGIC = b"PK\x06\x06"
_LOCATOR_SIZE = 20
_LOCATOR_MAGIC = b"PK\x06\x07"
_MOST_TAIL = _DIRECTORY_END.size + 0xFFFF
"""A zip file's end record begins within this many bytes of its end: a comment may follow it."""

_DESCRIBED_LATER = 0x8
"""Flag of a record with its sizes after its contents, not in its header."""

_MOST_DIRECTORY = 4 << 20
"""Most bytes of the directory. The largest released archive's has 0.2 MB."""

_OF_TORCH = re.compile(r"[^/]+/(data\.pkl|version|archive_format|data/\d+)")
"""Names of which every zip file of torch has one; other zip files hardly have them."""

_MOST_UNPACKED = 64 << 20
"""Most bytes of all compressed records together, unpacked. The largest released archive has 2 MB of
code."""


class MappedFile:
    """A file mapped into memory privately: writing to it changes only this process's copy.

    Raises:
        CheckpointError: the system cannot map it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"cannot be mapped into memory ({getattr(error, 'strerror', None) or error})",
                remedy="Check that the file is complete, that its file system supports memory "
                "maps, and that this process may use as much memory as the file has bytes.",
                path=path,
            ) from error

    def __len__(self) -> int:
        return len(self.buffer)

    def offset_of(self, address: int) -> int:
        """Return the position in the file of the byte that is mapped to ``address``."""
        return address - ctypes.addressof(ctypes.c_char.from_buffer(self.buffer))

    def prefetch(self, start: int, size: int) -> None:
        """Map the pages of ``size`` bytes from ``start`` at once, if the system supports it."""
        # An older kernel refuses it, and maps page by page.
        with contextlib.suppress(OSError):
            self._advise(_POPULATE_READ, start, size)

    def give_back(self, start: int, size: int) -> None:
        """Release the pages of ``size`` bytes from ``start``. They are read again when needed.

        Only for pages that were not written to: changes are lost.
        """
        self._advise(_DONT_NEED, start, size)

    def _advise(self, advice: int, start: int, size: int) -> None:
        """Advise the system on the whole pages among these bytes; only on Linux, whose numbers
        these are."""
        if sys.platform != "linux":
            return
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self.buffer.madvise(advice, first, last - first)


@dataclass(frozen=True, kw_only=True)
class Record:
    """A named range of bytes in a zip file.

    ``offset`` and ``stored`` are in bytes of the file, ``size`` in bytes of the contents:
    ``stored`` and ``size`` differ if the record is compressed.
    """

    name: str
    offset: int
    stored: int
    size: int
    crc32: int
    compressed: bool


class Records:
    """The records of a torch zip file by name, without the top folder that all of them share.

    Raises:
        UnknownFormatError: the zip file has none of torch's records.
        DamagedError: the file is cut off or altered, or it was not written by torch.
    """

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        count, start = _require_end(file)
        infos = _directory(file)
        _require_torch(infos, file.path)
        _require_names(infos, count, file.path)
        self.root = _top_folder(infos, file.path)
        infos = [info for info in infos if not info.filename.endswith("/")]
        _require_modest(infos, file.path)
        records = [_record(info, file) for info in infos]
        _require_disjoint(infos, records, start, file.path)
        cut = len(self.root) + 1
        self._by_name = {record.name[cut:]: record for record in records}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Record:
        """Return the record of that name.

        Raises:
            DamagedError: there is no such record.
        """
        if name not in self._by_name:
            raise DamagedError(f"the record {name!r} is missing", path=self.file.path)
        return self._by_name[name]

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of the records that begin with ``prefix``, in file order."""
        return [name for name in self._by_name if name.startswith(prefix)]

    def read(self, name: str) -> bytes:
        """Return the bytes of a record, after checking its checksum.

        Raises:
            DamagedError: there is no such record, or its checksum differs.
        """
        self.verify([name])
        return bytes(self._contents(self[name]))

    @property
    def has_checksums(self) -> bool:
        """Whether the file has checksums.

        After `torch.serialization.set_crc32_options(False)`, torch writes zero for every record.
        """
        return any(record.crc32 for record in self._by_name.values())

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Compare the checksums (CRC-32) of the named records, of all by default.

        Raises:
            DamagedError: a checksum differs; the message names the record.
        """
        if not self.has_checksums:
            return
        chosen = [self[name] for name in (self._by_name if names is None else names)]
        if sum(record.size for record in chosen) < _WORTH_THREADS:
            sums = [self._crc32(record) for record in chosen]
        else:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                sums = list(pool.map(self._crc32, chosen))
        for record, found in zip(chosen, sums, strict=True):
            if found != record.crc32:
                reason = f"its CRC-32 is {found:08x} and the directory says {record.crc32:08x}"
                raise _altered(record, reason, self.file)

    def _crc32(self, record: Record) -> int:
        crc32 = zlib.crc32(self._contents(record))
        self.file.give_back(record.offset, record.stored)
        return crc32

    def _contents(self, record: Record) -> memoryview:
        stored = memoryview(self.file.buffer)[record.offset : record.offset + record.stored]
        if not record.compressed:
            return stored
        try:
            contents = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, record.size + 1)
        except zlib.error as error:
            raise _altered(record, f"it cannot be decompressed ({error})", self.file) from error
        return memoryview(contents)


def _altered(record: Record, reason: str, file: MappedFile) -> DamagedError:
    return DamagedError(f"the record {record.name!r} was altered: {reason}", path=file.path)


def _require_end(file: MappedFile) -> tuple[int, int]:
    """Check that the file ends as torch's do, and that its directory is where the end record says.

    Returns:
        The number of records according to the end record (0xffff for any larger number), and the
        position of the directory.
    """
    size = len(file)
    at = size - _DIRECTORY_END.size
    end = file.buffer[max(at, 0) :]
    if at < 0 or not end.startswith(_DIRECTORY_END_MAGIC):
        tail = file.buffer[-_MOST_TAIL:]
        if 0 <= tail.rfind(_DIRECTORY_END_MAGIC) < len(tail) - _DIRECTORY_END.size:
            raise _altered_file("other bytes follow its directory", file.path)
        raise _cut_off("it has no end record", file.path)
    found = _DIRECTORY_END.unpack(end)
    count, length, start = found[4:7]
    if file.buffer[at - _LOCATOR_SIZE : at].startswith(_LOCATOR_MAGIC):
        at -= _LOCATOR_SIZE + _LARGE_END.size
        if at < 0 or file.buffer[at : at + 4] != _LARGE_END_MAGIC:
            raise _altered_file("its zip64 end record is missing", file.path)
        large = _LARGE_END.unpack_from(file.buffer, at)
        if (count, length, start) != tuple(
            min(one, most) for one, most in zip(large[7:], (0xFFFF, *[0xFFFFFFFF] * 2), strict=True)
        ):
            raise _altered_file("its two end records disagree", file.path)
        length, start = large[8:]
    if length > _MOST_DIRECTORY:
        raise _altered_file(f"its directory has more than {_MOST_DIRECTORY:,} bytes", file.path)
    if start + length != at:
        raise _cut_off("it is not where the end record says", file.path)
    return count, start


def _directory(file: MappedFile) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(file.path) as archive:
            infos = archive.infolist()
    # zipfile may raise nearly any exception for a garbled directory; that is no defect of ours.
    except Exception as error:
        raise _cut_off(error, file.path) from error
    return infos


def _cut_off(reason: object, path: Path) -> DamagedError:
    return DamagedError(
        f"the file begins like a torch zip file, but its directory cannot be read ({reason}): "
        "it was cut off or altered",
        path=path,
    )


def _altered_file(problem: str, path: Path) -> DamagedError:
    return DamagedError(f"the file was altered: {problem}", path=path)


def _require_torch(infos: list[zipfile.ZipInfo], path: Path) -> None:
    if not any(_OF_TORCH.fullmatch(info.filename) for info in infos):
        raise UnknownFormatError(
            f"expected a zip file that torch wrote; found one with {len(infos)} records and none "
            "of torch's",
            remedy="Give the checkpoint itself, not a zip file that contains it.",
            path=path,
        )


def _require_names(infos: list[zipfile.ZipInfo], count: int, path: Path) -> None:
    """Check that the directory has the stated number of records, each once, with a usual name.

    zipfile uses only the directory's length. A single altered byte, the length of a record's
    comment, hides the records that follow it: an archive without its code looks like a state dict.
    And torch ignores the case of letters in names (miniz.h), so that it may find another record
    than this module does.
    """
    names = {info.filename for info in infos}
    odd = [info.orig_filename for info in infos if not _is_usual(info)]
    if count != min(len(infos), 0xFFFF):
        problem = f"its directory has {len(infos)} records, its end record says {count}"
    elif len(names) != len(infos):
        problem = "two records have the same name"
    elif len({name.lower() for name in names}) != len(infos):
        problem = "two records have names that differ only in upper and lower case"
    elif odd:
        problem = f"a record is named {odd[0][:80]!r}"
    else:
        return
    raise _altered_file(problem, path)


def _is_usual(info: zipfile.ZipInfo) -> bool:
    """Whether a record's name stays within the archive's folder, and has no NUL or backslash."""
    name = info.orig_filename  # zipfile cuts ``filename`` at the first NUL
    parts = name.removesuffix("/").split("/")
    return not {"", ".", ".."} & set(parts) and not {"\\", "\0"} & set(name)


def _require_modest(infos: list[zipfile.ZipInfo], path: Path) -> None:
    compressed = [info for info in infos if info.compress_type != zipfile.ZIP_STORED]
    if sum(info.file_size for info in compressed) > _MOST_UNPACKED:
        raise _altered_file(
            f"its compressed records have more than {_MOST_UNPACKED:,} bytes unpacked, more than "
            "torch ever writes",
            path,
        )


def _top_folder(infos: list[zipfile.ZipInfo], path: Path) -> str:
    folders = {info.filename.partition("/")[0] for info in infos}
    if len(folders) != 1 or not all("/" in info.filename for info in infos):
        raise DamagedError(
            f"expected all records in one folder, as torch writes them, found {len(infos)} "
            f"records in {len(folders)}",
            remedy="Give a file that torch.jit.save or torch.save wrote, not another zip file.",
            path=path,
        )
    return folders.pop()


def _record(info: zipfile.ZipInfo, file: MappedFile) -> Record:
    start = info.header_offset
    header = file.buffer[start : start + _LOCAL_HEADER.size]
    problem = _unlike_torch(info, header)
    if not problem:
        *_, name_size, extra_size = _LOCAL_HEADER.unpack(header)
        name_start = start + _LOCAL_HEADER.size
        offset = name_start + name_size + extra_size
        if file.buffer[name_start : name_start + name_size] != info.orig_filename.encode():
            problem = "has another name in the directory"
        elif offset + info.compress_size > len(file):
            problem = "ends beyond the end of the file"
        else:
            return Record(
                name=info.filename,
                offset=offset,
                stored=info.compress_size,
                size=info.file_size,
                crc32=info.CRC,
                compressed=info.compress_type != zipfile.ZIP_STORED,
            )
    raise DamagedError(f"the record {info.filename!r} {problem}", path=file.path)


def _unlike_torch(info: zipfile.ZipInfo, header: bytes) -> str:
    """Describe how a record differs from those that torch writes; empty if it does not differ."""
    if info.compress_type == zipfile.ZIP_DEFLATED:
        if "/data/" in info.filename:
            return "is compressed, although torch compresses only code"
    elif info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        return "is compressed in a way that torch never uses"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted, which torch never does"
    if len(header) < _LOCAL_HEADER.size or not header.startswith(ZIP_MAGIC):
        return "does not start where the directory says"
    _, _, flags, method, _, _, _, stored, size, _, _ = _LOCAL_HEADER.unpack(header)
    sizes = (info.compress_size, info.file_size)
    if method != info.compress_type:
        return "has another compression method in the directory"
    if not flags & _DESCRIBED_LATER and (stored, size) not in (sizes, (0xFFFFFFFF, 0xFFFFFFFF)):
        return "has another size in the directory"
    return ""


def _require_disjoint(
    infos: list[zipfile.ZipInfo], records: list[Record], directory: int, path: Path
) -> None:
    """Check that records, with their headers, overlap neither each other nor the directory."""
    starts = [info.header_offset for info in infos]
    placed = sorted(zip(starts, records, strict=True), key=lambda each: each[0])
    end = 0
    for start, record in [*placed, (directory, placed[-1][1])]:
        if start < end:
            raise DamagedError(f"the record {record.name!r} overlaps with another", path=path)
        end = record.offset + record.stored
