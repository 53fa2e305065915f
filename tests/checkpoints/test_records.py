from __future__ import annotations

import io
import mmap
import re
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from clipcheck.checkpoints import records as module
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.records import MappedFile, Records
from clipcheck.errors import CheckpointError, DamagedError, UnknownFormatError
from tests.samples import (
    COMMENT_SIZE,
    CRC32,
    FLAGS,
    METHOD,
    OFFSET,
    SIZE,
    STORED,
    contents_at,
    entry,
    flipped,
    minute_bytes,
    record_names,
    repacked,
    saved,
    with_field,
)


def is_code(name: str) -> bool:
    return name.startswith("code/")


@pytest.fixture
def archive() -> bytes:
    return minute_bytes(Format.ARCHIVE)


def opened(data: bytes, folder: Path) -> Records:
    path = folder / "file"
    path.write_bytes(data)
    return Records(MappedFile(path))


def test_the_records_are_those_that_zipfile_reads(archive: bytes, tmp_path: Path) -> None:
    records = opened(archive, tmp_path)
    with zipfile.ZipFile(io.BytesIO(archive)) as oracle:
        names = oracle.namelist()
        assert [f"{records.root}/{name}" for name in records.names()] == names
        for name in records.names():
            assert records.read(name) == oracle.read(f"{records.root}/{name}")
    assert len(names) > 60


def test_names_can_be_asked_for_by_their_beginning(archive: bytes, tmp_path: Path) -> None:
    records = opened(archive, tmp_path)
    code = records.names("code/")
    assert code
    assert code == [name for name in records.names() if is_code(name)]
    assert "data.pkl" in records
    assert "data.pkl" not in code


