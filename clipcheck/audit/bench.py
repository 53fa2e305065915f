"""Measure what the gates see: plant each fault of the catalogue, and each clean variant.

Every variant becomes an archive like any other, or comes into another way to run a checkpoint
(`clipcheck.audit.bench_ways`), and is judged like any other. Beside the gates stands the classic
assertion as people run it: one image, three prompts.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from clipcheck.backends import registry
from clipcheck.errors import UsageError, nearest
from clipcheck.gates.allclose import allclose
from clipcheck.gates.localisation import Localisation, Place, Tower, tower_of
from clipcheck.gates.result import GateResult
from clipcheck.gates.tolerances import LIMITS, Allclose
from clipcheck.harness.judging import (
    Stopwatch,
    Trial,
    effort_for,
    inputs_of,
    judge_candidate,
    lengths_for,
)
from clipcheck.harness.localising import first_departures
from clipcheck.inputs.batches import CORNERS, Batch, batches, classic
from clipcheck.inputs.dealing import Effort
from clipcheck.system import torchscript_support
from clipcheck.system.progress import Progress, Span, silent

if TYPE_CHECKING:
    from clipcheck.audit.bench_ways import WayBench
    from clipcheck.audit.faults import Variant
    from clipcheck.audit.faults.ways import WayVariant
    from clipcheck.audit.faults.where import Spot
    from clipcheck.backends.loading import OpenSides
    from clipcheck.backends.reference import Reference
    from clipcheck.checkpoints.architecture import Architecture
    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.writers.archive import Alter

ARCHITECTURES = ("tiny-vit", "tiny-resnet")
"""The architectures that are audited by default."""

BACKENDS = tuple(name for name in registry.BACKENDS if not registry.find(name).needs_reference)
"""The backends that faults can be planted into: all but the one that the others are compared
with."""

Planted: TypeAlias = "Variant | WayVariant"

_LOOKS = 0.5
"""Seconds between two looks at how many variants are judged."""

_PARTS = 2
"""Parts of the work for each core."""

_counter: Any = None
"""Counter shared by the processes of a pool, in which each counts. It can only be given as one
starts."""


@dataclass(frozen=True)
class Finding:
    """Verdict of the gates on one variant, in one architecture, with one set of weights.

    Attributes:
        name: of the variant.
        family: of the variant.
        reason: what it is.
        clean: whether it has to pass.
        architecture: what it was planted into.
        seed: of the weights.
        weights: their kind.
        dtype: what both sides computed in.
        gate: the gate that failed by most, or None.
        margin: how many times what is allowed that was; for a variant that passes, how much of
            what is allowed.
        classic_caught: whether the classic assertion fails.
        greatest: the greatest ratio to the eager model's error under each limit, by its name in
            `clipcheck.gates.tolerances.Limits`.
        localisation: where it departs, if that was asked for of a fault.
        localised: whether it departs where the fault was planted, and nowhere else; nowhere at all
            where the fault shows on no ordinary input.
        backend: what it was planted into.
    """

    name: str
    family: str
    reason: str
    clean: bool
    architecture: str
    seed: int
    weights: str
    dtype: str
    gate: str | None
    margin: float
    classic_caught: bool
    greatest: Mapping[str, float] = field(default_factory=dict)
    localisation: Localisation | None = None
    localised: bool = False
    backend: str = "jit"

    @property
    def caught(self) -> bool:
        """Whether any gate failed."""
        return self.gate is not None

    @property
    def hidden(self) -> bool:
        """Whether a place was looked for, and the fault rightly showed nowhere."""
        found = self.localisation
        return self.localised and found is not None and not found.found

    @property
    def right(self) -> bool:
        """Whether a fault was caught, or a clean variant passed."""
        return self.caught != self.clean


@dataclass(frozen=True)
class Audit:
    """Findings of an audit.

    Attributes:
        findings: in the order of the backends, then of the catalogue.
        left_out: by backend that cannot run on this machine, why.
    """

    findings: Sequence[Finding]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every fault was caught, and every clean variant passed; where places were asked
        for, whether all are right as well."""
        return (
            bool(self.findings)
            and all(finding.right for finding in self.findings)
            and all(finding.localised for finding in self.sought)
        )

    @property
    def sought(self) -> Sequence[Finding]:
        """Findings on faults whose place was looked for."""
        return [finding for finding in self.findings if finding.localisation is not None]

    @property
    def faults(self) -> Sequence[Finding]:
        """Findings on faults."""
        return [finding for finding in self.findings if not finding.clean]

    @property
    def clean(self) -> Sequence[Finding]:
        """Findings on clean variants."""
        return [finding for finding in self.findings if finding.clean]


