"""From the arguments of a sweep to its plan and its run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from clipcheck.errors import UsageError
from clipcheck.harness.options import CheckOptions
from clipcheck.sweep import catalogue
from clipcheck.sweep.catalogue import Entry
from clipcheck.sweep.engines import Engine
from clipcheck.sweep.ledger import Ledger
from clipcheck.sweep.plan import Plan, Setting, plan
from clipcheck.sweep.run import Swept, Tell, run
from clipcheck.system.progress import Progress, silent
from clipcheck.system.sizes import bytes_in


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The arguments of a sweep.

    Attributes:
        catalogue: a file or folder; None where it is open_clip's list alone.
        pretrained: whether open_clip's list is asked for.
        address: of the Ray cluster; None for the one that is found.
        workers: checks at a time; None for as many as there is room for.
        disk: bytes that fetched files may have, as people write it; None for any number.
        options: how all are checked; the architecture is that of what the catalogue does not say
            it of itself.
    """

    catalogue: Path | None
    pretrained: bool
    engine: Literal["local", "ray"]
    address: str | None
    workers: int | None
    ledger: Path
    disk: str | None
    options: CheckOptions

    @property
    def scratch(self) -> Path:
        """The folder for what is fetched, and other temporary files: beside the ledger."""
        path = self.ledger.absolute()
        return path.with_name(f"{path.name}.files")


@dataclass(frozen=True)
class Lead:
    """A sweep that can be planned, and run."""

    asked: Asked
    entries: Sequence[Entry]
    engine: Engine
    ledger: Ledger
    disk: int | None

    @property
    def workers(self) -> int:
        """Number of workers."""
        return self.engine.workers()

    @property
    def threads(self) -> int:
        """Threads of each worker."""
        return self.engine.threads()

    def plan(self, progress: Progress | None = None) -> Plan:
        """Return the plan of the sweep; see `clipcheck.sweep.plan.plan`."""
        named = all(entry.devices or entry.unfit for entry in self.entries)
        setting = Setting(
            self.asked.options,
            self.asked.scratch if self.asked.engine == "local" else None,
            "" if named else self.engine.default_device(),
            self.threads,
        )
        return plan(self.entries, self.ledger, setting, progress)

    def run(self, planned: Plan, progress: Progress | None = None, tell: Tell = silent) -> Swept:
        """Do it; see `clipcheck.sweep.run.run`."""
        return run(
            planned,
            self.engine,
            self.ledger,
            disk=self.disk,
            progress=progress,
            tell=tell,
        )


@contextmanager
def opened(asked: Asked, say: Progress = silent) -> Iterator[Lead]:
    """Read the catalogue, open the ledger and find the engine, which are closed in the end.

    Raises:
        UsageError: the arguments make no sense.
        CatalogueError: as for `clipcheck.sweep.catalogue.read`.
        LedgerError: as for `Ledger`.
        UnavailableError: there is no Ray, or no cluster.
    """
    disk = _disk(asked.disk)
    entries = _entries(asked)
    with Ledger(asked.ledger) as ledger, _clear(asked.scratch):
        engine = _engine(asked, [entry for entry in entries if not entry.unfit], say)
        with closing(engine):
            yield Lead(asked, entries, engine, ledger, disk)


@contextmanager
def _clear(folder: Path) -> Iterator[None]:
    """Remove what a sweep that was killed has left there, and what this one leaves."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _entries(asked: Asked) -> list[Entry]:
    if asked.catalogue is None and not asked.pretrained:
        raise UsageError(
            "expected a catalogue, found none",
            remedy="Name a TOML file, or a folder; or give --pretrained.",
        )
    entries = []
    if asked.catalogue is not None:
        root = asked.options.download_root
        found = catalogue.read(asked.catalogue, None if root is None else str(root))
        default = asked.options.told
        entries += [replace(each, architecture=each.architecture or default) for each in found]
    if asked.pretrained:
        from clipcheck.sweep.pretrained import pretrained

        entries += pretrained()
    return entries


def _engine(asked: Asked, entries: Sequence[Entry], say: Progress) -> Engine:
    if asked.engine == "ray":
        from clipcheck.sweep.engines.ray import connected

        return connected(asked.address, asked.workers)
    if asked.address is not None:
        raise UsageError("--address is of a Ray cluster", remedy="Add --engine ray.")
    from clipcheck.sweep.engines.local import default_device, engine_for

    devices = {device for entry in entries for device in entry.devices}
    if not all(entry.devices for entry in entries):
        devices.add(default_device(say))
    return engine_for(asked.workers, len(entries), sorted(devices), asked.scratch)


def _disk(written: str | None) -> int | None:
    if written is None:
        return None
    size = bytes_in(written)
    if not size:
        raise UsageError(
            f"expected a size, found {written!r}", remedy="Write --disk 50GB, or 500MB."
        )
    return size
