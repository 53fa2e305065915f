from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from clipcheck.errors import OutputError
from clipcheck.writers.output import replacing


def write_and_fail(path: Path, error: BaseException) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half of it")
        temporary.with_name("scratch").write_text("more")
        raise error


def test_the_file_is_there_when_the_block_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary != path
        assert temporary.name == path.name
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("old", [None, "old"])
def test_nothing_is_left_when_the_block_fails(
    tmp_path: Path, error: type[BaseException], old: str | None
) -> None:
    path = tmp_path / "m.pt"
    if old is not None:
        path.write_text(old)
    with pytest.raises(error):
        write_and_fail(path, error())
    assert [p.read_text() for p in tmp_path.iterdir()] == ([] if old is None else [old])


def test_a_system_error_in_the_block_is_an_output_error(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    with pytest.raises(OutputError) as caught:
        write_and_fail(path, OSError(errno.ENOSPC, "No space left on device"))
    assert str(caught.value) == (
        f"{path}: cannot be written (No space left on device). Give another output path, or make "
        "room or permission for this one."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_an_output_error(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="No such file or directory"),
        replacing(tmp_path / "none" / "m.pt"),
    ):
        pytest.fail("the block must not be entered")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_its_place_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "m.pt").mkdir()
    with pytest.raises(OutputError, match="Is a directory"), replacing(tmp_path / "m.pt"):
        pytest.fail("the block must not be entered")
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_without_permission_is_an_output_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"), replacing(tmp_path / "m.pt"):
            pytest.fail("the block must not be entered")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_others_may_read_it_as_far_as_the_umask_lets_them(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "m.pt") as temporary:
            temporary.touch(mode=0o600)
    finally:
        assert os.umask(before) == umask
    assert stat.S_IMODE((tmp_path / "m.pt").stat().st_mode) == 0o666 & ~umask


@pytest.mark.skipif(os.name != "posix", reason="symbolic links need permission elsewhere")
def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "m.pt", tmp_path / "link.pt"
    target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="there is no such device")
def test_a_device_is_not_replaced() -> None:
    with pytest.raises(OutputError, match="a device or a pipe"), replacing(Path("/dev/null")):
        pytest.fail("the block must not be entered")
    assert not Path("/dev/null").is_file()
