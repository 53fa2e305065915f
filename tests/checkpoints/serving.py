"""A local server of one file, whose behaviour each test sets."""

from __future__ import annotations

import hashlib
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from clipcheck.checkpoints.registry import Released

CONTENT = random.Random(0).randbytes(200_000)
HALF = len(CONTENT) // 2
FAKE = Released("fake", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


class Server(ThreadingHTTPServer):
    """Serves CONTENT unless set to behave otherwise, and records the requests."""

    daemon_threads = False  # so that closing the server waits until its sockets are closed too

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave: Callable[[Handler], None] = give
        self.paths: list[str] = []
        self.ranges: list[str | None] = []
        self.over = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.server.ranges.append(self.headers["Range"])
        with suppress(ConnectionError):  # the client may leave before the end
            self.server.behave(self)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def reply(self, content: bytes, length: int | None = len(CONTENT)) -> None:
        """Reply with this, whatever the request."""
        self.start(200, {} if length is None else {"Content-Length": length})
        self.send(content)

    def serve(
        self, content: bytes = CONTENT, *, upto: int | None = None, etag: str | None = None
    ) -> None:
        """Serve the request as servers with ranges do; stop at byte ``upto`` of the file."""
        headers: dict[str, object] = {} if etag is None else {"ETag": etag}
        start = self.wanted_from(etag)
        if start is None:
            self.start(200, {**headers, "Content-Length": len(content)})
            self.send(content[:upto])
        elif start >= len(content):
            self.start(416, {**headers, "Content-Range": f"bytes */{len(content)}"})
        else:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.start(206, {**headers, "Content-Length": len(content) - start})
            self.send(content[start:upto])

    def wanted_from(self, etag: str | None) -> int | None:
        if "Range" not in self.headers or self.headers.get("If-Range", etag) != etag:
            return None
        found = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])
        assert found is not None
        return int(found[1])

    def start(self, status: int, headers: dict[str, object]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def send(self, content: bytes) -> None:
        self.wfile.write(content)
        self.wfile.flush()


Behaviour = Callable[[Handler], None]


def give(handler: Handler) -> None:
    handler.serve()


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """Use each behaviour once, then the last one for all later requests."""
    left = list(behaviours)

    def behave(handler: Handler) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(handler)

    return behave


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    """Serve during the block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server, running(server):
        yield server
        server.over.set()
