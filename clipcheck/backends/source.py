"""The source of a backend, and the protocol of a way to make one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from clipcheck.backends.archives import OpenArchive
from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.base import Backend, Missing, Option

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.families import eager
    from clipcheck.sandbox.cell import Cell


@dataclass(frozen=True)
class Source:
    """Everything that a backend is made of.

    Attributes:
        checkpoint: the file; of a program the one that it was made of.
        model: the eager model of its weights, on ``device`` and in ``dtype``. Backends may share
            its weights; they must not change it.
        device: where to run.
        dtype: what to compute in, by name: float32, float16 or bfloat16.
        options: by name, one value for each of the way's options.
        scratch: a folder of its own, which outlives the backend.
        artefacts: what was built before.
        archive: what runs the archive itself, where the checkpoint is one and that is wanted.
        program: a file that is to be run as it is, in place of one that is built.
        cell: what runs the code of such a file; None for this process.
    """

    checkpoint: Checkpoint
    model: eager.CLIP
    device: torch.device
    dtype: str
    options: Mapping[str, str]
    scratch: Path
    artefacts: Artefacts
    archive: OpenArchive | None = None
    program: Path | None = None
    cell: Cell | None = None


class Way(Protocol):
    """A maker of backends: a file of this folder, or a `DefaultWay` of another package."""

    SUMMARY: str
    """Description of the way, in a line."""

    OPTIONS: Mapping[str, Option]
    """Options of the way, by name."""

    VARIANTS: Sequence[Mapping[str, str]]
    """The options of each way to run it that ``all`` stands for."""

    def available(self) -> Missing | None:
        """Why it cannot run on this machine, or None. It imports nothing that takes long."""

    def version(self) -> str:
        """Return the version of the library that runs it. Call it only where it is available."""

    def unfit(self, checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:
        """Why it is not made for this checkpoint, or None."""

    def build(self, source: Source) -> Backend:
        """Make a backend.

        Raises:
            RunError: its library failed; the message has the library's words.
        """


class DefaultWay:
    """A `Way` that runs anywhere and fits all, to be derived from: `build` is what it lacks."""

    SUMMARY: str = ""
    OPTIONS: Mapping[str, Option] = {}
    VARIANTS: Sequence[Mapping[str, str]] = ({},)

    def available(self) -> Missing | None:
        """Why it cannot run on this machine, or None."""
        return None

    def version(self) -> str:
        """Return the version of the library that runs it; empty where there is none."""
        return ""

    def unfit(self, checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:  # noqa: ARG002
        """Why it is not made for this checkpoint, or None."""
        return None

    def build(self, source: Source) -> Backend:
        """Make a backend."""
        raise NotImplementedError
