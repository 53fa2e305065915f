"""Which files' code is run in a cell."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clipcheck.checkpoints import registry
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, Program
from clipcheck.errors import UsageError
from clipcheck.sandbox.cell import Cell, zygote
from clipcheck.sandbox.limits import limits_for

if TYPE_CHECKING:
    import torch

Isolation = Literal["process", "none"]
"""``process`` runs a file's code in a process without rights, ``none`` in this one."""

ISOLATIONS: tuple[Isolation, ...] = ("process", "none")

_SERVANTS = {
    Format.ARCHIVE: "clipcheck.backends.servants:ArchiveServant",
    Format.PT2: "clipcheck.backends.servants:ProgramServant",
    Format.ONNX: "clipcheck.backends.servants:ProgramServant",
}
"""By format, what runs such a file. Others hold weights alone, of which nothing is run."""

_MOST_NAMED = 50
"""Data files that a cell is told one by one, in a message of 64 kB."""

_WITH_CODE = (b"PK\x03\x04", b"\x08")
"""How files begin that may have code: zip files, and ONNX as most exporters write it."""


def isolation_named(isolation: str | None) -> Isolation | None:
    """The isolation of that name, or None for the default.

    Raises:
        UsageError: there is none.
    """
    for known in ISOLATIONS:
        if isolation == known:
            return known
    if isolation is None:
        return None
    raise UsageError(
        f"expected an isolation, found {isolation!r}", remedy=f"Known are {', '.join(ISOLATIONS)}."
    )


@contextmanager
def cell_for(
    subject: Checkpoint | Program, device: torch.device, isolation: Isolation | None = None
) -> Iterator[Cell | None]:
    """The cell that the code of a file is to run in; None where that is this process.

    Args:
        isolation: by default ``process``, but for files that are released ones bit for bit.

    Raises:
        UsageError: the environment says something that is no limit.
    """
    wanted = isolation or ("none" if registry.by_sha256(subject.sha256) else "process")
    if subject.format not in _SERVANTS or wanted == "none":
        yield None
        return
    import torch

    limits = limits_for(subject.size, torch.get_num_threads())
    served = Format.PT2 if isinstance(subject, Program) else subject.format
    cell = Cell(_SERVANTS[served], _readable(subject), limits, gpu=device.type == "cuda")
    try:
        yield cell
    finally:
        cell.close()


def _readable(subject: Checkpoint | Program) -> list[Path]:
    """The files that it is made of; their folders, where an exporter made a file of each weight."""
    if not isinstance(subject, Program):
        return [subject.path]
    own = [part.path for part in subject.parts]
    data = [file for part in subject.parts for file in part.data]
    if len(data) <= _MOST_NAMED:
        return [*own, *data]
    return [*own, *sorted({file.resolve().parent for file in data})]


def prepare(names: Sequence[str], isolation: Isolation | None) -> None:
    """Have cells ready soon, where one of these files may need one: what they are forked from has
    to import torch, which this process often has still to do as well."""
    if isolation != "none" and hasattr(os, "fork") and any(_may_have_code(name) for name in names):
        zygote()


def _may_have_code(name: str) -> bool:
    try:
        with Path(name).open("rb") as file:
            return file.read(4).startswith(_WITH_CODE)
    except (OSError, ValueError):  # a released name, or a file that is told of when it is opened
        return False
