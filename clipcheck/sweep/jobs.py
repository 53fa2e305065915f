"""Jobs for workers, and their outcomes. All of it can be pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from clipcheck.harness.options import CheckOptions

Kind = Literal["path", "url", "hub"]

ALL_THAT_FIT, DEFAULT = "all", ""
"""Backends that stand for others: which, only the file tells."""


@dataclass(frozen=True)
class Source:
    """Location of a checkpoint.

    Attributes:
        kind: a ``path`` on this machine, a ``url``, or a file of Hugging Face's ``hub``.
        place: the absolute path, the URL, or ``ORGANISATION/REPOSITORY/FILE``; a
            place on the hub that ends in ``/`` stands for open_clip's own file there.
        sha256: of the file, or how it begins, where that is known beforehand.
        size: of the file in bytes, where that is known beforehand.
        estimated: whether that is a guess.
    """

    kind: Kind
    place: str
    sha256: str = ""
    size: int | None = None
    estimated: bool = False

    def __str__(self) -> str:
        return f"{self.kind}:{self.place}"

    @property
    def fetched(self) -> bool:
        """Whether it has to be brought here first."""
        return self.kind != "path"


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Something that is checked on one device in one dtype."""

    options: CheckOptions

    @property
    def device(self) -> str:
        """Device that it runs on."""
        return str(self.options.device)

    @property
    def dtype(self) -> str:
        """Dtype as it was asked for; `DEFAULT` for the one that suits the device."""
        return next(iter(self.options.dtypes), DEFAULT)


def by_backends(options: CheckOptions, backends: Sequence[str]) -> CheckOptions:
    """Return the same options with these backends, of which `DEFAULT` names none."""
    named = [backend for backend in backends if backend != DEFAULT]
    return replace(options, backend=named or None)


@dataclass(frozen=True, kw_only=True)
class Job(Checked):
    """One check: a checkpoint by some backends, on one device in one dtype.

    Attributes:
        task: what it does, the same in each sweep, however it is named.
        versions: by name, of what computes, which the worker's have to be.
        scratch: the folder that fetched files are put into, for as long as they are judged; None
            for the temporary one of whatever machine it is.
        memory: bytes that judging it takes, as a guess.
        seconds: that judging it takes, as a guess.
    """

    number: int = 0
    task: str
    label: str
    source: Source
    versions: Mapping[str, str] = field(default_factory=dict)
    scratch: str | None = None
    memory: int = 0
    seconds: float = 0.0

    @property
    def backends(self) -> tuple[str, ...]:
        """Backends as they were asked for. `DEFAULT` and `ALL_THAT_FIT` stand alone."""
        return self.options.backends or (DEFAULT,)

    def of_backends(self, backends: Sequence[str]) -> Job:
        """Return the same job with these of its `backends`."""
        return replace(self, options=by_backends(self.options, backends))

    @property
    def on_gpu(self) -> bool:
        """Whether it needs a GPU."""
        return self.device.startswith("cuda")

    @property
    def folder(self) -> Path | None:
        """Its own folder in that."""
        return None if self.scratch is None else Path(self.scratch) / f"job-{self.number}"

    @property
    def bytes_to_fetch(self) -> int:
        """Bytes to fetch, which it takes of the disk; 0 for a file that is there."""
        return (self.source.size or 0) if self.source.fetched else 0
