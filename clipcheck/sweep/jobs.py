"""Jobs for workers. All classes can be pickled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from clipcheck.harness.options import CheckOptions

Kind = Literal["path", "url", "hub"]

ALL_THAT_FIT, DEFAULT = "all", ""
"""Names for backends that depend on the file."""


@dataclass(frozen=True)
class Source:
    """Location of a checkpoint.

    Attributes:
        kind: a ``path`` on this machine, a ``url``, or a file of Hugging Face's ``hub``.
        place: the absolute path, the URL, or ``ORGANISATION/REPOSITORY/FILE``; with ``/`` at the
            end, open_clip's own file in this repository.
        sha256: of the file or its first digits, if known in advance.
        size: of the file in bytes, if known in advance.
        estimated: whether the size is an estimate.
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
        """Whether it must be fetched."""
        return self.kind != "path"


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A check on one device in one dtype."""

    options: CheckOptions

    @property
    def device(self) -> str:
        """Device of the check."""
        return str(self.options.device)

    @property
    def dtype(self) -> str:
        """Requested dtype; `DEFAULT` for the device's default."""
        return next(iter(self.options.dtypes), DEFAULT)


def by_backends(options: CheckOptions, backends: Sequence[str]) -> CheckOptions:
    """Return the options with these backends; `DEFAULT` stands for no backend."""
    named = [backend for backend in backends if backend != DEFAULT]
    return replace(options, backend=named or None)


@dataclass(frozen=True, kw_only=True)
class Job(Checked):
    """One check: a checkpoint by some backends, on one device in one dtype.

    Attributes:
        task: identifies the work, in all sweeps.
        versions: of the libraries, by name, which the worker must have.
        scratch: folder for fetched files; None for the machine's temporary folder.
        memory: estimated bytes.
        seconds: estimated time.
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
        """Requested backends. `DEFAULT` and `ALL_THAT_FIT` stand alone."""
        return self.options.backends or (DEFAULT,)

    def of_backends(self, backends: Sequence[str]) -> Job:
        """Return the job with only these of its `backends`."""
        return replace(self, options=by_backends(self.options, backends))

    @property
    def on_gpu(self) -> bool:
        """Whether it needs a GPU."""
        return self.device.startswith("cuda")

    @property
    def folder(self) -> Path | None:
        """Folder of this job in ``scratch``."""
        return None if self.scratch is None else Path(self.scratch) / f"job-{self.number}"

    @property
    def bytes_to_fetch(self) -> int:
        """Bytes to fetch, which need disk space; 0 for an existing file."""
        return (self.source.size or 0) if self.source.fetched else 0
