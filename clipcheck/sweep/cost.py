"""Estimate the cost of a sweep: bytes, operations, and seconds for a number of workers.

The time of a check has a fixed part, a part for each byte that is read and hashed, and a part for
each operation. ``cost.toml`` in this folder has the figures, measured by
``python -m benchmarks.sweep``, and the machine.
"""

from __future__ import annotations

import heapq
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from clipcheck.backends.registry import ALL, backend_named
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.keys import specs
from clipcheck.harness.phases import OWN, SHARED

_GIGA = 1e9

_PASS = SHARED["eager"]
"""Share of a check's time for one pass of the eager model over all inputs."""


class Flops(NamedTuple):
    """Operations of one pass, in units of 10^9; a multiplication and an addition are two."""

    image: float
    text: float


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Measured rates.

    Attributes:
        fixed: seconds of a check with almost nothing to compute.
        start: seconds until a new worker can judge.
        per_gigabyte: seconds to read and hash 1 GB.
        per_gigaflop: seconds by the number of threads.
        build: by backend, seconds to build its program.
        fetch: bytes per second of all workers together; assumed, not measured.
    """

    machine: str
    fixed: float
    start: float
    per_gigabyte: float
    per_gigaflop: Mapping[int, float]
    build: Mapping[str, float]
    fetch: float

    def gigaflop(self, threads: int) -> float:
        """Return the seconds with this number of threads, or with the most that were measured."""
        fitting = [count for count in self.per_gigaflop if count <= threads]
        return self.per_gigaflop[max(fitting, default=min(self.per_gigaflop))]


@cache
def rates() -> Rates:
    """Return the measured rates."""
    text = files("clipcheck.sweep").joinpath("cost.toml").read_text(encoding="utf-8")
    found = tomllib.loads(text)
    threads = {int(count): seconds for count, seconds in found.pop("per_gigaflop").items()}
    return Rates(**found, per_gigaflop=threads)


@cache
def flops(architecture: Architecture) -> Flops:
    """Return the operations of one pass through each tower, as torch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from clipcheck.families.registry import over

    a = architecture
    found = []
    with torch.device("meta"):
        model = over(a, {key: torch.empty(spec.shape) for key, spec in specs(a)})
        image = torch.empty(1, 3, a.image_resolution, a.image_resolution)
        text = torch.empty(1, a.context_length, dtype=torch.int64)
        for encode, given in ((model.encode_image, image), (model.encode_text, text)):
            with FlopCounterMode(display=False) as counter:
                encode(given)
            found.append(counter.get_total_flops() / _GIGA)
    return Flops(*found)


def seconds_of_check(
    pass_of_one: Flops | None,
    size: int,
    backends: Sequence[str],
    dtype: str,
    examples: int,
    threads: int,
    measured: Rates | None = None,
) -> float:
    """Estimate the seconds of a check on one worker.

    Args:
        pass_of_one: of the checkpoint; None to estimate it from the size.
        size: of the file in bytes.
        backends: to run.
        dtype: to compute in; modules are judged only in float32.
        examples: number of images, and of texts.
        threads: of the worker.
        measured: by default `rates`.
    """
    known = measured or rates()
    built = sum(known.build.get(backend.partition(":")[0], 0.0) for backend in backends)
    read = known.per_gigabyte * size / _GIGA
    gigaflops = gigaflops_of_check(pass_of_one or _guessed(size), backends, dtype, examples)
    return known.fixed + built + read + gigaflops * known.gigaflop(threads)


def gigaflops_of_check(
    pass_of_one: Flops, backends: Sequence[str], dtype: str, examples: int
) -> float:
    """Operations of a check, in units of 10^9; see `seconds_of_check`."""
    shares = sum(SHARED[phase] for phase in ("eager", "float64"))
    shares += sum(OWN[phase] for each in backends for phase in _phases(each, dtype))
    return shares / _PASS * examples * (pass_of_one.image + pass_of_one.text)


def _phases(backend: str, dtype: str) -> tuple[str, ...]:
    """Return the backend's own phases in which models run; modules are judged only in archives."""
    runs_modules = backend in ("", ALL) or backend_named(backend).runs_modules
    with_modules = runs_modules and dtype in ("", "float32")
    return ("candidate", "modules") if with_modules else ("candidate",)


def _guessed(size: int) -> Flops:
    """Estimate the operations of a file in half precision as those of a ViT-B/32, which uses 58
    percent of its weights for each of 50 patches, and 25 percent for each of 77 tokens."""
    weights = size / 2 / _GIGA
    return Flops(2 * 50 * 0.58 * weights, 2 * 77 * 0.25 * weights)


def makespan(
    seconds: Sequence[float],
    workers: int,
    bytes_to_fetch: int = 0,
    measured: Rates | None = None,
) -> float:
    """Estimate the seconds of all jobs, if each free worker takes the longest remaining one.

    Args:
        seconds: of each job.
        workers: that start at the same time.
        bytes_to_fetch: by all jobs, over a line that they share: no less than that takes.
        measured: by default `rates`.
    """
    known = measured or rates()
    free = [known.start] * workers
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + each)
    return max(*free, bytes_to_fetch / known.fetch) if seconds else 0.0