def test_a_folder_in_another_script_is_a_folder(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("модель é/version", "3")
    records = opened(file.getvalue(), tmp_path)
    assert records.root == "модель é"
    assert records.read("version") == b"3"


def test_a_record_that_is_missing_is_named(archive: bytes, tmp_path: Path) -> None:
    records = opened(archive, tmp_path)
    with pytest.raises(DamagedError, match=r"file: the record 'data/999' is missing\. Copy or"):
        records["data/999"]


@pytest.mark.parametrize("threads_from", [0, 1 << 40])
def test_a_flipped_byte_is_found_and_its_record_named(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads_from: int
) -> None:
    monkeypatch.setattr(module, "_WORTH_THREADS", threads_from)
    for name in ("data/9", "data.pkl", "constants.pkl", "version"):
        records = opened(flipped(archive, contents_at(archive, name)), tmp_path)
        full = re.escape(f"{records.root}/{name}")
        reason = r"its CRC-32 is [0-9a-f]{8} and the directory says [0-9a-f]{8}\. Copy or"
        with pytest.raises(DamagedError, match=f"the record '{full}' was altered: {reason}"):
            records.verify()
        with pytest.raises(DamagedError, match=full):
            records.read(name)


@pytest.mark.parametrize("threads_from", [0, 1 << 40])
def test_sound_records_pass(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads_from: int
) -> None:
    monkeypatch.setattr(module, "_WORTH_THREADS", threads_from)
    records = opened(archive, tmp_path)
    records.verify()
    records.verify(["version"])
    assert records.has_checksums


def test_only_the_records_asked_for_are_verified(archive: bytes, tmp_path: Path) -> None:
    records = opened(flipped(archive, contents_at(archive, "data/9")), tmp_path)
    records.verify(["data/8", "data.pkl"])
    with pytest.raises(DamagedError):
        records.verify(["data/8", "data/9"])


def test_files_without_checksums_are_read_and_say_so(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        data = saved({"a": torch.ones(2)})
    finally:
        torch.serialization.set_crc32_options(True)
    records = opened(data, tmp_path)
    assert not records.has_checksums
    records.verify()
    assert records.read("data/0") == torch.ones(2).numpy().tobytes()


def test_a_record_without_contents_has_no_checksum_and_the_others_still_do(
    archive: bytes, tmp_path: Path
) -> None:
    data = repacked(archive, {"data.pkl": b""})
    opened(data, tmp_path).verify()
    with pytest.raises(DamagedError, match="data/9' was altered"):
        opened(flipped(data, contents_at(data, "data/9")), tmp_path).verify()


def test_code_may_be_compressed(archive: bytes, tmp_path: Path) -> None:
    packed = opened(repacked(archive, compress=is_code), tmp_path)
    names = packed.names("code/")
    assert all(packed[name].compressed for name in names)
    packed.verify()
    (tmp_path / "plain").mkdir()
    plain = opened(archive, tmp_path / "plain")
    assert [packed.read(name) for name in names] == [plain.read(name) for name in names]


def test_compressed_code_that_was_altered_is_found(archive: bytes, tmp_path: Path) -> None:
    packed = repacked(archive, compress=is_code)
    name = next(name.partition("/")[2] for name in record_names(packed) if "/code/" in name)
    start = contents_at(packed, name)
    for position in range(start, start + 40):
        with pytest.raises(DamagedError, match="was altered"):
            opened(flipped(packed, position), tmp_path).verify()


def test_code_is_not_unpacked_without_end(archive: bytes, tmp_path: Path) -> None:
    name = "code/__torch__/huge.py"
    bomb = bytes(module._MOST_UNPACKED + 1)
    data = _with_record(archive, name, bomb)
    assert len(data) < len(archive) + 100_000
    with pytest.raises(DamagedError, match=r"compressed records have more than 67,108,864 bytes"):
        opened(data, tmp_path)
    # Nor where the file says that it is small.
    lying = bytearray(with_field(data, name, SIZE, 1000))
    (header,) = struct.unpack_from("<I", lying, entry(data, name) + OFFSET)
    struct.pack_into("<I", lying, header + 22, 1000)
    with pytest.raises(DamagedError, match=r"huge\.py' was altered"):
        opened(bytes(lying), tmp_path).read(name)


def _with_record(data: bytes, name: str, contents: bytes) -> bytes:
    file = io.BytesIO(repacked(data))
    root = record_names(data)[0].partition("/")[0]
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as target:
        target.writestr(f"{root}/{name}", contents)
    return file.getvalue()


def test_compressed_weights_are_refused(archive: bytes, tmp_path: Path) -> None:
    packed = repacked(archive, compress=lambda name: name == "data/9")
    with pytest.raises(DamagedError, match="data/9' is compressed, although torch compresses only"):
        opened(packed, tmp_path)


OTHER_DIRECTORIES = {
    "another compression": (METHOD, 12, "<H", "is compressed in a way that torch never uses"),
    "a size that is not the stored one": (SIZE, 1, "<I", "is compressed in a way that torch never"),
    "encrypted": (FLAGS, 0x801, "<H", "is encrypted, which torch never does"),
    "starts elsewhere": (OFFSET, 77, "<I", "does not start where the directory says"),
    "starts behind the end": (OFFSET, 0x7FFFFFFF, "<I", "does not start where the directory says"),
    "starts at another record": (OFFSET, 0, "<I", "has another name in the directory"),
    "has another checksum": (CRC32, 0x12345678, "<I", "the directory says 12345678"),
}


@pytest.mark.parametrize("case", OTHER_DIRECTORIES)
def test_a_directory_unlike_the_records_is_refused(
    archive: bytes, tmp_path: Path, case: str
) -> None:
    field, value, form, problem = OTHER_DIRECTORIES[case]
    altered = with_field(archive, "data.pkl", field, value, form)
    with pytest.raises(DamagedError, match=rf"data\.pkl' .*{re.escape(problem)}"):
        opened(altered, tmp_path).verify()


def test_a_record_beyond_the_end_of_the_file_is_refused(archive: bytes, tmp_path: Path) -> None:
    altered = with_field(archive, "data.pkl", STORED, len(archive))
    altered = with_field(altered, "data.pkl", SIZE, len(archive))
    with pytest.raises(DamagedError, match=r"data\.pkl' ends beyond the end of the file"):
        opened(altered, tmp_path)


def test_records_that_overlap_are_refused(archive: bytes, tmp_path: Path) -> None:
    larger = struct.unpack_from("<I", archive, entry(archive, "data/9") + SIZE)[0] + 512
    altered = with_field(archive, "data/9", STORED, larger)
    altered = with_field(altered, "data/9", SIZE, larger)
    with pytest.raises(DamagedError, match="data/10' overlaps with another"):
        opened(altered, tmp_path)


def test_a_record_that_starts_where_no_header_has_room_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        info = zipfile.ZipInfo("minute/version")
        info.comment = b"PK\x03\x04"  # like a header, 26 bytes before the end of the file
        target.writestr(info, "3")
    data = file.getvalue()
    altered = with_field(data, "version", OFFSET, len(data) - 26)
    with pytest.raises(DamagedError, match="does not start where the directory says"):
        opened(altered, tmp_path)


def test_a_record_renamed_in_the_directory_alone_is_refused(archive: bytes, tmp_path: Path) -> None:
    altered = flipped(archive, entry(archive, "constants.pkl") + 46 + len("minute/"), 0x02)
    with pytest.raises(DamagedError, match=r"aonstants\.pkl' has another name in the directory"):
        opened(altered, tmp_path)


def test_two_records_of_one_name_are_refused(archive: bytes, tmp_path: Path) -> None:
    altered = bytearray(archive)
    for start in (entry(archive, "data/2") + 46, contents_at(archive, "data/2") - 64):
        at = archive.index(b"/data/2", start)
        altered[at + 6] = ord("1")
    with pytest.raises(DamagedError, match="altered: two records have the same name"):
        opened(bytes(altered), tmp_path)


@pytest.mark.parametrize("last", ["data.pkl", "data/9"])
def test_a_comment_cannot_hide_the_records_that_follow(
    archive: bytes, tmp_path: Path, last: str
) -> None:
    # Without its code and constants an archive is like a state dict.
    start = entry(archive, last)
    end = archive.index(b"PK\x06\x06", start)
    hidden = end - (start + 46 + len(f"minute/{last}"))
    altered = with_field(archive, last, COMMENT_SIZE, hidden, "<H")
    with pytest.raises(DamagedError, match=r"has \d+ records, its end record says \d+\. Copy"):
        opened(altered, tmp_path)


def test_bytes_after_the_directory_are_refused(archive: bytes, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="other bytes follow its directory"):
        opened(archive + bytes(100), tmp_path)


def test_more_than_one_top_folder_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("one/version", "3")
        target.writestr("other/data.pkl", "")
    with pytest.raises(DamagedError, match=r"all records in one folder.* found 2 records in 2"):
        opened(file.getvalue(), tmp_path)


def test_a_zip_file_of_something_else_is_not_called_damaged(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        target.writestr("word/document.xml", "<xml/>")
        target.writestr("data/version/2", "")
        target.writestr("pictures/data/1.png", "")
    with pytest.raises(UnknownFormatError, match="one with 3 records and none of torch's"):
        opened(file.getvalue(), tmp_path)


def test_a_file_cut_off_is_refused_with_zipfiles_reason(archive: bytes, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"cannot be read \(.+\): it was cut off or altered"):
        opened(archive[:-1], tmp_path)


def test_whatever_zipfile_raises_is_an_error_of_the_file(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflowing(*_: object) -> None:
        raise OverflowError("too large")

    monkeypatch.setattr(zipfile, "ZipFile", overflowing)
    with pytest.raises(DamagedError, match="too large"):
        opened(archive, tmp_path)


def test_writing_to_the_map_does_not_change_the_file(archive: bytes, tmp_path: Path) -> None:
    records = opened(archive, tmp_path)
    file, record = records.file, records["data/9"]
    tensor = torch.frombuffer(file.buffer, dtype=torch.uint8, offset=record.offset, count=100)
    tensor += 1
    assert bytes(file.buffer[record.offset : record.offset + 100]) == tensor.numpy().tobytes()
    assert file.path.read_bytes() == archive


def test_memory_that_was_given_back_reads_the_same(archive: bytes, tmp_path: Path) -> None:
    file = opened(archive, tmp_path).file
    for start, size in ((0, len(file)), (1, 5000), (4095, 2), (len(file) - 10, 10), (0, 0)):
        file.prefetch(start, size)
        assert bytes(file.buffer) == archive
        file.give_back(start, size)
        assert bytes(file.buffer) == archive


def test_only_whole_pages_are_given_back(archive: bytes, tmp_path: Path) -> None:
    file = opened(archive, tmp_path).file
    page = mmap.PAGESIZE
    file.buffer[page - 1] = 7  # written to: it lies before the range, in the first page of it
    file.buffer[3 * page] = 7  # and behind it, in the last
    file.give_back(page - 10, 2 * page + 20)
    assert (file.buffer[page - 1], file.buffer[3 * page]) == (7, 7)


def test_a_kernel_without_prefetching_is_no_error(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_POPULATE_READ", 9999)
    file = opened(archive, tmp_path).file
    file.prefetch(0, len(file))
    assert bytes(file.buffer) == archive


def test_an_address_leads_back_to_its_place_in_the_file(archive: bytes, tmp_path: Path) -> None:
    records = opened(archive, tmp_path)
    offset = records["data/9"].offset
    tensor = torch.frombuffer(records.file.buffer, dtype=torch.uint8, offset=offset, count=1)
    assert records.file.offset_of(tensor.data_ptr()) == offset
    assert len(records.file) == len(archive)


def test_a_file_that_the_system_does_not_map_is_an_error_that_says_why(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(CheckpointError, match=r"mapped into memory \(Cannot allocate memory\)\. "):
        opened(archive, tmp_path)


def test_a_file_of_a_few_bytes_is_cut_off(tmp_path: Path) -> None:
    for data in (
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"PK\x03\x04" + bytes(10),
        b"PK\x06\x07" + bytes(20),
    ):
        with pytest.raises(DamagedError, match="it was cut off or altered"):
            opened(data, tmp_path)


def test_an_end_of_zip64_that_is_not_there_is_refused(archive: bytes, tmp_path: Path) -> None:
    for data in (archive[-42:], flipped(archive, len(archive) - 98)):
        with pytest.raises(DamagedError, match="its zip64 end record is missing"):
            opened(data, tmp_path)


def test_a_directory_elsewhere_is_refused(archive: bytes, tmp_path: Path) -> None:
    # As zipfile takes it: with something before the file itself.
    with pytest.raises(DamagedError, match="it is not where the end record says"):
        opened(b"PK\x03\x04" + archive, tmp_path)
