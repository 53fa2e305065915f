"""Limits of a sandbox's time and memory."""

from __future__ import annotations

import os
from dataclasses import dataclass

from clipcheck.errors import UsageError
from clipcheck.system.sizes import bytes_in

SECONDS_VARIABLE = "CLIPCHECK_TIME_LIMIT"
"""Environment variable for the time limit of a call, in seconds."""

MEMORY_VARIABLE = "CLIPCHECK_MEMORY_LIMIT"
"""Environment variable for the memory limit of a sandbox."""

SECONDS = 300.0
"""Default seconds for a call: loading a file, or running a batch. A full-size ViT-B/32 takes less
than a second for either on two cores; the largest released model half a minute on one core."""

MEMORY = 6 * 10**9
"""Fixed part of the default memory limit in bytes: torch itself, and activations."""

TIMES = 8
"""Part of the default memory limit by the size of the file: weights in half precision are twice as
large in float32, and an interpreter and an unpacker may each hold two copies for a while."""


@dataclass(frozen=True)
class Limits:
    """Resource limits of a sandbox.

    Attributes:
        seconds: of a call.
        memory: bytes, without shared memory, which has its own limit.
        threads: of torch.
    """

    seconds: float
    memory: int
    threads: int


def limits_for(size: int, threads: int) -> Limits:
    """Return the limits for a file, or those of the environment.

    Raises:
        UsageError: a limit in the environment is invalid.
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
