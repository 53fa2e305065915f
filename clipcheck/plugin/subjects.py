"""From the name of a checkpoint to its file: found, or written with seeded weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipcheck.checkpoints import download, registry
from clipcheck.checkpoints.architecture import ARCHITECTURES
from clipcheck.checkpoints.opening import size_of
from clipcheck.system.locks import locked_where_possible

_RELEASED_BYTES = 2
"""Of a weight in a released archive: nearly all are in half precision."""


SEEDED = "seeded:"
"""Stands before the name of an architecture that seeded weights are written of."""


@dataclass(frozen=True)
class Subject:
    """The checkpoint that a name stands for.

    Attributes:
        checkpoint: its path, or its released name.
        label: the name for people, with a note where the weights are seeded.
        source: a released file, a file given by its path, or seeded weights.
        own: whether this run has written it.
    """

    checkpoint: str
    label: str
    source: str
    own: bool = False


def find(name: str, start: Path, folder: Path) -> Subject:
    """Find the checkpoint of that name, or write it where seeded weights are asked for.

    Args:
        name: a released name, a path, or ``seeded:`` and the name of an architecture.
        start: the folder that paths start from.
        folder: where seeded weights are written to.
    """
    if name.startswith(SEEDED):
        architecture = name.removeprefix(SEEDED)
        path = seeded_archive(architecture, folder)
        source = "seeded weights, NOT the released ones"
        return Subject(str(path), f"{architecture} (seeded weights)", source, own=True)
    if name in registry.RELEASED:
        return Subject(name, name, "the released file")
    return Subject(str(start / name), name, "the file given")


def size(name: str, start: Path) -> int:
    """Bytes of the checkpoint's files, or of a released one with as many weights; 0 if there is no
    such file."""
    cached = download.cached(name) if name in registry.RELEASED else None
    architecture = ARCHITECTURES.get(name.removeprefix(SEEDED))
    if cached is None and architecture and (name in registry.RELEASED or name.startswith(SEEDED)):
        return _RELEASED_BYTES * architecture.parameters
    return size_of(cached or start / name)


def seeded_archive(name: str, folder: Path) -> Path:
    """An archive with seeded weights of the named architecture. Tests must not change it.

    It is written once for all processes that give the same folder.
    """
    from clipcheck.checkpoints.checkpoint import Format
    from clipcheck.writers.convert import write
    from clipcheck.writers.synthesize import architecture_named, synthesize

    path = folder / f"seeded-{name.replace('/', '-')}.pt"
    with locked_where_possible(path.with_name(f"{path.name}.lock")):
        if not path.exists():
            architecture = architecture_named(name)
            write(architecture, synthesize(architecture), path, Format.ARCHIVE)
    return path
