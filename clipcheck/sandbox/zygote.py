"""The process that cells are forked from: it has imported torch, and has seen no file.

It serves who started it on a socket that it was started with, one message at a time: a cell to be
forked, with the descriptors that it gets; or one that has ended to be waited for. It ends when that
socket is closed, however who started it has ended, and its cells end with it.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

from clipcheck.sandbox.confine import confine, die_with
from clipcheck.sandbox.limits import Limits

MOST = 1 << 16
"""Bytes of a message to or from the zygote."""


def main(descriptor: int, modules: list[str]) -> None:
    """Serve until the other end is gone."""
    control = socket.socket(fileno=descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Who started it ends it.
    for module in modules:
        importlib.import_module(module)
    scratch: dict[int, str] = {}
    while True:
        try:
            text, descriptors, _, _ = socket.recv_fds(control, MOST, 3)
        except ConnectionError:
            text = b""
        if not text:
            _sweep(scratch)
            os._exit(0)
        message = json.loads(text)
        if message["do"] == "fork":
            pid = _fork(control, message, descriptors)
            scratch[pid] = message["scratch"]
            _send(control, {"pid": pid})
        else:
            _, status = os.waitpid(message["pid"], 0)
            del scratch[message["pid"]]
            _send(control, {"status": status})


def _sweep(scratch: dict[int, str]) -> None:
    """End the cells that nobody will end any more, and remove their folders."""
    for pid, folder in scratch.items():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        shutil.rmtree(folder, ignore_errors=True)


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    control.sendall(json.dumps(message).encode())


def _fork(control: socket.socket, message: dict[str, Any], descriptors: list[int]) -> int:
    own = os.getpid()
    pid = os.fork()
    if pid:
        for descriptor in descriptors:
            os.close(descriptor)
        return pid
    try:
        die_with(own)
        control.close()
        _cell(message, *descriptors)
    except BaseException:  # Nothing of the zygote's may go on in its copy.
        os._exit(70)
    os._exit(0)


def _cell(message: dict[str, Any], connection: int, sharing: int, memory: int) -> None:
    from clipcheck.sandbox.serving import Caller, serve
    from clipcheck.sandbox.wire import ROOM, Channel, Memory

    with open(os.devnull, "r+b") as nothing:  # noqa: PTH123
        for stream in range(3):  # What a file prints is not for the terminal.
            os.dup2(nothing.fileno(), stream)
    os.environ["TMPDIR"] = os.environ["HOME"] = message["scratch"]
    os.chdir(message["scratch"])
    limits = Limits(**message["limits"])
    channel = Channel(socket.socket(fileno=connection), Memory(ROOM, memory))
    caller = Caller(channel, socket.socket(fileno=sharing))
    readable = [Path(path) for path in message["readable"]]
    # The map of shared memory counts: limits are taken after it is there.
    held = confine(limits, readable, Path(message["scratch"]), gpu=message["gpu"])
    channel.send({"confined": held})
    serve(channel, caller, message["servant"], limits)
