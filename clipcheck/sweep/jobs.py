"""What is handed to whoever judges, and what comes back. All of it can be pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from clipcheck.gates.tolerances import Allclose

Kind = Literal["path", "url", "hub"]

Fate = Literal["done", "failed", "died", "lost"]
"""What became of a job: it was done; its surroundings failed it; its worker died over it; the node
that it was on is gone, which says nothing of the job."""

ALL_THAT_FIT, DEFAULT = "all", ""
"""Backends that stand for others: which, only the file tells."""


@dataclass(frozen=True)
class Source:
    """Where a checkpoint is.

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


@dataclass(frozen=True)
class Conditions:
    """What a verdict depends on beside the checkpoint; see `clipcheck.harness.checking.check`.

    Attributes:
        examples: number of images.
        seed: of the images and prompts.
        atol: absolute tolerance on probabilities.
        rtol: relative tolerance on probabilities.
        versions: by name, of what computes.
    """

    examples: int
    seed: int = 0
    atol: float = Allclose.atol
    rtol: float = Allclose.rtol
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One check: a checkpoint by some backends, on one device in one dtype.

    Attributes:
        number: of the job, in its sweep.
        task: what it does, the same in each sweep, however it is named.
        label: what people call the checkpoint.
        source: where it is.
        backends: as they were asked for. `DEFAULT` and `ALL_THAT_FIT` stand alone.
        device: where to run.
        dtype: what to compute in; `DEFAULT` for what suits the device.
        reference: the path or released name of what it is compared with; None for itself.
        conditions: see there.
        scratch: the folder that fetched files are put into, for as long as they are judged; None
            for the temporary one of whatever machine it is.
        cache: as for `check`.
        isolation: as for `check`.
        download_root: as for `check`.
        memory: bytes that judging it takes, as a guess.
        seconds: that judging it takes, as a guess.
        key: as for `check`.
        architecture: as for `check`.
    """

    number: int
    task: str
    label: str
    source: Source
    backends: tuple[str, ...]
    device: str
    dtype: str
    reference: str | None
    conditions: Conditions
    scratch: str | None
    cache: bool = True
    isolation: str | None = None
    download_root: str | None = None
    memory: int = 0
    seconds: float = 0.0
    key: str | None = None
    architecture: str | None = None

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
        """What it takes of the disk; nothing for a file that is there."""
        return (self.source.size or 0) if self.source.fetched else 0


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: its number.
        fate: see `Fate`.
        worker: who had it, for people.
        found: of one that is ``done``, JSON as `clipcheck.sweep.worker` writes it.
        reason: of any other, what went wrong.
    """

    job: int
    fate: Fate
    worker: str = ""
    found: str = ""
    reason: str = ""
