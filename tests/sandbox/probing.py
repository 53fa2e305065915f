"""A handler that tries what malicious code in its process would try."""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from clipcheck.sandbox.serving import Answer, Caller

HERE = Path(__file__).parent
HANDLER = f"{__name__}:Prober"

Tensors = list[torch.Tensor]


def _tried(act: Callable[[], object]) -> Answer:
    """Return the system's error in a word, or "done"."""
    try:
        return {"came": str(act())}, ()
    except OSError as error:
        return {"came": os.strerror(error.errno or 0)}, ()


def called(number: int) -> int:
    """Call Linux by number: descriptor -1 and no path.

    Raises:
        OSError: the system's error.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    came = int(libc.syscall(number, *[ctypes.c_long(-1), *[ctypes.c_long(0)] * 4]))
    if came < 0:
        raise OSError(ctypes.get_errno(), "")
    return came


class Prober:
    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def echo(self, tensors: Tensors, **words: Any) -> Answer:
        return words, tensors

    def reads(self, _: Tensors, path: str) -> Answer:
        return _tried(lambda: Path(path).read_bytes()[:8])

    def lists(self, _: Tensors, path: str) -> Answer:
        return _tried(lambda: len(os.listdir(path)))  # noqa: PTH208

    def writes(self, _: Tensors, path: str) -> Answer:
        return _tried(lambda: Path(path).write_text("x"))

    def removes(self, _: Tensors, path: str) -> Answer:
        return _tried(lambda: Path(path).unlink())

    def changes_rights(self, _: Tensors, path: str) -> Answer:
        return _tried(lambda: Path(path).chmod(0o777))

    def calls(self, _: Tensors, number: int) -> Answer:
        """Make a system call with arguments that no call can use."""
        return _tried(lambda: called(number))

    def opens_a_socket(self, _: Tensors) -> Answer:
        return _tried(lambda: socket.socket().close())

    def forks(self, _: Tensors) -> Answer:
        return _tried(os.fork)

    def runs_a_program(self, _: Tensors) -> Answer:
        return _tried(lambda: os.execv("/bin/true", ["true"]))

    def signals(self, _: Tensors, pid: int) -> Answer:
        return _tried(lambda: os.kill(pid, 0))

    def network(self, _: Tensors) -> Answer:
        return {"came": os.readlink("/proc/self/ns/net")}, ()  # noqa: PTH115

    def status(self, _: Tensors) -> Answer:
        lines = Path("/proc/self/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line), ()

    def environment(self, _: Tensors) -> Answer:
        return {"environment": sorted(os.environ), "home": os.environ["HOME"]}, ()

    def dies(self, _: Tensors, by: int) -> Answer:
        os.kill(os.getpid(), by)
        return {}, ()

    def exits(self, _: Tensors, code: int) -> Answer:
        os._exit(code)

    def hangs(self, _: Tensors) -> Answer:
        time.sleep(3600)
        return {}, ()

    def stops(self, _: Tensors) -> Answer:
        os.kill(os.getpid(), signal.SIGSTOP)
        return {}, ()

    def takes(self, _: Tensors, size: int) -> Answer:
        torch.ones(size, dtype=torch.uint8)
        return {}, ()

    def maps(self, _: Tensors, size: int) -> Answer:
        return _tried(lambda: len(mmap.mmap(-1, size)))

    def opens(self, _: Tensors, count: int) -> Answer:
        return _tried(lambda: [os.open("/dev/null", os.O_RDONLY) for _ in range(count)])

    def starts_threads(self, _: Tensors, count: int) -> Answer:
        """Start threads, and return how many there are."""
        with contextlib.suppress(RuntimeError):
            for _ in range(count):
                _thread.start_new_thread(time.sleep, (3600,))
        return {"came": len(os.listdir("/proc/self/task"))}, ()  # noqa: PTH208

    def fails(self, _: Tensors) -> Answer:
        raise ZeroDivisionError("of its own")

    def says(self, _: Tensors, raw: str) -> Answer:
        """Send bytes that are not a message of the protocol."""
        self._caller._channel._connection.sendall(bytes.fromhex(raw))
        time.sleep(3600)
        return {}, ()

    def asks(self, _: Tensors, times: int) -> Answer:
        return {"answers": [self._caller.ask({"n": n})["n"] for n in range(times)]}, ()

    def spoils(self, _: Tensors, size: int) -> Answer:
        """Write to shared memory, and return what it has before and after."""
        memory = self._caller.shared(size)
        before = memory.buffer[:4]
        memory.buffer[:4] = b"evil"
        return {"before": before.decode(), "after": memory.buffer[:4].decode()}, ()

    def grows(self, _: Tensors, size: int) -> Answer:
        return _tried(lambda: os.ftruncate(self._caller._channel._memory.descriptor, size))
