"""What the consistency tests work on: a checkpoint, checked on a device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.checkpoints import download, registry
from clipcheck.checkpoints.architecture import ARCHITECTURES

if TYPE_CHECKING:
    import pytest

    from clipcheck.checking import Result


@dataclass(frozen=True)
class Subject:
    """A checkpoint, and what a check of it found.

    Attributes:
        source: whether that is a released file, a file given by its path, or seeded weights.
        result: one judgement for each dtype.
    """

    source: str
    result: Result


def check_subject(
    name: str,
    device: str,
    tmp_path_factory: pytest.TempPathFactory,
    *,
    atol: float,
    rtol: float,
) -> Subject:
    """Find or write the checkpoint of that name, and check it.

    A released name stands for the released file where that is in the cache, else for seeded
    weights of the same architecture; `Subject.source` tells which.
    """
    from clipcheck.checking import check

    path, source = _find(name, tmp_path_factory)
    target = spread(device)
    result = check(path, device=target, atol=atol, rtol=rtol)
    return Subject(f"{name} on {target}: {source}", result)


def _find(name: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    cached = download.cached(name) if name in registry.available_models() else None
    if cached is not None:
        return download.fetch(name), f"the released file {cached}"
    if name in ARCHITECTURES:
        return seeded_archive(name, tmp_path_factory), "seeded weights, NOT the released ones"
    return Path(name), "the file given"


def seeded_archive(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with seeded weights of the named architecture. Tests must not change it.

    It is written once for all workers of pytest-xdist, which share the folder above their own.
    """
    from filelock import FileLock

    from clipcheck.checkpoints.checkpoint import Format
    from clipcheck.writers.convert import write
    from clipcheck.writers.synthesize import architecture_named, synthesize

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path = folder / f"seeded-{name.replace('/', '-')}.pt"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            architecture = architecture_named(name)
            write(architecture, synthesize(architecture), path, Format.ARCHIVE)
    return path


def spread(device: str) -> str:
    """With several workers, ``cuda`` is another GPU for each: they would all take the first."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    if device != "cuda":
        return device
    import torch

    return f"cuda:{int(worker.removeprefix('gw')) % max(torch.cuda.device_count(), 1)}"