@dataclass(frozen=True)
class _Unit:
    """Work of one process: one architecture with one set of weights in one dtype, and every variant
    of the catalogue in every backend, or each whose number leaves ``share`` when it is divided by
    ``of``."""

    architecture: str
    seed: int
    weights: str
    dtype: str
    backends: tuple[str, ...]
    only: tuple[str, ...]
    share: int
    of: int
    threads: int
    localize: bool


def audit(
    architectures: Sequence[str] = ARCHITECTURES,
    *,
    seeds: Sequence[int] = (0,),
    weights: Sequence[str] = ("seeded",),
    dtypes: Sequence[str] = ("float32",),
    backends: Sequence[str] = ("jit",),
    only: Sequence[str] = (),
    threads: int | None = None,
    localize: bool = False,
    progress: Progress | None = None,
) -> Audit:
    """Judge every variant of the catalogue in every architecture with every set of weights.

    Args:
        architectures: released names, ``tiny-vit`` or ``tiny-resnet``.
        seeds: of the weights.
        weights: kinds of weights, see `clipcheck.writers.trained.KINDS`; ``trained`` takes a minute
            for each small architecture and seed, the first time.
        dtypes: what archives are judged in. Variants of other backends have dtypes of their own,
            and are judged beside float32 alone.
        backends: what to plant into, of `BACKENDS`; ``all`` for each that can run on this machine.
            ``compile`` and ``aotinductor`` take most of a minute for each variant.
        only: names of variants; by default the whole catalogue.
        threads: of torch, in each process; by default the cores are divided.
        localize: find where each fault of an archive departs first, and compare with where it was
            planted.
        progress: called with a few words as it begins and after each part; one that is a
            `clipcheck.system.progress.Gauge` is also told how much is done.

    Raises:
        UnknownModelError: there is no architecture of that name.
        UsageError: there is no kind of weights, dtype, backend or variant of that name, or nothing
            to audit.
        UnavailableError: a backend that was named cannot run on this machine.
    """
    _require_known(architectures, seeds, weights, dtypes, only)
    able, left_out = _backends(backends)
    if not able:
        raise UsageError(
            "expected a backend to plant faults into, found none",
            remedy=f"They are: {', '.join(BACKENDS)}.",
        )
    units = _units(architectures, seeds, weights, dtypes, able, tuple(only), threads, localize)
    # Spawned: a fork of a process that has used torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    span = Span(progress or silent)
    total = sum(len(_planned(unit)) for unit in units)
    span.say(f"judging {total} variants in {len(units)} parts")
    counter = context.Value("i", 0)
    processes = min(os.cpu_count() or 1, len(units))
    done: dict[_Unit, list[Finding]] = {}
    with ProcessPoolExecutor(processes, context, _count_in, (counter,)) as pool:
        running = {pool.submit(_audit_unit, unit): unit for unit in units}
        waiting: set[Future[list[Finding]]] = set(running)
        while waiting:
            ready, waiting = wait(waiting, _LOOKS, FIRST_COMPLETED)
            span.reach(counter.value / max(1, total))
            for future in ready:
                unit = running[future]
                done[unit] = future.result()
                span.say(
                    f"{unit.architecture}, seed {unit.seed}, {unit.weights} weights, {unit.dtype}: "
                    f"{len(done[unit])} variants judged (part {len(done)} of {len(units)})"
                )
    return Audit(_in_order([finding for unit in units for finding in done[unit]]), left_out)


