"""Decide which files' code runs in a sandbox process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clipcheck.checkpoints import registry
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, Program
from clipcheck.errors import UsageError
from clipcheck.sandbox.limits import limits_for
from clipcheck.sandbox.process import Sandbox, zygote
from clipcheck.system.threads import threads

if TYPE_CHECKING:
    import torch

Isolation = Literal["process", "none"]
"""``process`` runs a file's code in a sandbox process, ``none`` in this one."""

ISOLATIONS: tuple[Isolation, ...] = ("process", "none")

_HANDLERS = {
    Format.ARCHIVE: "clipcheck.backends.handlers:ArchiveHandler",
    Format.PT2: "clipcheck.backends.handlers:ProgramHandler",
    Format.ONNX: "clipcheck.backends.handlers:ProgramHandler",
    Format.OPENVINO: "clipcheck.backends.handlers:ProgramHandler",
    Format.EXECUTORCH: "clipcheck.backends.handlers:ProgramHandler",
}
"""By format, the class that runs such a file. Other formats have only weights."""

_OF_ARRAYS = "clipcheck.backends.array_handler:ArrayHandler"

_MOST_NAMED = 50
"""Most data files that a message to a sandbox names; it is limited to 64 kB."""

_WITH_CODE = (b"PK\x03\x04", b"\x08", b"<?xm")
"""First bytes of files that may have code: zip files, ONNX by most exporters, and OpenVINO's."""


def isolation_named(isolation: str | None) -> Isolation | None:
    """Return the isolation of this name, or None for the default.

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
def sandbox_for(
    subject: Checkpoint | Program,
    device: torch.device | str,
    isolation: Isolation | None = None,
    *,
    arrays: bool = False,
) -> Iterator[Sandbox | None]:
    """Yield the sandbox for a file's code; None for this process.

    Args:
        isolation: default: ``process``, except for released files.
        arrays: whether the sandbox gets and gives numpy's arrays, and only runs programs.

    Raises:
        UsageError: a limit in the environment is invalid.
    """
    wanted = isolation or ("none" if registry.by_sha256(subject.sha256) else "process")
    if subject.format not in _HANDLERS or wanted == "none":
        yield None
        return
    limits = limits_for(subject.size, threads())
    served = Format.PT2 if isinstance(subject, Program) else subject.format
    handler = _OF_ARRAYS if arrays else _HANDLERS[served]
    gpu = str(device).startswith("cuda")
    sandbox = Sandbox(handler, _readable(subject), limits, gpu=gpu, arrays=arrays)
    try:
        yield sandbox
    finally:
        sandbox.close()


def _readable(subject: Checkpoint | Program) -> list[Path]:
    """Return the subject's files, or their folders if there is a file for each weight."""
    if not isinstance(subject, Program):
        return [subject.path]
    own = [part.path for part in subject.parts]
    data = [file for part in subject.parts for file in part.data]
    if len(data) <= _MOST_NAMED:
        return [*own, *data]
    return [*own, *sorted({file.resolve().parent for file in data})]


def prepare(names: Sequence[str], isolation: Isolation | None, *, arrays: bool = False) -> None:
    """Start the process that forks sandboxes if one of these files may need one: it imports its
    modules while this process does.

    Args:
        arrays: whether sandboxes need not import torch.
    """
    if isolation != "none" and hasattr(os, "fork") and any(_may_have_code(name) for name in names):
        zygote(arrays=arrays)


def _may_have_code(name: str) -> bool:
    try:
        with Path(name).open("rb") as file:
            return file.read(4).startswith(_WITH_CODE)
    except (OSError, ValueError):  # a released name, or a file whose error is reported later
        return False
