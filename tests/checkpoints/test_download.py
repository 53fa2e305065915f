"""A released file is found or fetched, verified, and never left half-written.

The files come from a server on this machine that behaves as each test tells it to.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from clipcheck.checkpoints import download, registry, transfer
from clipcheck.checkpoints.registry import Released
from clipcheck.errors import DownloadError, UnknownModelError
from tests.checkpoints.serving import CONTENT, FAKE, Handler, Server, give, serving


def give_slowly(handler: Handler) -> None:
    time.sleep(0.5)
    handler.reply(CONTENT)


def cut_off(handler: Handler) -> None:
    handler.reply(CONTENT[: len(CONTENT) // 2])


def cut_off_without_announced_length(handler: Handler) -> None:
    handler.reply(CONTENT[: len(CONTENT) // 2], length=None)


def give_wrong_bytes(handler: Handler) -> None:
    handler.reply(bytes(len(CONTENT)))


def announce_less(handler: Handler) -> None:
    handler.reply(CONTENT, length=len(CONTENT) // 2)


def announce_nonsense(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "many")
    handler.end_headers()


def know_nothing(handler: Handler) -> None:
    handler.send_error(404)


def stall_at_once(handler: Handler) -> None:
    handler.server.over.wait(20)


def stall_midway(handler: Handler) -> None:
    handler.reply(CONTENT[: len(CONTENT) // 2])
    handler.server.over.wait(20)


def interrupt_midway(handler: Handler) -> None:
    main = threading.main_thread().ident
    assert main is not None
    handler.reply(CONTENT[: len(CONTENT) // 2])
    time.sleep(0.2)  # by now the client waits for the other half
    signal.pthread_kill(main, signal.SIGINT)
    handler.server.over.wait(20)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setitem(registry.RELEASED, FAKE.name, FAKE)
    monkeypatch.setattr(transfer, "FIRST_WAIT_SECONDS", 0.001)
    with serving() as server:
        monkeypatch.setattr(registry, "BASE_ADDRESS", server.address)
        yield server


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the files that were hashed, ``fake.pt.part`` for an unfinished one."""
    names: list[str] = []
    digest = hashlib.file_digest

    def count(file: io.BufferedReader, algorithm: str) -> object:
        names.append(re.sub(r"\.[0-9a-f]{32}\.part$", ".part", Path(file.name).name))
        return digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", count)
    return names


@pytest.fixture
def restrict() -> Iterator[Callable[[Path, int], None]]:
    """Changes the rights on a folder, and makes the process one that must respect them.

    Root may write anywhere, so root becomes another user until the test is over.
    """
    changed: list[Path] = []
    user = os.geteuid()

    def change(folder: Path, mode: int) -> None:
        folder.chmod(mode)
        changed.append(folder)
        if user == 0:
            try:
                os.seteuid(65534)
            except OSError:
                pytest.skip("this root cannot become another user")

    yield change
    os.seteuid(user)
    for folder in changed:
        folder.chmod(0o755)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, which pytest's own tmp_path is not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def parts_in(folder: Path) -> list[Path]:
    return list(folder.glob("fake.pt.*.part"))


LOCK = ".fake.pt.lock"
COMPLETE = {"fake.pt", ".fake.pt.verified.json"}


def test_a_released_file_is_downloaded_from_its_address(server: Server, tmp_path: Path) -> None:
    path = download.fetch("fake", tmp_path)
    assert path == tmp_path / "fake.pt"
    assert path.read_bytes() == CONTENT
    assert server.paths == [f"/{FAKE.sha256}/fake.pt"]
    assert names_in(tmp_path) - {LOCK} == COMPLETE


def test_missing_folders_are_made(server: Server, tmp_path: Path) -> None:
    assert download.fetch("fake", tmp_path / "a" / "b").is_file()