def _units(
    architectures: Sequence[str],
    seeds: Sequence[int],
    weights: Sequence[str],
    dtypes: Sequence[str],
    backends: tuple[str, ...],
    only: tuple[str, ...],
    threads: int | None,
    localize: bool,
) -> list[_Unit]:
    """Several for each core, for architectures differ in what they take; small models gain nothing
    from threads."""
    cores = os.cpu_count() or 1
    plan = list(itertools.product(architectures, seeds, weights, dtypes))
    of = -(-_PARTS * cores // len(plan))
    threads = threads or max(1, cores // (len(plan) * of))
    return [
        _Unit(*each, backends, only, share, of, threads, localize)
        for each in plan
        for share in range(of)
    ]


def _in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Sort findings by backend, then by the catalogue's order, then by architecture as they
    come."""
    order = {
        (backend, variant.name): (number, place)
        for number, backend in enumerate(BACKENDS)
        for place, variant in enumerate(_catalogue(backend))
    }
    return sorted(findings, key=lambda finding: order[finding.backend, finding.name])


def _backends(written: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the backends to run, and of the others that ``all`` stands for, why they cannot."""
    named = {_known(each) for each in written if each != registry.ALL}
    for name in named:
        registry.require_available(registry.Choice(name))
    left_out = {}
    if registry.ALL in written:
        missing = {name: registry.find(name).available() for name in BACKENDS}
        left_out = {name: f"{m.reason}. {m.remedy}" for name, m in missing.items() if m}
        named = set(BACKENDS) - left_out.keys()
    return tuple(name for name in BACKENDS if name in named), left_out


def _known(written: str) -> str:
    choice = registry.parse(written)
    if choice.options or choice.name not in BACKENDS:
        raise UsageError(
            f"expected a backend to plant faults into, found {written!r}",
            remedy=f"They are, without options: {', '.join(BACKENDS)}.",
        )
    return choice.name


def catalogue() -> Sequence[Planted]:
    """All variants: those for archives first, then those for other backends."""
    from clipcheck.audit.faults.ways import CLEAN_WAYS, WAY_FAULTS

    return (*_catalogue("jit"), *WAY_FAULTS, *CLEAN_WAYS)


def _catalogue(backend: str) -> Sequence[Planted]:
    """All variants that there are for a backend."""
    if backend == "jit":
        from clipcheck.audit.faults import CLEAN, FAULTS

        return (*FAULTS, *CLEAN)
    from clipcheck.audit.faults.ways import CLEAN_WAYS, WAY_FAULTS

    return [variant for variant in (*WAY_FAULTS, *CLEAN_WAYS) if backend in variant.plants]


def _require_known(
    architectures: Sequence[str],
    seeds: Sequence[int],
    weights: Sequence[str],
    dtypes: Sequence[str],
    only: Sequence[str],
) -> None:
    from clipcheck.writers.synthesize import architecture_named
    from clipcheck.writers.trained import KINDS, require_trainable

    for name in architectures:
        architecture = architecture_named(name)
        if "trained" in weights:
            require_trainable(architecture)
    for what, known, given in (
        ("a kind of weights", KINDS, weights),
        ("a dtype", tuple(LIMITS), dtypes),
    ):
        for each in given:
            if each not in known:
                raise UsageError(
                    f"expected {what}, found {each!r}", remedy=f"Known are {', '.join(known)}."
                )
    names = {variant.name for variant in catalogue()}
    for name in only:
        if name not in names:
            raise UsageError(
                f"no variant is named {name!r}",
                remedy=f"{nearest(name, sorted(names))}; `clipcheck audit --list` lists all.",
            )
    if not (architectures and seeds and weights and dtypes):
        raise UsageError(
            "expected an architecture, a seed, a kind of weights and a dtype, found none",
            remedy="Give one of each.",
        )


def _count_in(counter: Any) -> None:
    """Set the counter of a process of the pool, in which it counts what is judged."""
    global _counter
    _counter = counter


def _audit_unit(unit: _Unit) -> list[Finding]:
    import torch

    torch.set_num_threads(unit.threads)
    findings = []
    with tempfile.TemporaryDirectory(prefix="clipcheck-audit-") as folder:
        judges = _Judges(unit, Path(folder))
        for backend, variant in _planned(unit):
            findings.append(judges(backend, variant))
            with _counter.get_lock():
                _counter.value += 1
    return findings


class _Judges:
    """Judges variants of one model; what they share is made where there is one that needs it."""

    def __init__(self, unit: _Unit, folder: Path) -> None:
        self._unit = unit
        self._folder = folder

    def __call__(self, backend: str, variant: Planted) -> Finding:
        """Plant a variant, and see what comes of it."""
        from clipcheck.audit.faults import Variant

        if isinstance(variant, Variant):
            return self._archives.judge(variant)
        gates, assertion = self._ways.judge(backend, variant)
        return _finding(self._unit, backend, variant, gates, assertion)

    @cached_property
    def _archives(self) -> _Bench:
        return _Bench(self._unit, self._folder)

    @cached_property
    def _ways(self) -> WayBench:
        from clipcheck.audit.bench_ways import WayBench
        from clipcheck.writers.synthesize import architecture_named
        from clipcheck.writers.trained import weights_of

        unit = self._unit
        architecture = architecture_named(unit.architecture)
        made = weights_of(architecture, unit.seed, unit.weights)
        return WayBench(architecture, unit.seed, made, self._folder)


def _planned(unit: _Unit) -> list[tuple[str, Planted]]:
    """The unit's share of what there is, each with its backend."""
    from clipcheck.writers.synthesize import architecture_named

    architecture = architecture_named(unit.architecture)
    found = [
        (backend, variant)
        for backend in unit.backends
        for variant in _catalogue(backend)
        if backend == "jit" or unit.dtype == "float32"
        if not unit.only or variant.name in unit.only
        if _applies(backend, variant, architecture)
    ]
    return found[unit.share :: unit.of]


def _applies(backend: str, variant: Planted, architecture: Architecture) -> bool:
    from clipcheck.audit.faults import Variant

    if isinstance(variant, Variant):
        return variant.applies_to(architecture)
    return variant.applies_to(backend, architecture)


def _finding(
    unit: _Unit,
    backend: str,
    variant: Planted,
    gates: Sequence[GateResult],
    assertion: GateResult,
    localisation: Localisation | None = None,
    localised: bool = False,
) -> Finding:
    from clipcheck.audit.faults import CLEAN_FAMILY

    failed = [gate for gate in gates if not gate.passed]
    return Finding(
        variant.name,
        variant.family,
        variant.reason,
        variant.family == CLEAN_FAMILY,
        unit.architecture,
        unit.seed,
        unit.weights,
        unit.dtype,
        gate=max(failed, key=lambda gate: gate.margin).name if failed else None,
        margin=max(gate.margin for gate in gates),
        classic_caught=not assertion.passed,
        greatest=_greatest(gates),
        localisation=localisation,
        localised=localised,
        backend=backend,
    )


def _greatest(gates: Sequence[GateResult]) -> dict[str, float]:
    found = (gate.figures.get("greatest", {}) for gate in gates)
    return {limit: float(ratio) for each in found for limit, ratio in each.items()}


def _is_at(place: Place, spot: Spot) -> bool:
    # The archive has one ReLU in a block, which serves three times; the eager model has three.
    names = {spot.name, *(f"{spot.name}{number}" for number in (1, 2, 3))}
    of_module = not place.part or place.part.startswith("its")  # itself, or its weights
    return place.module in names and (spot.part in place.part if spot.part else of_module)


class _Bench:
    """Judges variants of one model. The reference runs once: all have the same weights."""

    def __init__(self, unit: _Unit, folder: Path) -> None:
        import torch

        from clipcheck.writers.synthesize import architecture_named
        from clipcheck.writers.trained import weights_of

        self._unit = unit
        self._path = folder / "variant.pt"
        self._device = torch.device("cpu")
        self._architecture = architecture_named(unit.architecture)
        self._weights = weights_of(self._architecture, unit.seed, unit.weights)
        inputs = inputs_of(self._architecture)
        drawn = list(batches(CORNERS, inputs, unit.seed))
        lengths = lengths_for(self._architecture, unit.seed)
        effort = effort_for(self._architecture)
        with self._opened(self._write(None)) as sides:
            reference = sides.reference
        self._trial = self._prepare(reference, drawn, lengths=lengths, effort=effort)
        self._classic = self._prepare(reference, [classic(inputs)])

    def judge(self, variant: Variant) -> Finding:
        """Plant a variant, and see what comes of it."""
        from clipcheck.backends.jit import Archive

        checkpoint = self._write(variant.plant)
        with self._opened(checkpoint) as sides:
            candidate = Archive.build(sides.source)
            verdict = judge_candidate(self._trial, candidate, sides.source, Allclose(), Stopwatch())
            gates = verdict.gates
            assertion = allclose(self._classic.run(candidate).cases, Allclose())
        found = self._localise(variant, checkpoint) if self._unit.localize else None
        right = found is not None and self._is_right(found, variant)
        return _finding(self._unit, "jit", variant, gates, assertion, found, right)

    def _localise(self, variant: Variant, checkpoint: Checkpoint) -> Localisation | None:
        from clipcheck.audit.faults import CLEAN_FAMILY

        if variant.family == CLEAN_FAMILY:
            return None
        # Anew: some faults have changed the weights by now.
        with self._opened(checkpoint) as sides:
            return first_departures(sides.source, Stopwatch())

    def _is_right(self, found: Localisation, variant: Variant) -> bool:
        """Whether the place in each tower is the first that was altered there."""
        from clipcheck.audit.faults.where import spots

        if variant.hidden and not found.found:
            return True
        first: dict[Tower, Spot] = {}
        for spot in spots(variant.places or (), self._architecture):
            first.setdefault(tower_of(spot.name), spot)
        return {place.tower for place in found.found} == first.keys() and all(
            _is_at(place, first[place.tower]) for place in found.found
        )

    def _write(self, plant: Alter | None) -> Checkpoint:
        from clipcheck.checkpoints.formats import open_checkpoint
        from clipcheck.writers.archive import write_archive

        torchscript_support.forget_classes()
        write_archive(self._architecture, self._weights, self._path, alter=plant)
        return open_checkpoint(self._path)

    def _opened(self, checkpoint: Checkpoint) -> AbstractContextManager[OpenSides]:
        """Open the checkpoint in this process: it was written here."""
        from clipcheck.backends.loading import opened_sides

        return opened_sides(checkpoint, None, self._device, self._unit.dtype, archive=True)

    def _prepare(
        self,
        reference: Reference,
        drawn: list[Batch],
        *,
        lengths: Batch | None = None,
        effort: Effort | None = None,
    ) -> Trial:
        dtype = self._unit.dtype
        return Trial.of(reference, drawn, dtype, Stopwatch(), lengths=lengths, effort=effort)
