"""File systems without working locks, like some network mounts."""

from __future__ import annotations

import errno
import os

import pytest

fcntl = pytest.importorskip("fcntl")

NONE = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


def refuse_locks(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOLCK) -> None:
    """Make every lock fail as unsupported."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


def pretend_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every lock succeed, for several processes at once."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
