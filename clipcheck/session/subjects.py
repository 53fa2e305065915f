"""From the name of a checkpoint to its file: found, or written with seeded weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipcheck.checkpoints import download, registry
from clipcheck.checkpoints.architecture import ARCHITECTURES

_RELEASED_BYTES = 2
"""Of a weight in a released archive: nearly all are in half precision."""


@dataclass(frozen=True)
class Subject:
    """The file that a name stands for.

    Attributes:
        path: the file.
        label: the name, and whether it stands for seeded weights.
        source: whether that is a released file, a file given by its path, or seeded weights.
        own: whether this run has written it.
    """

    path: Path
    label: str
    source: str
    own: bool = False


def find(name: str, start: Path, folder: Path) -> Subject:
    """Find or write the checkpoint of that name.

    A released name stands for the released file where that is in the cache, else for seeded
    weights of the same architecture; `Subject.source` tells which.

    Args:
        name: a released name, an architecture, or a path.
        start: the folder that paths start from.
        folder: where seeded weights are written to.
    """
    cached = _cached(name)
    if cached is not None:
        return Subject(download.fetch(name), name, f"the released file {cached}")
    if name in ARCHITECTURES:
        path = seeded_archive(name, folder)
        source = "seeded weights, NOT the released ones"
        return Subject(path, f"{name} (seeded weights)", source, own=True)
    return Subject(start / name, name, "the file given")


def size(name: str, start: Path) -> int:
    """Bytes of the checkpoint's file, or those of a released one with as many weights; 0 where
    there is no such file."""
    cached = _cached(name)
    if cached is None and name in ARCHITECTURES:
        return _RELEASED_BYTES * ARCHITECTURES[name].parameters
    try:
        return (cached or start / name).stat().st_size
    except OSError:
        return 0


def seeded_archive(name: str, folder: Path) -> Path:
    """An archive with seeded weights of the named architecture. Tests must not change it.

    It is written once for all processes that give the same folder.
    """
    from filelock import FileLock

    from clipcheck.checkpoints.checkpoint import Format
    from clipcheck.writers.convert import write
    from clipcheck.writers.synthesize import architecture_named, synthesize

    path = folder / f"seeded-{name.replace('/', '-')}.pt"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            architecture = architecture_named(name)
            write(architecture, synthesize(architecture), path, Format.ARCHIVE)
    return path


def _cached(name: str) -> Path | None:
    return download.cached(name) if name in registry.RELEASED else None
