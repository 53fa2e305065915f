"""Divide the threads and GPUs of a machine among workers of pytest-xdist.

By default each worker would start a thread for every core, and use the first GPU. Variables of the
environment, which torch and BLAS read when imported, change that. pytest-xdist sets them for each
worker, and for its replacement if it dies.
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
"""Variable that CUDA reads: the visible GPUs, by number or name."""


_GPU_NODES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of the drivers of NVIDIA, AMD and WSL."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads(cores: int, busy: int) -> int:
    """Return the threads of each of this number of computing workers."""
    return max(1, cores // max(1, busy))


def own_threads(environment: Mapping[str, str]) -> str | None:
    """Return the number that the user set, which is kept."""
    return next((environment[name] for name in THREADS if environment.get(name)), None)


def divide_cores(specs: Sequence[Any], busy: int) -> None:
    """Give each worker its share of the cores.

    Args:
        specs: of the workers, before they start.
        busy: how many of them compute at the same time.
    """
    if own_threads(os.environ) is not None:
        return
    share = str(threads(cores(), min(busy, len(specs))))
    for spec in specs:
        if own_threads(spec.env) is None:
            spec.env.update(dict.fromkeys(THREADS, share))


def visible(count: int, environment: Mapping[str, str]) -> list[str]:
    """Return the names of the first ``count`` GPUs that this process may use."""
    named = environment.get(GPUS)
    if named is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in named.split(",")][:count]


def deal(visible: Sequence[str], worker: int) -> str:
    """Return the GPU of a worker by its number, in turn; several may share one."""
    return visible[worker % len(visible)]


def deal_gpus(specs: Sequence[Any], count: int) -> None:
    """Let each worker see only one GPU.

    Args:
        specs: of the workers, before they start.
        count: of the GPUs that this process sees.
    """
    names = visible(count, os.environ)
    for number, spec in enumerate(specs):
        # Workers on other machines have other GPUs.
        if names and spec.popen:
            spec.env.setdefault(GPUS, deal(names, number))


def wanted_gpus(devices: Sequence[str]) -> int:
    """Return how many GPUs the devices need; ``cuda`` means all of this machine."""
    if "cuda" in devices:
        import torch

        return torch.cuda.device_count()
    return len({device for device in devices if device.startswith("cuda")})


def may_have_cuda() -> bool:
    """Tell whether torch might find a GPU here, without asking torch, which takes seconds."""
    if os.environ.get(GPUS, "0").strip() == "":
        return False
    if sys.platform == "darwin":
        return False
    if sys.platform == "linux":
        return any(Path(node).exists() for node in _GPU_NODES)
    return True


def dealt(devices: Sequence[str]) -> bool:
    """Tell whether GPUs are divided among workers: not if one is given by its number."""
    return "cuda" in devices and not any(device.startswith("cuda:") for device in devices)
