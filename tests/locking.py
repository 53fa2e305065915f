"""File systems whose locks are none, as some that are mounted over a network."""

from __future__ import annotations

import errno
import os

import pytest

fcntl = pytest.importorskip("fcntl")

NONE = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


def refuse_locks(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOLCK) -> None:
    """Whoever asks for a lock is told that there are none."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


def pretend_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a lock has it, and so has everybody else."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
