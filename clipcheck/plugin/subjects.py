"""Find the file of a checkpoint by its name, or write one with seeded weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipcheck.checkpoints import download, registry, towers
from clipcheck.checkpoints.architecture import ARCHITECTURES
from clipcheck.checkpoints.keys import count_parameters
from clipcheck.checkpoints.opening import size_of
from clipcheck.system.locks import locked_where_possible

_RELEASED_BYTES = 2
"""Bytes of a weight in a released archive: nearly all are in half precision."""


SEEDED = "seeded:"
"""Prefix of an architecture's name, for seeded weights."""


@dataclass(frozen=True)
class Subject:
    """The checkpoint of a name.

    Attributes:
        checkpoint: its path or released name.
        label: its name in reports, with a note if the weights are seeded.
        source: a released file, a file given by its path, or seeded weights.
        own: whether this run wrote it.
    """

    checkpoint: str
    label: str
    source: str
    own: bool = False


def find(name: str, start: Path, folder: Path) -> Subject:
    """Find the checkpoint of this name, or write one with seeded weights.

    Args:
        name: a released name, a path, or ``seeded:ARCHITECTURE``.
        start: folder to which paths are relative.
    """
    if name.startswith(SEEDED):
        architecture = name.removeprefix(SEEDED)
        path = seeded_archive(architecture, folder)
        source = "seeded weights, NOT the released weights"
        return Subject(str(path), f"{architecture} (seeded weights)", source, own=True)
    if name in registry.RELEASED:
        return Subject(name, name, "the released file")
    return Subject(str(towers.within(start, name)), name, "the file given")


def size(name: str, start: Path) -> int:
    """Return the bytes of the checkpoint's files, estimated by the weights if it is not here yet;
    0 if there is no such file."""
    cached = download.cached(name) if name in registry.RELEASED else None
    architecture = ARCHITECTURES.get(name.removeprefix(SEEDED))
    if cached is None and architecture and (name in registry.RELEASED or name.startswith(SEEDED)):
        return _RELEASED_BYTES * count_parameters(architecture)
    return size_of(cached or towers.within(start, name))


def seeded_archive(name: str, folder: Path) -> Path:
    """Return an archive with seeded weights, written once for all processes with this folder.

    Tests must not change it.
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
