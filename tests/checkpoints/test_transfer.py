"""A download is gone on with where it was cut off, tried again where that may help, and brought by
mirrors and proxies; and never are wrong bytes accepted."""

from __future__ import annotations

import email.utils
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clipcheck.checkpoints import download, registry, transfer
from clipcheck.errors import DownloadError
from tests.checkpoints.serving import (
    CONTENT,
    FAKE,
    HALF,
    Behaviour,
    Handler,
    Server,
    give,
    in_turn,
    running,
    serving,
)
from tests.locking import NONE, pretend_locks, refuse_locks

OTHER = bytes(reversed(CONTENT))
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("CLIPCHECK_BASE_URL", raising=False)
    monkeypatch.setitem(registry.RELEASED, FAKE.name, FAKE)
    monkeypatch.setattr(transfer, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(transfer, "_PIECE", 10_000)
    with serving() as server:
        monkeypatch.setattr(registry, "BASE_ADDRESS", server.address)
        yield server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the seconds to wait instead of waiting."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def get(
    server: Server, folder: Path, *, sha256: str | None = FAKE.sha256, size: int | None = FAKE.size
) -> bytes:
    return download.retrieve(
        f"{server.address}/x", folder / "x", sha256=sha256, size=size
    ).read_bytes()


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def leave(folder: Path, content: bytes) -> Path:
    """Write the files that a killed process leaves."""
    path = folder / f"x.{'0' * 32}.part"
    path.write_bytes(content)
    return path


def cut(upto: int, etag: str | None = None) -> Behaviour:
    return lambda handler: handler.serve(upto=upto, etag=etag)


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


def say(status: int, headers: dict[str, object] | None = None) -> Behaviour:
    return lambda handler: handler.start(status, headers or {})


