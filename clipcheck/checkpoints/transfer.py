"""Download a URL into a file: resume after an interruption, retry after temporary errors."""

from __future__ import annotations

import logging
import os
import random
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeGuard
from urllib.parse import urlsplit
from urllib.request import url2pathname

if TYPE_CHECKING:
    from requests import Response
    from tqdm import tqdm

TRIES = 5
"""Most tries of a download."""

TIMEOUT_SECONDS = 30.0
"""Longest wait for a connection, and then for each piece, in seconds.

It does not limit the whole download.
"""

FIRST_WAIT_SECONDS = 1.0
"""Seconds before the second try, doubled before each further try. Each wait is shortened at random
by up to half, so that many clients do not retry at the same time."""

LONGEST_WAIT_SECONDS = 60.0
"""Most seconds to wait: if a server asks for a longer wait, the download fails at once."""

# Status codes after which a retry may succeed.
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})

# Bytes of a piece. If the connection breaks within a piece, the piece is lost.
_PIECE = 64 * 1024

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Answer:
    """The bytes of a file from a position on.

    Attributes:
        start: position of the first byte.
        total: bytes of the whole file, or None if not known.
        pieces: the bytes.
    """

    start: int
    total: int | None
    pieces: Iterator[bytes]


class _PassingError(Exception):
    """A try that failed, where a retry may succeed.

    Args:
        reason: of the failure.
        wait: seconds that the server asks to wait; None if it does not say.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Transfer:
    """The download of one file from one URL.

    Args:
        url: ``https:``, ``http:`` or ``file:``.
        file: to write to; the download resumes after the bytes that it has.
        size: expected number of bytes, or None if not known.
        hashed: whether the caller knows the hash of the whole file. If not, only pieces of the same
            version, by its ETag, are joined.
        bar: progress bar, in bytes.

    Attributes:
        mixed: whether the bytes come from several responses, so that a new download from the
            beginning may give other bytes.
    """

    def __init__(
        self, url: str, file: BinaryIO, *, size: int | None, hashed: bool, bar: tqdm[object]
    ) -> None:
        self.mixed = False
        self._url = url
        self._file = file
        self._size = size
        self._hashed = hashed
        self._bar = bar
        self._etag: str | None = None

    def run(self) -> None:
        """Download the whole file, in at most `TRIES` tries.

        Raises:
            OSError: the download failed, the size differs, or the file cannot be written. The
                exceptions of requests are OSErrors, except for a malformed URL.
            ValueError: the URL is malformed.
        """
        for tried in range(1, TRIES + 1):
            try:
                self._go_on()
                return
            except _PassingError as error:
                if tried == TRIES:
                    raise OSError(f"{error} (tried {TRIES} times)") from error
                self._wait(error, tried)

    def restart(self) -> None:
        """Delete the bytes in the file."""
        self._file.seek(0)
        self._file.truncate()
        self.mixed = False

    def _go_on(self) -> None:
        start = self._file.seek(0, os.SEEK_END)
        if start and not (self._hashed or self._etag):
            self.restart()
            start = 0
        if start and start == self._size:
            self.mixed = True
            return
        with self._answer(start) as answer:
            if self._size is not None and answer.total not in (None, self._size):
                raise OSError(f"expected {self._size:,} bytes, the server has {answer.total:,}")
            if answer.start:
                self.mixed = True
            else:
                self.restart()
            self._write(answer.pieces)
        self._require_all(answer.total if self._size is None else self._size)

    def _write(self, pieces: Iterator[bytes]) -> None:
        self._show()
        for piece in pieces:
            self._file.write(piece)
            self._show()
            if self._size is not None and self._file.tell() > self._size:
                raise OSError(f"expected {self._size:,} bytes, found more")

    def _require_all(self, total: int | None) -> None:
        found = self._file.tell()
        if total is not None and found < total:
            raise _PassingError(f"cut off after {found:,} of {total:,} bytes")

    def _show(self) -> None:
        self._bar.update(self._file.tell() - self._bar.n)

    def _wait(self, error: _PassingError, tried: int) -> None:
        seconds = error.wait
        if seconds is None:
            share = random.uniform(0.5, 1)  # noqa: S311 - nothing secret
            seconds = FIRST_WAIT_SECONDS * 2 ** (tried - 1) * share
        elif seconds > LONGEST_WAIT_SECONDS:
            raise OSError(f"{error}; it asks to wait for {seconds:,.0f} s") from error
        self._bar.clear()
        _log.warning(
            "%s: %s; try %d of %d in %.1f s",
            without_password(self._url),
            without_password(str(error)),
            tried + 1,
            TRIES,
            seconds,
        )
        time.sleep(seconds)

    @contextmanager
    def _answer(self, start: int) -> Iterator[_Answer]:
        if urlsplit(self._url).scheme == "file":
            with Path(url2pathname(urlsplit(self._url).path)).open("rb") as source:
                source.seek(start)
                total = os.fstat(source.fileno()).st_size
                yield _Answer(start, total, iter(partial(source.read, _PIECE), b""))
        else:
            with self._response(start) as response:
                yield self._read(response, start)

    @contextmanager
    def _response(self, start: int) -> Iterator[Response]:
        """Yield a server's response, and convert the errors of reading it to ours."""
        import requests

        # No compression: a part of a compressed response could not be used.
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if self._etag:
                headers["If-Range"] = self._etag
        try:
            with requests.get(
                self._url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS
            ) as response:
                yield response
        except requests.exceptions.SSLError:
            raise  # a ConnectionError that a retry does not solve
        except (
            requests.exceptions.ConnectionError,
            requests.exceptions.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            causes = list(_causes(error))
            if any(isinstance(cause, socket.gaierror) for cause in causes):
                # The system has retried already.
                host = next(filter(None, map(_unresolved, causes)), urlsplit(self._url).hostname)
                raise OSError(f"no address is known for {host} (no network?)") from error
            system = next((c.strerror for c in causes if _is_of_the_system(c)), None)
            raise _PassingError(system or str(error)) from error

    def _read(self, response: Response, start: int) -> _Answer:
        status = response.status_code
        if status in _PASSING_STATUS:
            raise _PassingError(f"{status} {response.reason}", _retry_after(response))
        if status == 416 and start:
            return self._behind_the_end(response, start)
        response.raise_for_status()
        if status == 206:
            return self._rest(response, start)
        if status != 200:
            raise OSError(f"expected 200 OK, found {status} {response.reason}")
        self._etag = _strong_etag(response)
        return _Answer(0, _length(response), response.iter_content(_PIECE))

    def _rest(self, response: Response, start: int) -> _Answer:
        found = _content_range(response)
        if found is None or found[0] != start or _strong_etag(response) != self._known(response):
            self.restart()
            raise _PassingError("the server sent another part than requested", wait=0)
        self._etag = _strong_etag(response)
        return _Answer(start, found[1], response.iter_content(_PIECE))

    def _known(self, response: Response) -> str | None:
        """Return the expected ETag of the rest: the known one, or else that of the response."""
        return self._etag or _strong_etag(response)

    def _behind_the_end(self, response: Response, start: int) -> _Answer:
        """Handle status 416: the file is complete, or it has more bytes than the server's."""
        if response.headers.get("Content-Range") == f"bytes */{start}":
            return _Answer(start, start, iter(()))
        self.restart()
        raise _PassingError(f"the partial file had {start:,} bytes, too many", wait=0)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error of requests and the errors that it wraps, from the outermost inwards."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        inner = [getattr(each, "reason", None), each.__cause__, *each.args]
        waiting += [cause for cause in inner if isinstance(cause, BaseException)]


def _is_of_the_system(error: BaseException) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and isinstance(error.strerror, str)


def _unresolved(error: BaseException) -> str | None:
    """Return the host, of the URL or a proxy, for which urllib3 found no address, or None."""
    found = re.search(r"Failed to resolve '([^']+)'", str(error))
    return found[1] if found else None


def without_password(text: str) -> str:
    """Remove user names and passwords from the URLs in a text."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def _length(response: Response) -> int | None:
    told = response.headers.get("Content-Length", "")
    # For an encoded response, the length is that of the encoded bytes.
    return int(told) if told.isdecimal() and "Content-Encoding" not in response.headers else None


def _content_range(response: Response) -> tuple[int, int | None] | None:
    """Return the position of a part, and the length of the whole file if the server tells it."""
    told = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", told)
    if found is None:
        return None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _strong_etag(response: Response) -> str | None:
    """Return the ETag if it identifies the exact bytes, or None for a weak or missing one."""
    told = response.headers.get("ETag")
    return told if told and not told.startswith("W/") else None


def _retry_after(response: Response) -> float | None:
    """Return the seconds to wait, from a ``Retry-After`` in seconds or as a date, or None."""
    from urllib3 import Retry
    from urllib3.exceptions import InvalidHeader

    told = response.headers.get("Retry-After")
    try:
        return None if told is None else Retry().parse_retry_after(told)
    except InvalidHeader:
        return None
