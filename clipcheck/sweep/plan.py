"""From a catalogue to what is known already and the jobs that are left, the longest first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from clipcheck.checkpoints import registry
from clipcheck.checkpoints.directories import OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG
from clipcheck.checkpoints.told import named as told_by
from clipcheck.harness.options import CheckOptions
from clipcheck.sweep.catalogue import Entry
from clipcheck.sweep.cost import flops, seconds_of_check
from clipcheck.sweep.facts import Facts, beside, content_of, facts_of
from clipcheck.sweep.identity import key_of, versions_for
from clipcheck.sweep.jobs import ALL_THAT_FIT, DEFAULT, Checked, Job, Source, by_backends
from clipcheck.sweep.ledger import Ledger, Verdict
from clipcheck.system import memory
from clipcheck.system.progress import Progress, silent


@dataclass(frozen=True)
class Setting:
    """Settings that all jobs of a sweep have in common.

    Attributes:
        options: how they are checked, but for what the catalogue says of each.
        scratch: the folder for files that are fetched; None where workers are on other machines.
        default_device: where to run what names no device.
    """

    options: CheckOptions
    scratch: Path | None
    default_device: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class Unit(Checked):
    """One line of a sweep's report: a checkpoint, run by one backend on one device in one dtype.

    Attributes:
        content: SHA-256 of the file, or where it comes from.
        reference: the same of what it is compared with; nothing for itself.
        versions: by name, of what computes.
        verdict: what is known already.
        architecture: what tells how the model computes, by its content.
    """

    entry: Entry
    content: str
    reference: str
    versions: Mapping[str, str]
    facts: Facts
    verdict: Verdict | None = None
    architecture: str = ""

    @property
    def backend(self) -> str:
        """Backend as it was asked for."""
        return next(iter(self.options.backends), DEFAULT)

    @property
    def model(self) -> str:
        """The file's content, with the name of the model in it where one is asked for."""
        return _model_of(self.content, self.entry)

    @property
    def key(self) -> str:
        """Key that its verdict is kept under."""
        return self.key_for(self.content)

    def key_for(self, content: str) -> str:
        """Return the key for other content, where the file turns out to be another one."""
        return key_of(
            _model_of(content, self.entry),
            self.reference,
            self.options,
            self.versions,
            self.architecture,
        )


@dataclass(frozen=True)
class Plan:
    """Plan of a sweep.

    Attributes:
        units: all that can be judged, in the order of the catalogue.
        jobs: what is not known yet, the longest first.
        tasks: by the number of a job, its units.
        unfit: entries of the catalogue that are not judged.
    """

    units: Sequence[Unit]
    jobs: Sequence[Job]
    tasks: dict[int, list[Unit]]
    unfit: Sequence[Entry] = ()

    @property
    def bytes_to_fetch(self) -> int:
        """Bytes that all jobs fetch, where their sizes are known."""
        return sum(job.bytes_to_fetch for job in self.jobs)


def plan(
    entries: Sequence[Entry], ledger: Ledger, setting: Setting, progress: Progress | None = None
) -> Plan:
    """Look at every file, and at what the ledger has of it."""
    say = progress or silent
    versions = cache(lambda backend: versions_for([backend]))
    units = []
    for entry in entries:
        if entry.unfit:
            continue
        say(f"{entry.label}: reading")
        source, facts = _looked_at(entry, ledger, say)
        reference = _content_of_reference(entry, facts, ledger)
        entry = replace(entry, source=source)
        architecture = _architecture_of(entry)
        common = replace(
            setting.options,
            reference=entry.reference,
            key=entry.key,
            architecture=entry.architecture,
        )
        for device in entry.devices or (setting.default_device,):
            for backend in entry.backends:
                for dtype in entry.dtypes:
                    unit = Unit(
                        entry=entry,
                        options=replace(
                            common,
                            backend=None if backend == DEFAULT else backend,
                            device=device,
                            dtype=None if dtype == DEFAULT else dtype,
                        ),
                        content=facts.sha256 or str(source),
                        reference=reference,
                        versions=versions(backend),
                        facts=facts,
                        architecture=architecture,
                    )
                    units.append(replace(unit, verdict=ledger.verdict(unit.key)))
    unfit = [entry for entry in entries if entry.unfit]
    return replace(_with_jobs(units, setting), unfit=unfit)


