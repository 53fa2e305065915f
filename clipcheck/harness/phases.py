"""Time and progress of a judgement by phase, and its memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from clipcheck.results.judgement import Judgement
from clipcheck.system.progress import Advance, Span

if TYPE_CHECKING:
    from clipcheck.sandbox.process import Sandbox

SHARED = {"inputs": 4, "load": 3, "eager": 9, "float64": 16}
"""Percent of the time of a check (full-size ViT-B/32, ``benchmarks.check``) for each phase that
runs once for all backends."""

OWN = {"build": 1, "candidate": 41, "modules": 22}
"""Percent of the time of the same check for each phase that runs for each backend."""

_PHASES = {
    "load": "loading on {device} in {dtype}",
    "inputs": "drawing images and prompts",
    "eager": "running the eager model",
    "float64": "running the eager model in float64",
    "build": "{backend}: building",
    "candidate": "{backend}: running",
    "own": "{backend}: running your own images and prompts",
    "modules": "{backend}: running its modules one by one",
    "search": "{backend}: shrinking the failing input, mostly within a minute",
    "alternative": "{backend}: comparing with other architectures",
    "localisation": "{backend}: looking for the module that departs first",
    "optimiser": "{backend}: running it with less graph optimisation",
    "layers": "{backend}: running it with each layer in float in turn",
}

_AFTERWARDS = ("search", "alternative", "localisation", "optimiser", "layers")
"""Phases of a failing candidate, whose time cannot be estimated."""


class Stopwatch:
    """Seconds by phase.

    Args:
        observe: called with a phase and the share that is done, from 0 to 1.
    """

    def __init__(self, observe: Callable[[str, float], None] = lambda _, __: None) -> None:
        self.seconds: dict[str, float] = {}
        self._observe = observe

    @contextmanager
    def phase(self, name: str) -> Iterator[Advance]:
        """Add the time of the block to this phase; yields a function that takes the share done."""
        self._observe(name, 0.0)
        started = time.perf_counter()
        try:
            yield lambda share: self._observe(name, share)
        finally:
            spent = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
        self._observe(name, 1.0)


class Phases:
    """Reports the progress of a judgement by phase; a repeated phase is reported once."""

    def __init__(self, span: Span, judgement: Judgement, shares: Mapping[str, float]) -> None:
        dtype = judgement.dtype
        shares = {p: s for p, s in shares.items() if p != "modules" or dtype == "float32"}
        self._span = span
        self._parts = dict(zip(shares, span.split(list(shares.values())), strict=True))
        known = {"device": judgement.device, "dtype": dtype, "backend": judgement.backend}
        self._words = {
            phase: f"{judgement.checkpoint}: {words.format(**known)}"
            for phase, words in _PHASES.items()
            if phase in (*shares, *_AFTERWARDS)
        }
        self._done: set[str] = set()

    def __call__(self, phase: str, share: float) -> None:
        """Report the share of a phase that is done, from 0 to 1."""
        if phase not in self._words or phase in self._done:
            return
        if share == 0.0:
            self._span.say(self._words[phase])
        if phase in self._parts:
            self._parts[phase].reach(share)
        else:
            self._span.stall()
        if share == 1.0:
            self._done.add(phase)


def peak_memory(sandbox: Sandbox | None) -> int | None:
    """Return the peak memory of this process and the sandbox in bytes; None on Windows.

    Memory that both have mapped, such as torch itself, counts twice.
    """
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return own if sandbox is None else own + sandbox.peak_memory