def test_a_downloaded_file_has_the_rights_that_the_umask_gives(
    server: Server, tmp_path: Path
) -> None:
    before = os.umask(0o027)
    try:
        path = download.fetch("fake", tmp_path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_in_the_cache_is_neither_downloaded_nor_hashed_again(
    server: Server, tmp_path: Path, hashed: list[str]
) -> None:
    download.fetch("fake", tmp_path)
    assert hashed == ["fake.pt.part"]
    download.fetch("fake", tmp_path)
    assert hashed == ["fake.pt.part"]
    assert len(server.paths) == 1


def test_a_file_put_there_by_hand_is_hashed_once(
    server: Server, tmp_path: Path, hashed: list[str]
) -> None:
    (tmp_path / "fake.pt").write_bytes(CONTENT)
    download.fetch("fake", tmp_path)
    download.fetch("fake", tmp_path)
    assert hashed == ["fake.pt"]
    assert server.paths == []


def test_a_file_is_hashed_again_when_its_time_of_change_differs(
    server: Server, tmp_path: Path, hashed: list[str]
) -> None:
    path = download.fetch("fake", tmp_path)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    download.fetch("fake", tmp_path)
    download.fetch("fake", tmp_path)
    assert hashed == ["fake.pt.part", "fake.pt"]


def test_a_file_is_hashed_again_when_its_size_differs(server: Server, tmp_path: Path) -> None:
    path = download.fetch("fake", tmp_path)
    before = path.stat().st_mtime_ns
    path.write_bytes(CONTENT[:-1])
    os.utime(path, ns=(0, before))
    with pytest.warns(UserWarning, match="does not match"):
        download.fetch("fake", tmp_path)
    assert path.read_bytes() == CONTENT


def test_the_record_of_another_file_of_the_same_name_is_not_trusted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download.fetch("fake", tmp_path)
    newer = Released(FAKE.name, "0" * 64, FAKE.size)
    monkeypatch.setitem(registry.RELEASED, "fake", newer)
    with pytest.warns(UserWarning, match="does not match"), pytest.raises(DownloadError):
        download.fetch("fake", tmp_path)


def test_a_damaged_record_is_written_anew(
    server: Server, tmp_path: Path, hashed: list[str]
) -> None:
    download.fetch("fake", tmp_path)
    (tmp_path / ".fake.pt.verified.json").write_text('{"size": 2000')
    download.fetch("fake", tmp_path)
    download.fetch("fake", tmp_path)
    assert hashed == ["fake.pt.part", "fake.pt"]


def test_a_file_with_wrong_content_is_downloaded_again_with_a_warning(
    server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "fake.pt"
    path.write_bytes(bytes(len(CONTENT)))
    with pytest.warns(UserWarning, match="re-downloading") as caught:
        download.fetch("fake", tmp_path)
    assert str(caught[0].message) == (
        f"{path} exists, but the SHA256 checksum does not match; re-downloading the file"
    )
    assert caught[0].filename == __file__
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (cut_off, "100000 bytes read, 100000 more expected"),
        (cut_off_without_announced_length, "cut off after 100,000 of 200,000 bytes"),
        (give_wrong_bytes, "found 200,000 bytes with SHA-256"),
        (announce_less, "expected 200,000 bytes, the server has 100,000"),
        (announce_nonsense, "cut off after 0 of 200,000 bytes"),
        (know_nothing, "404"),
        (stall_at_once, "Read timed out"),
        (stall_midway, "Read timed out"),
    ],
)
def test_a_failed_download_says_why_and_leaves_no_file(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    behave: Callable[[Handler], None],
    reason: str,
) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT_SECONDS", 0.2)
    server.behave = behave
    start = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        download.fetch("fake", tmp_path)
    assert time.monotonic() - start < 5
    assert caught.value.path == str(tmp_path / "fake.pt")
    assert caught.value.problem.startswith("could not be fetched: ")
    assert reason in caught.value.problem
    assert caught.value.remedy.endswith(f"{FAKE.url} by hand to {tmp_path / 'fake.pt'}.")
    assert ".. " not in str(caught.value)
    assert "fake.pt" not in names_in(tmp_path)
    assert len(parts_in(tmp_path)) <= 1


