"""Plan and run a sweep by its arguments."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from clipcheck.checkpoints.formats import require_found
from clipcheck.checkpoints.registry import RELEASED
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
        catalogue: file or folder; None for only open_clip's list.
        pretrained: whether to include open_clip's list.
        address: of the Ray cluster; None for the one that Ray finds.
        workers: number of workers; None for the default.
        disk: size limit of fetched files, such as ``50GB``; None for no limit.
        options: of all checks; the architecture applies to entries without one.
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
        """Folder for fetched and temporary files, next to the ledger."""
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
        """Run the plan; see `clipcheck.sweep.run.run`."""
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
    """Read the catalogue, open the ledger and connect the engine; close them at the end.

    Raises:
        UsageError: the arguments are invalid.
        CatalogueError: as for `clipcheck.sweep.catalogue.read`.
        LedgerError: as for `Ledger`.
        UnavailableError: there is no Ray, or no cluster.
    """
    disk = _disk(asked.disk)
    asked = replace(asked, options=_absolute(asked.options))
    entries = _entries(asked)
    with Ledger(asked.ledger) as ledger, _clear(asked.scratch):
        engine = _engine(asked, [entry for entry in entries if not entry.unfit], say)
        with closing(engine):
            yield Lead(asked, entries, engine, ledger, disk)


def _absolute(options: CheckOptions) -> CheckOptions:
    """Return the options with absolute paths: workers may have other current folders."""
    reference = options.reference
    if reference is not None:
        require_found(reference)
        if str(reference) not in RELEASED:
            reference = Path(reference).absolute()
    images, prompts = options.images, options.prompts
    return replace(
        options,
        reference=reference,
        images=None if images is None else Path(images).absolute(),
        prompts=None if prompts is None else Path(prompts).absolute(),
    )


@contextmanager
def _clear(folder: Path) -> Iterator[None]:
    """Delete leftovers of a killed sweep, and at the end those of this one."""
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
        raise UsageError("--address needs the engine ray", remedy="Add --engine ray.")
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
