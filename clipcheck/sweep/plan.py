"""Plan a sweep: find the known verdicts, and the remaining jobs, the longest first."""

from __future__ import annotations

import os
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
    """Common settings of all jobs of a sweep.

    Attributes:
        options: of the checks, without those of catalogue entries.
        scratch: folder for fetched files; None if workers are on other machines.
        default_device: for entries without a device.
    """

    options: CheckOptions
    scratch: Path | None
    default_device: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class Unit(Checked):
    """A line of a sweep's report: a checkpoint in one backend, on one device, in one dtype.

    Attributes:
        content: SHA-256 of the file, or its source.
        reference: SHA-256 or source of the reference; empty for the file itself.
        versions: of the libraries, by name.
        verdict: from the ledger, or None.
        architecture: content of the configuration that determines the architecture.
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
        """Requested backend."""
        return next(iter(self.options.backends), DEFAULT)

    @property
    def model(self) -> str:
        """The file's content, with the key of the model in it, if given."""
        return _model_of(self.content, self.entry)

    @property
    def key(self) -> str:
        """Key of its verdict."""
        return self.key_for(self.content)

    def key_for(self, content: str) -> str:
        """Return the key for another content, if the fetched file is a different one."""
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
        units: everything to judge, in the order of the catalogue.
        jobs: for units without a verdict, the longest first.
        tasks: units by the number of their job.
        unfit: entries of the catalogue that are not judged.
    """

    units: Sequence[Unit]
    jobs: Sequence[Job]
    tasks: dict[int, list[Unit]]
    unfit: Sequence[Entry] = ()

    @property
    def bytes_to_fetch(self) -> int:
        """Bytes that all jobs fetch, as far as sizes are known."""
        return sum(job.bytes_to_fetch for job in self.jobs)


def plan(
    entries: Sequence[Entry], ledger: Ledger, setting: Setting, progress: Progress | None = None
) -> Plan:
    """Read every file's facts, and find its verdicts in the ledger."""
    say = progress or silent
    versions = cache(lambda backend: versions_for([backend]))
    units = []
    for entry in entries:
        if entry.unfit:
            continue
        say(f"{entry.label}: reading")
        if entry.reference is None and setting.options.reference is not None:
            entry = replace(entry, reference=os.fspath(setting.options.reference))
        source, facts = _looked_at(entry, ledger, say)
        reference = _content_of_reference(entry, facts, ledger)
        entry = replace(entry, source=source)
        architecture = _architecture_of(entry)
        common = replace(
            setting.options,
            reference=entry.reference,
            key=entry.key,
            architecture=entry.architecture,
            map=entry.map or setting.options.map,
            images=entry.images or setting.options.images,
            prompts=entry.prompts or setting.options.prompts,
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
    """Return an entry's source and facts; for a file to fetch, the facts of an earlier fetch."""
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
    # An entry with an architecture is no program, so it need not be opened.
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
    """Return a text that identifies the architecture: the user's, or hashes of configurations in
    the file's folder."""
    if entry.architecture is not None:
        return repr(told_by(entry.architecture).model)
    return "" if entry.source.fetched else _told_beside(Path(entry.source.place))


def _told_beside(path: Path) -> str:
    """Return hashes of the configurations in a file's folder; empty for a folder, which includes
    its own."""
    if path.is_dir():
        return ""
    configs = (path.with_name(name) for name in (TRANSFORMERS_CONFIG, OPEN_CLIP_CONFIG))
    return " ".join(found for each in configs if (found := content_of(each)))
