"""The sandbox's side: answer requests."""

from __future__ import annotations

import importlib
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clipcheck.errors import ClipcheckError
from clipcheck.sandbox.limits import Limits
from clipcheck.sandbox.wire import Channel, Memory, Message, Received
from clipcheck.system.workers import THREADS

if TYPE_CHECKING:
    import torch

MEMORY, UNFORESEEN = "memory", "unforeseen"
"""Names of failures that are none of clipcheck's errors, which have the names of their classes."""

MOST_WORDS = 2000
"""Most characters of an error message."""

_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "bad_alloc", "out of memory")

Answer = tuple[Mapping[str, Any], Sequence["torch.Tensor"]]
"""Result of a handler's method."""


def serve(
    channel: Channel, caller: Caller, handler: str, limits: Limits, *, arrays: bool = False
) -> None:
    """Answer requests, one after another, until the parent closes the channel.

    Args:
        handler: as ``module:Class``. It is constructed with the caller. Its public
            methods answer requests: they take the tensors, and the named values as keywords.
        arrays: whether tensors are numpy's arrays, so that torch need not be imported.
    """
    if arrays and "torch" not in sys.modules:
        os.environ[THREADS[0]] = str(limits.threads)
    else:
        import torch

        torch.set_num_threads(limits.threads)
    module, _, name = handler.partition(":")
    served = getattr(importlib.import_module(module), name)(caller)
    while True:
        try:
            received = channel.receive()
        except EOFError:
            return
        _answer(channel, served, received)


def _answer(channel: Channel, served: object, received: Received) -> None:
    message = received.message
    try:
        done, tensors = getattr(served, message["do"])(received.tensors, **message["with"])
        channel.send({"done": done}, tensors)
    except OSError:
        raise  # the parent has closed the channel
    except Exception as error:  # libraries raise all kinds of errors
        channel.send({"failed": _told(error)})


class Caller:
    """Lets a handler ask the parent questions during a request.

    Args:
        sharing: socket for file descriptors of shared memory.
    """

    def __init__(self, channel: Channel, sharing: socket.socket) -> None:
        self._channel = channel
        self._sharing = sharing

    def ask(self, question: Message, tensors: Sequence[torch.Tensor] = ()) -> Message:
        """Ask the parent a question, and return its answer."""
        self._channel.send({"asks": question}, tensors)
        return self._channel.receive().message

    def shared(self, size: int) -> Memory:
        """Receive the next shared memory, of this size. Writes to it are private to the sandbox."""
        _, (descriptor,), _, _ = socket.recv_fds(self._sharing, 1, 1)
        return Memory(size, descriptor, private=True)


def _told(error: Exception) -> dict[str, str]:
    for_memory = _for_memory(error)
    if for_memory is not None:
        return {"kind": MEMORY, "problem": _words(for_memory), "remedy": ""}
    if isinstance(error, ClipcheckError):
        path = "" if error.path is None else error.path
        told = {"kind": type(error).__name__, "problem": error.problem, "remedy": error.remedy}
        return {**{name: words[:MOST_WORDS] for name, words in told.items()}, "path": path}
    return {"kind": UNFORESEEN, "problem": _words(error), "remedy": ""}


def _words(error: BaseException) -> str:
    """Return the last line of a message, after TorchScript's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[-1:]])[:MOST_WORDS]


def _for_memory(error: BaseException | None) -> BaseException | None:
    """Return the error that says that memory ran out, if that is the cause: torch and others say it
    only in the message."""
    behind = None
    for _ in range(10):
        if error is None:
            break
        words = str(error).lower()
        if isinstance(error, MemoryError) or any(phrase in words for phrase in _NO_MEMORY):
            behind = error
        error = error.__cause__ or error.__context__
    return behind