def _with_jobs(units: Sequence[Unit], setting: Setting) -> Plan:
    """The units that have no verdict, with those of one file in one job: it is read once, and the
    eager model runs once for all backends. A file that is there twice is judged once."""
    groups: dict[tuple[str, ...], list[Unit]] = defaultdict(list)
    for unit in units:
        if unit.verdict is None:
            wild = unit.backend if unit.backend in (ALL_THAT_FIT, DEFAULT) else "named"
            same = (unit.model, unit.reference, unit.architecture, unit.device, unit.dtype)
            groups[*same, wild].append(unit)
    made = [(_job(group, setting), group) for group in groups.values()]
    # By name where they take as long: the order does not depend on that of the files.
    made.sort(key=lambda each: (-each[0].seconds, each[0].label))
    jobs = [replace(job, number=number) for number, (job, _) in enumerate(made)]
    return Plan(units, jobs, {number: group for number, (_, group) in enumerate(made)})


def _job(units: Sequence[Unit], setting: Setting) -> Job:
    first = units[0]
    backends = tuple(dict.fromkeys(unit.backend for unit in units))
    size = first.facts.size or first.entry.source.size or 0
    dimensions = first.entry.dimensions
    options = by_backends(first.options, backends)
    versions = versions_for(backends)
    return Job(
        task=key_of(first.model, first.reference, options, versions, first.architecture),
        label=first.entry.label,
        source=first.entry.source,
        options=options,
        versions=versions,
        scratch=None if setting.scratch is None else str(setting.scratch),
        memory=memory.estimate(size),
        seconds=seconds_of_check(
            first.facts.flops if dimensions is None else flops(dimensions),
            size,
            backends,
            first.dtype,
            options.examples,
            setting.threads,
        ),
    )


def _model_of(content: str, entry: Entry) -> str:
    return content if entry.key is None else f"{content} {entry.key}"


def _looked_at(entry: Entry, ledger: Ledger, say: Progress) -> tuple[Source, Facts]:
    """Return the location of an entry, and the facts known of it; of a file that is not here, those
    that were seen before."""
    source = entry.source
    if not source.fetched:
        return source, facts_of(Path(source.place), ledger, say)
    known = ledger.source(str(source))
    sha256, size = source.sha256, source.size
    if known is not None and known[0].startswith(sha256):
        sha256, size = known
        source = replace(source, estimated=False)
    whole = sha256 if len(sha256) == 64 else ""
    return replace(source, sha256=sha256, size=size), Facts(whole, size or 0)


def _content_of_reference(entry: Entry, facts: Facts, ledger: Ledger) -> str:
    name: str | Path | None = entry.reference
    # What has an architecture of its own is no program, and need not be opened to tell.
    if name is None and not entry.source.fetched and facts.flops is None:
        name = beside(Path(entry.source.place))
    if name is None:
        return ""
    if name in registry.RELEASED:
        return registry.find(str(name)).sha256
    content = facts_of(Path(name), ledger).sha256 or f"path:{name}"
    configured = _told_beside(Path(name))
    return f"{content} with {configured}" if configured else content


def _architecture_of(entry: Entry) -> str:
    """Return a text that identifies the source of how the model computes: what the user said, or
    the configurations beside the file."""
    if entry.architecture is not None:
        return repr(told_by(entry.architecture).model)
    return "" if entry.source.fetched else _told_beside(Path(entry.source.place))


def _told_beside(path: Path) -> str:
    """Hashes of the configurations in a file's folder; nothing of a folder, which has its own."""
    if path.is_dir():
        return ""
    configs = (path.with_name(name) for name in (TRANSFORMERS_CONFIG, OPEN_CLIP_CONFIG))
    return " ".join(found for each in configs if (found := content_of(each)))