def test_a_server_that_cannot_be_reached_is_a_download_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "BASE_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:1/"):
        download.fetch("fake", tmp_path)
    assert names_in(tmp_path) <= {LOCK}


def test_a_failed_download_leaves_the_wrong_file_as_it_was(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "fake.pt"
    path.write_bytes(b"something else")
    server.behave = cut_off
    with pytest.warns(UserWarning, match="does not match"), pytest.raises(DownloadError):
        download.fetch("fake", tmp_path)
    assert path.read_bytes() == b"something else"
    assert names_in(tmp_path) - {LOCK, *(part.name for part in parts_in(tmp_path))} == {"fake.pt"}


def test_a_full_disk_is_a_download_error_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # To the writer, a limit on the size of files is like a disk with that much room.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DownloadError, match="has room") as caught:
            download.fetch("fake", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(caught.value.__cause__, OSError)
    assert names_in(tmp_path) <= {LOCK}


def test_an_interrupted_download_resumes(server: Server, tmp_path: Path) -> None:
    server.behave = interrupt_midway
    # It is ignored where the tests are run in the background of a script.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            download.fetch("fake", tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    (part,) = parts_in(tmp_path)
    kept = part.stat().st_size
    assert kept > 0
    server.behave = give
    assert download.fetch("fake", tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={kept}-"]
    assert names_in(tmp_path) - {LOCK} == COMPLETE


def test_a_download_succeeds_after_one_that_was_killed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "fake.pt.part").write_bytes(bytes(3 * len(CONTENT)))
    (tmp_path / LOCK).touch()
    assert download.fetch("fake", tmp_path).read_bytes() == CONTENT
    assert names_in(tmp_path) - {LOCK} == COMPLETE


ASK = """
import hashlib
import sys
from clipcheck.checkpoints import download, registry, transfer

digest = hashlib.file_digest
hashed = []
hashlib.file_digest = lambda file, algorithm: hashed.append(file) or digest(file, algorithm)

_, registry.BASE_ADDRESS, folder, sha256, size = sys.argv
registry.RELEASED["fake"] = registry.Released("fake", sha256, int(size))
print("ready", flush=True)
sys.stdin.readline()
print(download.fetch("fake", folder), len(hashed), flush=True)
"""


@pytest.mark.thorough
def test_eight_concurrent_processes_cause_one_request_and_one_hash(
    server: Server, tmp_path: Path
) -> None:
    server.behave = give_slowly
    arguments = [server.address, str(tmp_path), FAKE.sha256, str(FAKE.size)]
    with ExitStack() as running:
        processes = [
            running.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", ASK, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=Path(download.__file__).parents[2],
                )
            )
            for _ in range(8)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [process.communicate(timeout=60)[0] for process in processes]
    path = tmp_path / "fake.pt"
    assert sorted(answers) == [f"{path} 0\n"] * 7 + [f"{path} 1\n"]
    assert len(server.paths) == 1


def test_a_sound_file_in_a_read_only_cache_is_used(
    server: Server, open_folder: Path, restrict: Callable[[Path, int], None]
) -> None:
    (open_folder / "fake.pt").write_bytes(CONTENT)
    restrict(open_folder, 0o555)
    assert download.fetch("fake", open_folder) == open_folder / "fake.pt"
    assert names_in(open_folder) == {"fake.pt"}
    assert server.paths == []


def test_a_recorded_file_in_a_read_only_cache_is_not_hashed(
    server: Server,
    open_folder: Path,
    restrict: Callable[[Path, int], None],
    hashed: list[str],
) -> None:
    download.fetch("fake", open_folder)
    (open_folder / LOCK).unlink(missing_ok=True)
    restrict(open_folder, 0o555)
    download.fetch("fake", open_folder)
    assert hashed == ["fake.pt.part"]


def test_a_record_that_cannot_be_written_is_no_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "fake.pt").write_bytes(CONTENT)
    (tmp_path / ".fake.pt.verified.json").mkdir()  # so no file can take that name
    assert download.fetch("fake", tmp_path) == tmp_path / "fake.pt"
    assert names_in(tmp_path) - {LOCK} == COMPLETE


