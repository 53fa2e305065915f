"""Divide a machine among the workers of pytest-xdist: threads, and GPUs.

Each worker would start a thread for every core, and take the first GPU. Both are told by variables
that torch and BLAS read when they are imported; pytest-xdist sets those of a worker before it
imports anything, and gives them to the worker that replaces a dead one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables that torch, MKL and OpenBLAS read."""

GPUS = "CUDA_VISIBLE_DEVICES"
"""Variable that CUDA reads: the GPUs that a process sees, by number or by their own names."""


_GPU_NODES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Files that the drivers of NVIDIA, AMD and WSL make."""


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads(cores: int, busy: int) -> int:
    """How many threads each of so many workers that compute may have."""
    return max(1, cores // max(1, busy))


def own_threads(environment: Mapping[str, str]) -> str | None:
    """The number that the user set, which is left alone."""
    return next((environment[name] for name in THREADS if environment.get(name)), None)


def divide_cores(specs: Sequence[Any], busy: int) -> None:
    """Give each worker its share of the cores.

    Args:
        specs: of the workers, before they start.
        busy: how many of them compute at a time.
    """
    if own_threads(os.environ) is not None:
        return
    share = str(threads(cores(), min(busy, len(specs))))
    for spec in specs:
        if own_threads(spec.env) is None:
            spec.env.update(dict.fromkeys(THREADS, share))


def visible(count: int, environment: Mapping[str, str]) -> list[str]:
    """The first ``count`` GPUs of those that the user lets this process see, by their names."""
    named = environment.get(GPUS)
    if named is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in named.split(",")][:count]


def deal(visible: Sequence[str], worker: int) -> str:
    """The GPU of a worker, by its number: in turn, so that several share one where they must."""
    return visible[worker % len(visible)]


def deal_gpus(specs: Sequence[Any], count: int) -> None:
    """Let each worker see one GPU alone.

    Args:
        specs: of the workers, before they start.
        count: of the GPUs that this process sees.
    """
    names = visible(count, os.environ)
    for number, spec in enumerate(specs):
        # Those of another machine are not ours to deal.
        if names and spec.popen:
            spec.env.setdefault(GPUS, deal(names, number))


def wanted_gpus(devices: Sequence[str]) -> int:
    """How many GPUs of this machine the devices are: ``cuda`` alone stands for all of them."""
    if "cuda" in devices:
        import torch

        return torch.cuda.device_count()
    return len({device for device in devices if device.startswith("cuda")})


def may_have_cuda() -> bool:
    """Whether torch may find a GPU here. False only where it cannot: asking torch takes seconds."""
    if os.environ.get(GPUS, "0").strip() == "":
        return False
    if sys.platform == "darwin":
        return False
    if sys.platform == "linux":
        return any(Path(node).exists() for node in _GPU_NODES)
    return True


def dealt(devices: Sequence[str]) -> bool:
    """Whether each worker gets a GPU of its own: not where one is asked for by its number."""
    return "cuda" in devices and not any(device.startswith("cuda:") for device in devices)