def test_an_interrupted_transfer_resumes(server: Server, tmp_path: Path) -> None:
    server.behave = in_turn(cut(HALF), cut(HALF + HALF // 2), give)
    assert get(server, tmp_path) == CONTENT
    starts = [int(re.findall(r"\d+", asked)[0]) for asked in server.ranges[1:] if asked]
    assert len(starts) == 2
    assert HALF // 2 < starts[0] <= HALF < starts[1]


def test_the_next_call_resumes_a_transfer(server: Server, tmp_path: Path) -> None:
    server.behave = cut(HALF)
    with pytest.raises(DownloadError, match=r"tried 5 times"):
        get(server, tmp_path)
    (part,) = tmp_path.glob("x.*.part")
    kept = part.stat().st_size
    server.behave, server.ranges = give, []
    assert get(server, tmp_path) == CONTENT
    assert server.ranges == [f"bytes={kept}-"]
    assert left_in(tmp_path) == ["x"]


def test_a_server_without_ranges_sends_the_whole_file_again(server: Server, tmp_path: Path) -> None:
    server.behave = in_turn(cut(HALF), lambda handler: handler.reply(CONTENT))
    assert get(server, tmp_path) == CONTENT
    assert server.ranges[1] is not None


def test_parts_of_different_files_are_not_joined(server: Server, tmp_path: Path) -> None:
    server.behave = in_turn(cut(HALF, '"1"'), lambda handler: handler.serve(OTHER, etag='"2"'))
    assert get(server, tmp_path, sha256=None) == OTHER
    assert len(server.ranges) == 2
    assert server.ranges[1] is not None


def test_if_the_file_has_changed_the_whole_file_is_fetched(server: Server, tmp_path: Path) -> None:
    def blind(handler: Handler) -> None:
        del handler.headers["If-Range"]
        handler.serve(OTHER, etag='"2"')

    server.behave = in_turn(cut(HALF, '"1"'), blind)
    assert get(server, tmp_path, sha256=None) == OTHER
    assert server.ranges[1] is not None
    assert server.ranges[2:] == [None]


@pytest.mark.parametrize("etag", [None, 'W/"1"'])
def test_without_hash_and_etag_no_transfer_resumes(
    server: Server, tmp_path: Path, etag: str | None
) -> None:
    server.behave = in_turn(cut(HALF, etag), lambda handler: handler.serve(OTHER, etag=etag))
    assert get(server, tmp_path, sha256=None) == OTHER
    assert server.ranges == [None, None]
    leave(tmp_path, CONTENT[:HALF])
    (tmp_path / "x").unlink()
    server.behave = give
    assert get(server, tmp_path, sha256=None) == CONTENT
    assert left_in(tmp_path) == ["x"]


def test_a_range_that_starts_elsewhere_is_refused(server: Server, tmp_path: Path) -> None:
    def elsewhere(handler: Handler) -> None:
        handler.start(206, {"Content-Range": f"bytes 0-9/{len(CONTENT)}", "Content-Length": 10})
        handler.send(CONTENT[:10])

    server.behave = in_turn(cut(HALF), elsewhere, give)
    assert get(server, tmp_path) == CONTENT
    assert server.ranges[2] is None


def test_a_wrong_partial_file_costs_one_more_download(server: Server, tmp_path: Path) -> None:
    leave(tmp_path, OTHER[:HALF])
    assert get(server, tmp_path) == CONTENT
    assert server.ranges == [f"bytes={HALF}-", None]
    assert left_in(tmp_path) == ["x"]


def test_bytes_that_stay_wrong_are_an_error_and_deleted(server: Server, tmp_path: Path) -> None:
    leave(tmp_path, OTHER[:HALF])
    server.behave = lambda handler: handler.serve(OTHER)
    with pytest.raises(DownloadError, match="found 200,000 bytes with SHA-256"):
        get(server, tmp_path)
    assert server.ranges == [f"bytes={HALF}-", None]
    assert left_in(tmp_path) == []


def test_a_partial_file_that_is_too_long_is_deleted(server: Server, tmp_path: Path) -> None:
    leave(tmp_path, CONTENT + b"more")
    assert get(server, tmp_path) == CONTENT
    assert server.ranges == [None]
    leave(tmp_path, CONTENT + b"more")
    (tmp_path / "x").unlink()
    assert get(server, tmp_path, size=None) == CONTENT
    assert server.ranges == [None, f"bytes={len(CONTENT) + 4}-", None]
    assert left_in(tmp_path) == ["x"]


def test_a_complete_partial_file_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    leave(tmp_path, CONTENT)
    assert get(server, tmp_path) == CONTENT
    assert server.ranges == []
    leave(tmp_path, CONTENT)
    (tmp_path / "x").unlink()
    assert get(server, tmp_path, size=None) == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


def test_the_longest_partial_file_is_resumed(server: Server, tmp_path: Path) -> None:
    for digit, upto in (("1", 10), ("2", HALF), ("3", 0)):
        (tmp_path / f"x.{digit * 32}.part").write_bytes(CONTENT[:upto])
    (tmp_path / "x.part").write_bytes(CONTENT[:20])  # of a version before
    (tmp_path / "x.txt.part").write_bytes(b"of somebody else")
    assert get(server, tmp_path) == CONTENT
    assert server.ranges == [f"bytes={HALF}-"]
    assert left_in(tmp_path) == ["x", "x.txt.part"]


def test_temporary_errors_are_retried(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.behave = in_turn(say(503), hang_up, say(429), say(500), give)
    with caplog.at_level(logging.WARNING, "clipcheck"):
        assert get(server, tmp_path) == CONTENT
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 4
    assert told[0].startswith(f"{server.address}/x: 503 Service Unavailable; try 2 of 5 in 0.0 s")


def test_tries_are_bounded(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.behave = say(503)
    with pytest.raises(DownloadError, match=r"503 Service Unavailable \(tried 5 times\)"):
        get(server, tmp_path)
    assert len(server.paths) == 5
    assert len(waits) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
def test_permanent_errors_are_not_retried(server: Server, tmp_path: Path, status: int) -> None:
    server.behave = say(status)
    with pytest.raises(DownloadError, match=str(status)):
        get(server, tmp_path)
    assert len(server.paths) == 1


@pytest.mark.parametrize("status", [201, 204])
def test_a_response_other_than_200_is_an_error(server: Server, tmp_path: Path, status: int) -> None:
    server.behave = say(status)
    with pytest.raises(DownloadError, match=f"expected 200 OK, found {status}"):
        get(server, tmp_path, sha256=None, size=None)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("proxy", ["", "http://proxy.invalid:3128"])
@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_AGAIN])
def test_an_unknown_host_is_not_retried(
    tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch, code: int, proxy: str
) -> None:
    asked = []

    def unknown(host: str, *_: object) -> None:
        asked.append(host)
        raise socket.gaierror(code, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setenv("http_proxy", proxy)
    host = "proxy.invalid" if proxy else "mirror.invalid"
    told = re.escape(f"could not be fetched: no address is known for {host} (no network?). Check")
    with pytest.raises(DownloadError, match=told):
        download.retrieve("http://mirror.invalid/x", tmp_path / "x")
    assert asked == [host]
    assert waits == []


def test_errors_of_a_connection_keep_the_systems_text(tmp_path: Path, waits: list[float]) -> None:
    with pytest.raises(DownloadError, match=r"fetched: Connection refused \(tried 5 times\)\. "):
        download.retrieve("http://127.0.0.1:1/x", tmp_path / "x")
    assert len(waits) == 4


def test_each_wait_is_twice_as_long_and_up_to_half_shorter(
    server: Server, tmp_path: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "FIRST_WAIT_SECONDS", 1.0)
    server.behave = say(503)
    for _ in range(5):
        with pytest.raises(DownloadError):
            get(server, tmp_path)
    for number, longest in enumerate((1, 2, 4, 8)):
        drawn = waits[number::4]
        assert all(longest / 2 <= seconds <= longest for seconds in drawn)
        assert len(set(drawn)) == 5


@pytest.mark.parametrize("told", ["7", "date"])
def test_the_retry_time_of_a_server_is_respected(
    server: Server, tmp_path: Path, waits: list[float], told: str
) -> None:
    after = email.utils.formatdate(time.time() + 7, usegmt=True) if told == "date" else told
    server.behave = in_turn(say(503, {"Retry-After": after}), give)
    assert get(server, tmp_path) == CONTENT
    (waited,) = waits
    assert 5 <= waited <= 7


def test_a_server_with_a_long_retry_time_is_given_up(
    server: Server, tmp_path: Path, waits: list[float]
) -> None:
    server.behave = say(429, {"Retry-After": "3600"})
    with pytest.raises(DownloadError, match=r"429 Too Many Requests; it asks to wait for 3,600 s"):
        get(server, tmp_path)
    assert waits == []


def test_an_invalid_retry_time_is_ignored(
    server: Server, tmp_path: Path, waits: list[float]
) -> None:
    server.behave = in_turn(say(503, {"Retry-After": "later"}), give)
    assert get(server, tmp_path) == CONTENT
    assert len(waits) == 1


def test_more_bytes_than_expected_are_not_read(server: Server, tmp_path: Path) -> None:
    def too_much(handler: Handler) -> None:
        handler.start(200, {})
        for _ in range(500):
            handler.send(bytes(10_000))

    server.behave = too_much
    with pytest.raises(DownloadError, match="expected 200,000 bytes, found more"):
        get(server, tmp_path)
    assert all(path.stat().st_size < 300_000 for path in tmp_path.iterdir())


def test_a_hash_is_compared_by_the_known_digits(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path, sha256=FAKE.sha256[:12].upper(), size=None) == CONTENT
    (tmp_path / "x").unlink()
    with pytest.raises(DownloadError, match="expected a file with SHA-256 0123abcd, found 200,000"):
        get(server, tmp_path, sha256="0123abcd", size=None)
    assert left_in(tmp_path) == []


def test_without_a_hash_a_file_of_another_size_is_fetched_anew(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"something")
    assert get(server, tmp_path, sha256=None, size=None) == b"something"
    with pytest.warns(UserWarning, match="the size does not match"):
        assert get(server, tmp_path, sha256=None) == CONTENT


def test_a_full_disk_is_reported_before_anything_is_fetched(server: Server, tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(DownloadError, match=r"No space left on device: [\d,]+ bytes are missing"):
        get(server, tmp_path, size=2 * free)
    assert server.paths == []
    assert left_in(tmp_path) == []


def test_the_bytes_are_on_the_disk_before_they_get_the_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []

    def sync(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size == len(CONTENT)
        assert not (tmp_path / "x").exists()
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", sync)
    get(server, tmp_path)
    assert synced == [(tmp_path / "x").stat().st_ino]


def mirrored(folder: Path, content: bytes = CONTENT) -> Path:
    (folder / "mirror" / FAKE.sha256).mkdir(parents=True)
    (folder / "mirror" / FAKE.sha256 / "fake.pt").write_bytes(content)
    return folder / "mirror"


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_mirror_is_asked_in_place_of_the_original(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slash: str
) -> None:
    monkeypatch.setattr(registry, "BASE_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("CLIPCHECK_BASE_URL", f"{server.address}/a/mirror{slash}")
    assert download.fetch("fake", tmp_path).read_bytes() == CONTENT
    assert server.paths == [f"/a/mirror/{FAKE.sha256}/fake.pt"]


@pytest.mark.parametrize("named", [str, Path.as_uri])
def test_a_mirror_may_be_a_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: Callable[[Path], str]
) -> None:
    monkeypatch.setenv("CLIPCHECK_BASE_URL", named(mirrored(tmp_path)))
    path = download.fetch("fake", tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    assert server.paths == []


def test_a_folder_that_does_not_have_it_is_a_download_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPCHECK_BASE_URL", str(tmp_path / "mirror"))
    with pytest.raises(DownloadError, match=r"No such file.*mirror by CLIPCHECK_BASE_URL"):
        download.fetch("fake", tmp_path / "cache")


def test_wrong_bytes_of_a_mirror_are_not_accepted(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPCHECK_BASE_URL", str(mirrored(tmp_path, OTHER)))
    with pytest.raises(DownloadError, match="found 200,000 bytes with SHA-256"):
        download.fetch("fake", tmp_path / "cache")
    assert left_in(tmp_path / "cache") == []


def test_a_transfer_resumes_from_another_mirror(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.behave = cut(HALF, '"1"')
    with pytest.raises(DownloadError):
        download.fetch("fake", tmp_path)
    with serving() as another:
        monkeypatch.setenv("CLIPCHECK_BASE_URL", another.address)
        another.behave = lambda handler: handler.serve(etag='"of another server"')
        assert download.fetch("fake", tmp_path).read_bytes() == CONTENT
    assert another.ranges[0] is not None


def test_an_address_of_no_known_kind_is_a_download_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for named in ("ftp://127.0.0.1", "http://", "http://[", "://"):
        monkeypatch.setenv("CLIPCHECK_BASE_URL", named)
        with pytest.raises(DownloadError, match="could not be fetched"):
            download.fetch("fake", tmp_path)
    assert left_in(tmp_path) == []


def test_a_password_in_an_address_is_used_and_not_printed(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[str | None] = []

    def refuse(handler: Handler) -> None:
        seen.append(handler.headers["Authorization"])
        handler.start(503 if len(seen) == 1 else 403, {})

    server.behave = refuse
    host = server.address.removeprefix("http://")
    monkeypatch.setenv("CLIPCHECK_BASE_URL", f"http://me:secret@{host}")
    with pytest.raises(DownloadError) as caught:
        download.fetch("fake", tmp_path)
    assert seen == ["Basic bWU6c2VjcmV0"] * 2
    assert "secret" not in str(caught.value) + caplog.text
    assert f"http://{host}/" in str(caught.value)
    assert f"http://{host}/" in caplog.text


class Proxy(ThreadingHTTPServer):
    """Replies to every request with CONTENT, and refuses to tunnel."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.asked: list[str] = []


class ProxyHandler(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def do_CONNECT(self) -> None:
        self.server.asked.append(f"CONNECT {self.path}")
        self.send_error(403, "not for you")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy())
        stack.enter_context(running(proxy))
        yield proxy


def test_the_proxy_of_the_environment_is_asked(
    server: Server, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("CLIPCHECK_BASE_URL", "http://there.is.none.invalid/models")
    assert download.fetch("fake", tmp_path).read_bytes() == CONTENT
    assert proxy.asked == [f"http://there.is.none.invalid/models/{FAKE.sha256}/fake.pt"]


def test_no_proxy_is_used_for_excluded_hosts(
    server: Server, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert get(server, tmp_path) == CONTENT
    assert proxy.asked == []


def test_a_proxy_that_refuses_to_tunnel_is_a_download_error(
    server: Server, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.server_port}")
    with pytest.raises(DownloadError, match=r"not for you.*the proxy \(https_proxy, no_proxy\)"):
        download.retrieve("https://there.is.none.invalid/x", tmp_path / "x", sha256=FAKE.sha256)
    assert set(proxy.asked) == {"CONNECT there.is.none.invalid:443"}


def test_the_hash_of_the_fake_is_that_of_its_content() -> None:
    assert hashlib.sha256(CONTENT).hexdigest() == FAKE.sha256


@pytest.mark.parametrize("number", NONE)
def test_a_file_system_without_locks_is_no_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse_locks(monkeypatch, number)
    part = leave(tmp_path, CONTENT[:HALF])
    assert get(server, tmp_path) == CONTENT
    # Its process may live: so it is not gone on with, and not taken away.
    assert server.ranges == [None]
    assert left_in(tmp_path) == sorted(["x", part.name])


def at_once(server: Server, folder: Path, *, wait: bool) -> list[bytes]:
    """Return what two downloads get if the second begins, and may end, while the first is half
    done."""
    half, over = threading.Event(), threading.Event()

    def pause(handler: Handler) -> None:
        handler.start(200, {"Content-Length": len(CONTENT)})
        handler.send(CONTENT[:HALF])
        half.set()
        over.wait(10)
        handler.send(CONTENT[HALF:])

    server.behave = in_turn(pause, give)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(get, server, folder)
        assert half.wait(10)
        second = pool.submit(get, server, folder)
        if wait:
            second.result(10)
        over.set()
        return [first.result(10), second.result(10)]


def test_two_concurrent_processes_make_one_request(server: Server, tmp_path: Path) -> None:
    assert at_once(server, tmp_path, wait=False) == [CONTENT] * 2
    assert server.ranges == [None]


def test_two_processes_without_locks_fetch_a_file_each(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_locks(monkeypatch)
    assert at_once(server, tmp_path, wait=True) == [CONTENT] * 2
    assert server.ranges == [None, None]
    assert left_in(tmp_path) == ["x"]


def test_two_processes_with_ineffective_locks_do_not_write_to_one_file(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_locks(monkeypatch)
    inodes: set[int] = set()
    write = transfer.Transfer._write

    def noting(self: transfer.Transfer, pieces: Iterator[bytes]) -> None:
        inodes.add(os.fstat(self._file.fileno()).st_ino)
        write(self, pieces)

    monkeypatch.setattr(transfer.Transfer, "_write", noting)
    assert at_once(server, tmp_path, wait=True) == [CONTENT] * 2
    assert len(inodes) == 2
    assert left_in(tmp_path) == ["x"]


@pytest.mark.parametrize("years", [-50, 50])
def test_a_clock_that_is_wrong_does_not_make_it_wait(
    server: Server,
    tmp_path: Path,
    waits: list[float],
    years: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.time()
    server.behave = in_turn(
        say(503, {"Retry-After": email.utils.formatdate(now + 7, usegmt=True)}), give
    )
    monkeypatch.setattr(time, "time", lambda: now + years * 365 * 86400)
    if years < 0:
        with pytest.raises(DownloadError, match="it asks to wait for"):
            get(server, tmp_path)
    else:
        assert get(server, tmp_path) == CONTENT
    assert sum(waits) == 0


def test_the_record_of_another_version_is_not_trusted(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path) == CONTENT
    record = tmp_path / ".x.verified.json"
    newer = {**json.loads(record.read_text()), "schema": 2}
    for written in (newer, [1], "sound"):
        (tmp_path / "x").write_bytes(OTHER)
        stat = (tmp_path / "x").stat()
        if isinstance(written, dict):
            written["mtime_ns"] = stat.st_mtime_ns
        record.write_text(json.dumps(written))
        with pytest.warns(UserWarning, match="re-downloading"):
            assert get(server, tmp_path) == CONTENT


GET = """
import sys
from clipcheck.checkpoints.download import retrieve
url, path, sha256, size = sys.argv[1:]
retrieve(url, path, sha256=sha256, size=int(size))
"""


def test_the_next_process_resumes_the_transfer_of_a_killed_one(
    server: Server, tmp_path: Path
) -> None:
    def stop_halfway(handler: Handler) -> None:
        handler.serve(upto=HALF)
        handler.server.over.wait(20)

    server.behave = stop_halfway
    arguments = [f"{server.address}/x", str(tmp_path / "x"), FAKE.sha256, str(FAKE.size)]
    with subprocess.Popen([sys.executable, "-c", GET, *arguments]) as process:
        until = time.monotonic() + 20
        while sum(part.stat().st_size for part in tmp_path.glob("x.*.part")) < HALF // 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        process.kill()
    (part,) = tmp_path.glob("x.*.part")
    kept = part.stat().st_size
    server.behave = give
    assert get(server, tmp_path) == CONTENT
    assert server.ranges == [None, f"bytes={kept}-"]
    assert left_in(tmp_path) == ["x"]
