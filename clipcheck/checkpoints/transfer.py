"""Copy what an address gives into a file: gone on with where it was cut off, tried again where that
may help."""

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
"""How often an address is asked before it is given up."""

TIMEOUT_SECONDS = 30.0
"""How long to wait for a connection, and then for each next piece, in seconds.

It bounds a stall, not the whole download, however slow that is.
"""

FIRST_WAIT_SECONDS = 1.0
"""Seconds before the second try. Before each further one it is twice as long; all are up to half
shorter, by chance, so that many clients do not come back at once."""

LONGEST_WAIT_SECONDS = 60.0
"""A server that asks for more patience than that is given up at once."""

# What a server says when it may answer another time.
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})

# In bytes. What has come of a piece is lost when the line breaks in it.
_PIECE = 64 * 1024

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Answer:
    """The bytes of a file from one on.

    Attributes:
        start: of the first.
        total: how many the whole file has, where that is told.
        pieces: the bytes.
    """

    start: int
    total: int | None
    pieces: Iterator[bytes]


class _PassingError(Exception):
    """A try that failed, after which another may not.

    Args:
        reason: why.
        wait: seconds that the server asks for; None where it leaves that to us.
    """

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Transfer:
    """One file from one address.

    Args:
        url: ``https:``, ``http:`` or ``file:``.
        file: what is written to; what it holds is gone on from.
        size: how many bytes there have to be, where that is known.
        hashed: whether the hash of all is known. If not, only what is known to come from the same
            version of the file, by its ETag, is put together.
        bar: is told how many bytes there are.

    Attributes:
        mixed: whether the bytes come from more than one answer, so that another try, from the
            beginning, may give others.
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
        """Bring all of it, of `TRIES` tries at most.

        Raises:
            OSError: it cannot be had, it is of another size, or the file cannot be written. All
                that requests raises is an OSError, or a ValueError where the address is malformed.
            ValueError: see there.
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
        """Forget what is there."""
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
                raise OSError(f"expected {self._size:,} bytes, found {answer.total:,} there")
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
        """Yield a server's response, and raise its errors as ours, until all of it is read."""
        import requests

        # Bytes as they are: a part of what is compressed on the way is of no use.
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
            raise  # a ConnectionError that stays
        except (
            requests.exceptions.ConnectionError,
            requests.exceptions.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            causes = list(_causes(error))
            if any(isinstance(cause, socket.gaierror) for cause in causes):
                # Asking again would find the same, after the system's own tries.
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
            raise _PassingError("the rest that was asked for is not what was given", wait=0)
        self._etag = _strong_etag(response)
        return _Answer(start, found[1], response.iter_content(_PIECE))

    def _known(self, response: Response) -> str | None:
        """The ETag that the rest has to have: any, where none is known."""
        return self._etag or _strong_etag(response)

    def _behind_the_end(self, response: Response, start: int) -> _Answer:
        """There is nothing from there on: all is here, or something that is none of it."""
        if response.headers.get("Content-Range") == f"bytes */{start}":
            return _Answer(start, start, iter(()))
        self.restart()
        raise _PassingError(f"more than the file has was there, {start:,} bytes", wait=0)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error of requests, and those that it wraps, from the outermost inwards."""
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
    """The host that urllib3 found no address for: that of the address, or of a proxy."""
    found = re.search(r"Failed to resolve '([^']+)'", str(error))
    return found[1] if found else None


def without_password(text: str) -> str:
    """The text, which may be shown: its addresses without what stands before an ``@``."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def _length(response: Response) -> int | None:
    told = response.headers.get("Content-Length", "")
    # Of what is encoded, it is another length.
    return int(told) if told.isdecimal() and "Content-Encoding" not in response.headers else None


def _content_range(response: Response) -> tuple[int, int | None] | None:
    """Return where a part begins, and how long the whole is, where the server says so."""
    told = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", told)
    if found is None:
        return None
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _strong_etag(response: Response) -> str | None:
    """Return the ETag that identifies a version to the byte; None for a weak one."""
    told = response.headers.get("ETag")
    return told if told and not told.startswith("W/") else None


def _retry_after(response: Response) -> float | None:
    """Seconds, where a server tells them or the time of day."""
    from urllib3 import Retry
    from urllib3.exceptions import InvalidHeader

    told = response.headers.get("Retry-After")
    try:
        return None if told is None else Retry().parse_retry_after(told)
    except InvalidHeader:
        return None