@pytest.mark.parametrize("content", [None, b"something else"])
def test_a_read_only_cache_without_a_sound_file_is_a_download_error(
    server: Server,
    open_folder: Path,
    restrict: Callable[[Path, int], None],
    content: bytes | None,
) -> None:
    if content is not None:
        (open_folder / "fake.pt").write_bytes(content)
    restrict(open_folder, 0o555)
    with pytest.raises(DownloadError, match=r"Permission denied.*that the folder is writable"):
        download.fetch("fake", open_folder)
    assert server.paths == []


def test_a_folder_that_cannot_be_made_is_a_download_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="that the folder is writable"):
        download.fetch("fake", tmp_path / "file" / "folder")
    assert server.paths == []


def test_what_is_not_a_regular_file_is_left_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "fake.pt").mkdir()
    with pytest.raises(DownloadError, match=r"fake\.pt: exists and is not a regular file\. Rem"):
        download.fetch("fake", tmp_path)
    assert server.paths == []


def test_an_unknown_name_is_not_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError):
        download.fetch("RN5O", tmp_path)
    with pytest.raises(UnknownModelError):
        download.cached("RN5O", tmp_path)
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("stream", "progress", "shown"),
    [(Terminal, True, True), (Terminal, False, False), (io.StringIO, True, False)],
)
def test_the_bar_is_shown_on_a_terminal_only_and_can_be_hidden(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stream: type[io.StringIO],
    progress: bool,
    shown: bool,
) -> None:
    stderr = stream()
    monkeypatch.setattr(sys, "stderr", stderr)
    download.fetch("fake", tmp_path, progress=progress)
    if shown:
        assert "fake.pt: 100%" in stderr.getvalue()
        assert "200k/200k" in stderr.getvalue()
    else:
        assert stderr.getvalue() == ""


def test_progress_bars_can_be_hidden_for_all_downloads_in_a_block(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    with download.without_bar():
        download.fetch("fake", tmp_path / "1")
    assert stderr.getvalue() == ""
    download.fetch("fake", tmp_path / "2")
    assert "fake.pt: 100%" in stderr.getvalue()


def test_the_folder_is_the_argument_then_the_variable_then_the_classic_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("CLIPCHECK_CACHE", "~/elsewhere")
    assert download.cache_directory("given") == Path("given")
    assert download.cache_directory(tmp_path / "given") == tmp_path / "given"
    assert download.cache_directory("~/given") == tmp_path / "given"
    assert download.cache_directory(None) == tmp_path / "elsewhere"
    monkeypatch.setenv("CLIPCHECK_CACHE", "")
    assert download.cache_directory(None) == tmp_path / ".cache" / "clip"
    monkeypatch.delenv("CLIPCHECK_CACHE")
    assert download.cache_directory(None) == tmp_path / ".cache" / "clip"
    assert not (tmp_path / ".cache").exists()


def test_a_file_is_fetched_into_the_folder_that_the_variable_names(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLIPCHECK_CACHE", str(tmp_path))
    assert download.fetch("fake") == tmp_path / "fake.pt"
    assert download.cached("fake") == tmp_path / "fake.pt"


def test_cached_finds_only_complete_files(
    server: Server, tmp_path: Path, hashed: list[str]
) -> None:
    path = tmp_path / "fake.pt"
    assert download.cached("fake", tmp_path) is None
    assert download.cached("fake", tmp_path / "missing") is None
    path.write_bytes(CONTENT[:-1])
    assert download.cached("fake", tmp_path) is None
    path.write_bytes(CONTENT)
    assert download.cached("fake", tmp_path) == path
    assert hashed == []
    assert server.paths == []


def test_cached_finds_nothing_in_a_folder_that_may_not_be_entered(
    server: Server, open_folder: Path, restrict: Callable[[Path, int], None]
) -> None:
    (open_folder / "fake.pt").write_bytes(CONTENT)
    restrict(open_folder, 0o000)
    assert download.cached("fake", open_folder) is None
