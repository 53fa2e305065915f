"""The zygote: the process that forks sandboxes. It has imported what they need, and opened no file.

It answers its parent on a socket, one message at a time: fork a sandbox with these file
descriptors, or wait for one that has ended. When the socket is closed, because the parent has ended
for any reason, the zygote and its sandboxes end.
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
"""Size limit of a message to or from the zygote, in bytes."""


def main(descriptor: int, modules: list[str]) -> None:
    """Answer messages until the parent closes the socket."""
    control = socket.socket(fileno=descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
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
    """End the remaining sandboxes, and delete their folders."""
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
        _sandbox(message, *descriptors)
    except BaseException:  # the forked copy must not continue as a zygote
        os._exit(70)
    os._exit(0)


def _sandbox(message: dict[str, Any], connection: int, sharing: int, memory: int) -> None:
    from clipcheck.sandbox.serving import Caller, serve
    from clipcheck.sandbox.wire import ROOM, ArrayChannel, Channel, Memory

    with open(os.devnull, "r+b") as nothing:  # noqa: PTH123
        for stream in range(3):  # output of a file's code must not reach the terminal
            os.dup2(nothing.fileno(), stream)
    os.environ["TMPDIR"] = os.environ["HOME"] = message["scratch"]
    os.chdir(message["scratch"])
    limits = Limits(**message["limits"])
    kind = ArrayChannel if message["arrays"] else Channel
    channel = kind(socket.socket(fileno=connection), Memory(ROOM, memory))
    caller = Caller(channel, socket.socket(fileno=sharing))
    readable = [Path(path) for path in message["readable"]]
    # Limits are set after the shared memory is mapped, because the mapping counts.
    held = confine(limits, readable, Path(message["scratch"]), gpu=message["gpu"])
    channel.send({"confined": held})
    serve(channel, caller, message["handler"], limits, arrays=message["arrays"])
