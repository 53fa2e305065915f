"""How much time and memory a cell may take."""

from __future__ import annotations

import os
from dataclasses import dataclass

from clipcheck.errors import UsageError
from clipcheck.system.sizes import bytes_in

SECONDS_VARIABLE = "CLIPCHECK_TIME_LIMIT"
"""The environment variable that says how many seconds one call may take."""

MEMORY_VARIABLE = "CLIPCHECK_MEMORY_LIMIT"
"""The environment variable that says how much memory a cell may take."""

SECONDS = 300.0
"""Seconds for one call: loading a file, or running one batch. A full-size ViT-B/32 takes less than
a second for either on two cores; the largest released model, on one, half a minute."""

MEMORY = 6 * 10**9
"""Memory in bytes, beside the part that depends on the size of the file: torch itself, and
activations."""

TIMES = 8
"""How many times the size of its file a cell may take: weights in half precision are twice as large
in float32, an interpreter may hold two readings of them for a while, and so may what unpacks."""


@dataclass(frozen=True)
class Limits:
    """Resources that a cell may take.

    Attributes:
        seconds: for one call.
        memory: bytes of its own; shared memory is counted by itself.
        threads: that torch may use.
    """

    seconds: float
    memory: int
    threads: int


def limits_for(size: int, threads: int) -> Limits:
    """Return the limits that suit a file, or those that the environment sets.

    Raises:
        UsageError: the environment says something that is no limit.
    """
    return Limits(_seconds(), _memory(size), threads)


def _seconds() -> float:
    written = os.environ.get(SECONDS_VARIABLE, "").strip()
    if not written:
        return SECONDS
    try:
        seconds = float(written)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(
            f"{SECONDS_VARIABLE}: expected a number of seconds above 0, found {written!r}",
            remedy=f"Give one as in 600; or leave it unset for {SECONDS:g}.",
        )
    return seconds


def _memory(size: int) -> int:
    written = os.environ.get(MEMORY_VARIABLE, "").strip()
    if not written:
        return MEMORY + TIMES * size
    found = bytes_in(written)
    if not found:
        raise UsageError(
            f"{MEMORY_VARIABLE}: expected a size as in 8GB or 500MB, found {written!r}",
            remedy=f"Give bytes, or a number with kB, MB, GB or TB; or leave it unset for "
            f"{MEMORY / 1e9:g} GB and {TIMES} times the size of the file.",
        )
    return found
