"""Work of a cell: it answers calls, and reports their results."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clipcheck.errors import ClipcheckError
from clipcheck.sandbox.limits import Limits
from clipcheck.sandbox.wire import Channel, Memory, Message, Received

if TYPE_CHECKING:
    import torch

MEMORY, UNFORESEEN = "memory", "unforeseen"
"""Failures that are no error of clipcheck's own: those go by the names of their classes."""

MOST_WORDS = 2000
"""Characters of a message that are kept."""

_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "bad_alloc", "out of memory")

Answer = tuple[Mapping[str, Any], Sequence["torch.Tensor"]]
"""Result of a servant's methods."""


def serve(channel: Channel, caller: Caller, servant: str, limits: Limits) -> None:
    """Do what comes, one thing after another, until the other end is gone.

    Args:
        servant: ``module:Class``. Made with the caller; its public methods are what can be asked
            for: they take the tensors that came, and what came with them by name.
    """
    import torch

    torch.set_num_threads(limits.threads)
    module, _, name = servant.partition(":")
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
        raise  # The other end is gone.
    except Exception as error:  # Libraries raise nearly anything.
        channel.send({"failed": _told(error)})


class Caller:
    """Lets a servant ask back while it is doing what it was asked for.

    Args:
        sharing: a socket that descriptors of shared memory come by.
    """

    def __init__(self, channel: Channel, sharing: socket.socket) -> None:
        self._channel = channel
        self._sharing = sharing

    def ask(self, question: Message, tensors: Sequence[torch.Tensor] = ()) -> Message:
        """Ask the other end, and return its answer."""
        self._channel.send({"asks": question}, tensors)
        return self._channel.receive().message

    def shared(self, size: int) -> Memory:
        """The piece of memory of that size that was shared next. What is written to it stays
        here."""
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
    """The last line: TorchScript's interpreter puts its own traceback before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[-1:]])[:MOST_WORDS]


def _for_memory(error: BaseException | None) -> BaseException | None:
    """The error that there was no memory, if that is behind it: torch and others say so in words
    alone."""
    behind = None
    for _ in range(10):
        if error is None:
            break
        words = str(error).lower()
        if isinstance(error, MemoryError) or any(phrase in words for phrase in _NO_MEMORY):
            behind = error
        error = error.__cause__ or error.__context__
    return behind
