from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clipcheck.errors import OutputError
from clipcheck.writers import output
from clipcheck.writers.output import creating, replacing
from tests.locking import refuse_locks


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
        pytest.raises(OutputError, match=r"folder .*none' does not exist. Create the folder"),
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


HOLDS = """
import sys
from pathlib import Path
from clipcheck.writers.output import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("written", flush=True)
    sys.stdin.readline()
    temporary.write_text("whole")
"""


@contextmanager
def another(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that has written half of a file, and continues on request."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        yield process


def write_it(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("mine")


def test_files_of_a_killed_process_are_deleted_and_those_of_a_living_one_are_not(
    tmp_path: Path,
) -> None:
    with another(tmp_path / "theirs") as living, another(tmp_path / "dead") as dead:
        dead.kill()
        dead.wait()
        assert len(list(tmp_path.glob(".clipcheck-*"))) == 2
        write_it(tmp_path / "mine")
        (folder,) = tmp_path.glob(".clipcheck-*")
        assert (folder / "theirs").read_text() == "half"
        living.communicate("go on\n")
    assert living.returncode == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "theirs": "whole",
        "mine": "mine",
    }


def test_folders_of_living_processes_and_of_other_users_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / ".clipcheck-01234567-abcdefgh"  # of another machine
    elsewhere.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.txt").write_text("all of it")
    mine = f".clipcheck-{output._machine()}-"
    (tmp_path / f"{mine}link").symlink_to(outside)
    (tmp_path / f"{mine}file").write_text("no folder")
    write_it(tmp_path / "m.pt")
    refuse_locks(monkeypatch)
    unknown = tmp_path / f"{mine}unknown"
    unknown.mkdir()
    write_it(tmp_path / "m.pt")
    assert (outside / "thesis.txt").read_text() == "all of it"
    assert (tmp_path / "m.pt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["m.pt", "outside", elsewhere.name, f"{mine}link", f"{mine}file", unknown.name]
    )


def test_a_folder_that_was_taken_for_a_dead_ones_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = tempfile.mkdtemp
    taken: list[str] = []

    def swept(*arguments: Any, **named: Any) -> str:
        folder = make(*arguments, **named)
        if not taken:  # between making it and locking it
            taken.append(folder)
            output._sweep(Path(folder))
            assert not Path(folder).exists()
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", swept)
    write_it(tmp_path / "m.pt")
    assert len(taken) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.parametrize("write", [replacing, creating])
def test_the_bytes_are_on_the_disk_before_they_get_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    synced: list[int] = []

    def sync(descriptor: int) -> None:
        assert not (tmp_path / "m").exists()
        assert os.fstat(descriptor).st_size == 4
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", sync)
    with write(tmp_path / "m") as temporary:
        file = temporary if write is replacing else temporary / "file"
        file.write_text("mine")
    assert synced == [
        (tmp_path / "m" if write is replacing else tmp_path / "m" / "file").stat().st_ino
    ]


def test_a_folder_of_ours_is_replaced_in_one_step(tmp_path: Path) -> None:
    with creating(tmp_path / "m") as temporary:
        (temporary / "old").write_text("old")
    with creating(tmp_path / "m", ours=lambda there: (there / "old").exists()) as temporary:
        (temporary / "new").write_text("new")
        assert (tmp_path / "m" / "old").read_text() == "old"
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["new"]
    with (
        pytest.raises(OutputError, match="it is not empty, and was not changed"),
        creating(tmp_path / "m", ours=lambda there: (there / "old").exists()),
    ):
        pytest.fail("the block must not be entered")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="there is no such device")
def test_a_device_is_not_replaced() -> None:
    with pytest.raises(OutputError, match="a device or a pipe"), replacing(Path("/dev/null")):
        pytest.fail("the block must not be entered")
    assert not Path("/dev/null").is_file()
