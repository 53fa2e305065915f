"""Search one target: alter inputs, run them with limits of time and memory, save findings.

With atheris the search goes by what code an input reaches; without, it alters the seeds blindly.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from clipcheck.errors import ClipcheckError
from tests.fuzz.targets import Target

MOST_SECONDS = 5.0
"""That an input may take. What takes longer is a find."""

MOST_GROWTH = 1 << 30
"""Bytes by which the process may grow in all. What takes more is a find."""

_MINIMISING = 100
"""Runs that are spent on making a find smaller."""


class Hang(BaseException):
    """An input took too long. Not an `Exception`, so that no parser can catch it."""


@dataclass
class Tally:
    """Counts of a search.

    Attributes:
        runs: inputs that were tried.
        accepted: those that the parser took for sound.
        refused: by kind of error of ours, how many.
        finds: by what got out and where, how many.
        peak: bytes that the process had at most.
    """

    runs: int = 0
    accepted: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    finds: dict[str, int] = field(default_factory=dict)
    peak: int = 0


class Search:
    """Runs inputs of a target and keeps count.

    Args:
        target: what parses.
        folder: where finds are written, smallest form first found; None writes none.
        scratch: where inputs are written for the parser.
    """

    def __init__(self, target: Target, folder: Path | None, scratch: Path) -> None:
        self.target = target
        self.tally = Tally()
        self._folder = folder
        self._scratch = scratch

    def run(self, data: bytes) -> None:
        """Run an input. An unexpected exception of the parser is a finding, and is recorded."""
        (self._scratch / "current").write_bytes(data)  # for whoever looks after this process
        self.tally.runs += 1
        outcome = self._outcome(data)
        self.tally.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        if outcome is None:
            self.tally.accepted += 1
        elif outcome.startswith("refused: "):
            name = outcome.removeprefix("refused: ")
            self.tally.refused[name] = self.tally.refused.get(name, 0) + 1
        else:
            if outcome not in self.tally.finds:
                self._keep(outcome, data)
            self.tally.finds[outcome] = self.tally.finds.get(outcome, 0) + 1

    def _outcome(self, data: bytes) -> str | None:
        """Return None if the input is accepted, ``refused: KIND`` if refused, else the unexpected
        error."""
        try:
            with _at_most(MOST_SECONDS):
                self.target.run(data, self._scratch)
        except ClipcheckError as error:
            if _for_memory(error):
                return f"MemoryError within {_place(error)}"
            return f"refused: {type(error).__name__}"
        except (Exception, Hang) as error:
            return f"{_kind(error)} at {_place(error)}"
        return None

    def _keep(self, outcome: str, data: bytes) -> None:
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.target.name}-{hashlib.sha256(outcome.encode()).hexdigest()[:12]}"
        path = self._folder / name
        path.write_bytes(data)  # as it is first: making it smaller may end the process
        path.with_suffix(".txt").write_text(f"{outcome}\n", encoding="utf-8")
        if "Hang at" not in outcome:
            path.write_bytes(self._minimised(data, outcome))

    def _minimised(self, data: bytes, outcome: str) -> bytes:
        left, size = _MINIMISING, max(1, len(data) // 2)
        while size and left:
            at = 0
            while at < len(data) and left:
                shorter = data[:at] + data[at + size :]
                left -= 1
                if self._outcome(shorter) == outcome:
                    data = shorter
                else:
                    at += size
            size //= 2
        return data

    def tallied(self) -> str:
        """Return the counts as JSON."""
        return json.dumps(dataclasses.asdict(self.tally))


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _for_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, which our own error would hide."""
    while error is not None:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _kind(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")


def _place(error: BaseException) -> str:
    """Return the innermost line of clipcheck's, and the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/clipcheck/" in frame.filename] or frames
    named = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in (ours[-1], frames[-1])]
    return named[0] if named[0] == named[1] else f"{named[0]} in {named[1]}"


def altered(target: Target, seeds: list[bytes], rng: random.Random) -> bytes:
    """Return a seed, altered once or a few times."""
    data = rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = target.alter(data, rng)
    return data


def blindly(search: Search, seed: int, *, seconds: float = 1e9, runs: int = 1 << 60) -> None:
    """Alter the target's seeds, for this time or this number of inputs."""
    rng = random.Random(seed)
    seeds = search.target.seeds()
    end = time.monotonic() + seconds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while runs and time.monotonic() < end:
            search.run(altered(search.target, seeds, rng))
            runs -= 1


def bound_memory() -> None:
    """Let this process grow by at most `MOST_GROWTH`. It cannot be undone."""
    words = Path("/proc/self/statm").read_text(encoding="ascii").split()
    limit = int(words[0]) * resource.getpagesize() + MOST_GROWTH
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
