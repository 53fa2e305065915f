"""Measure what the gates see: plant each fault of the catalogue, and each clean variant.

Every variant becomes an archive like any other, is loaded and judged like any other. Beside the
gates stands the classic assertion as people run it: one image, three prompts.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcheck import torchscript_support
from clipcheck.compare.contract import contract
from clipcheck.compare.localisation import Localisation, Place, Tower, tower_of
from clipcheck.compare.result import GateResult
from clipcheck.compare.tolerances import Contract
from clipcheck.errors import UsageError
from clipcheck.inputs.batches import CORNERS, Batch, batches, classic
from clipcheck.judging import Stopwatch, Trial, inputs_of, judge_candidate
from clipcheck.localising import first_departures
from clipcheck.progress import Progress, Span, silent

if TYPE_CHECKING:
    from clipcheck.backends.base import Source
    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.faults import Variant
    from clipcheck.faults.where import Spot
    from clipcheck.models.loader import Both
    from clipcheck.writers.archive import Alter

ARCHITECTURES = ("tiny-vit", "tiny-resnet")
"""What is audited by default."""

_LOOKS = 0.5
"""Seconds between two looks at how many variants are judged."""

_counter: Any = None
"""In a process of the pool, what all of them count in. It can only be given as one starts."""


@dataclass(frozen=True)
class Finding:
    """What the gates made of one variant, in one architecture, with one set of weights.

    Attributes:
        name: of the variant.
        family: of the variant.
        reason: what it is.
        clean: whether it has to pass.
        architecture: what it was planted into.
        seed: of the weights.
        spread: of the weights.
        gate: the gate that failed by most, or None.
        margin: how many times what is allowed that was; for a variant that passes, how much of
            what is allowed.
        classic_caught: whether the classic assertion fails.
        greatest: the greatest ratio to the eager model's error under each limit, by its name in
            `clipcheck.compare.tolerances.Limits`.
        localisation: where it departs, if that was asked for of a fault.
        localised: whether it departs where the fault was planted, and nowhere else.
    """

    name: str
    family: str
    reason: str
    clean: bool
    architecture: str
    seed: int
    spread: str
    gate: str | None
    margin: float
    classic_caught: bool
    greatest: Mapping[str, float] = field(default_factory=dict)
    localisation: Localisation | None = None
    localised: bool = False

    @property
    def caught(self) -> bool:
        """Whether any gate failed."""
        return self.gate is not None

    @property
    def right(self) -> bool:
        """Whether a fault was caught, or a clean variant passed."""
        return self.caught != self.clean


@dataclass(frozen=True)
class Audit:
    """What an audit found, in the order of the catalogue."""

    findings: Sequence[Finding]

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
        """Those of faults that a place was looked for."""
        return [finding for finding in self.findings if finding.localisation is not None]

    @property
    def faults(self) -> Sequence[Finding]:
        """Those of faults."""
        return [finding for finding in self.findings if not finding.clean]

    @property
    def clean(self) -> Sequence[Finding]:
        """Those of clean variants."""
        return [finding for finding in self.findings if finding.clean]


@dataclass(frozen=True)
class _Unit:
    """What one process works on: one architecture with one set of weights, and every variant of
    the catalogue, or each whose number leaves ``share`` when it is divided by ``of``."""

    architecture: str
    seed: int
    spread: str
    only: tuple[str, ...]
    share: int
    of: int
    threads: int
    localize: bool


def audit(
    architectures: Sequence[str] = ARCHITECTURES,
    *,
    seeds: Sequence[int] = (0,),
    spreads: Sequence[str] = ("unit",),
    only: Sequence[str] = (),
    threads: int | None = None,
    localize: bool = False,
    progress: Progress | None = None,
) -> Audit:
    """Judge every variant of the catalogue in every architecture with every set of weights.

    Args:
        architectures: released names, ``tiny-vit`` or ``tiny-resnet``.
        seeds: of the weights.
        spreads: of the weights, see `clipcheck.writers.synthesize.SPREADS`.
        only: names of variants; by default the whole catalogue.
        threads: of torch, in each process; by default the cores are divided.
        localize: find where each fault departs first, and compare with where it was planted.
        progress: called with a few words as it begins and after each part; one that is a
            `clipcheck.progress.Gauge` is also told how much is done.

    Raises:
        UnknownModelError: there is no architecture of that name.
        UsageError: there is no spread or variant of that name, or nothing to audit.
    """
    _require_known(architectures, seeds, spreads, only)
    units = _units(architectures, seeds, spreads, tuple(only), threads, localize)
    # Spawned: a fork of a process that has used torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    span = Span(progress or silent)
    total = sum(len(_variants(unit)) for unit in units)
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
                    f"{unit.architecture}, seed {unit.seed}, {unit.spread} weights: "
                    f"{len(done[unit])} variants judged (part {len(done)} of {len(units)})"
                )
    return Audit(_in_order([finding for unit in units for finding in done[unit]]))


def _units(
    architectures: Sequence[str],
    seeds: Sequence[int],
    spreads: Sequence[str],
    only: tuple[str, ...],
    threads: int | None,
    localize: bool,
) -> list[_Unit]:
    """As many as there are cores, or more: small models gain nothing from threads."""
    cores = os.cpu_count() or 1
    plan = list(itertools.product(architectures, seeds, spreads))
    of = -(-cores // len(plan))
    threads = threads or max(1, cores // (len(plan) * of))
    return [
        _Unit(*each, only, share, of, threads, localize) for each in plan for share in range(of)
    ]


def _in_order(findings: Sequence[Finding]) -> list[Finding]:
    """By the catalogue's order, then by architecture as they come."""
    from clipcheck.faults import CLEAN, FAULTS

    order = {variant.name: number for number, variant in enumerate((*FAULTS, *CLEAN))}
    return sorted(findings, key=lambda finding: order[finding.name])


def _require_known(
    architectures: Sequence[str],
    seeds: Sequence[int],
    spreads: Sequence[str],
    only: Sequence[str],
) -> None:
    from clipcheck.faults import CLEAN, FAULTS
    from clipcheck.writers.synthesize import SPREADS, architecture_named

    for name in architectures:
        architecture_named(name)
    for spread in spreads:
        if spread not in SPREADS:
            raise UsageError(
                f"expected a spread of weights, found {spread!r}",
                remedy=f"Known are {', '.join(SPREADS)}.",
            )
    unknown = set(only) - {variant.name for variant in (*FAULTS, *CLEAN)}
    if unknown:
        raise UsageError(
            f"no variant is named {min(unknown)!r}",
            remedy="`clipcheck audit` without --only lists them all.",
        )
    if not (architectures and seeds and spreads):
        raise UsageError(
            "expected an architecture, a seed and a spread, found none", remedy="Give one of each."
        )


def _count_in(counter: Any) -> None:
    """In a process of the pool: count there what is judged."""
    global _counter
    _counter = counter


def _audit_unit(unit: _Unit) -> list[Finding]:
    import torch

    torch.set_num_threads(unit.threads)
    findings = []
    with tempfile.TemporaryDirectory(prefix="clipcheck-audit-") as folder:
        bench = _Bench(unit, Path(folder))
        for variant in _variants(unit):
            findings.append(bench.judge(variant))
            with _counter.get_lock():
                _counter.value += 1
    return findings


def _variants(unit: _Unit) -> list[Variant]:
    from clipcheck.faults import CLEAN, FAULTS
    from clipcheck.writers.synthesize import architecture_named

    architecture = architecture_named(unit.architecture)
    variants = [
        variant
        for variant in (*FAULTS, *CLEAN)
        if variant.applies_to(architecture) and (not unit.only or variant.name in unit.only)
    ]
    return variants[unit.share :: unit.of]


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

        from clipcheck.writers.synthesize import architecture_named, synthesize

        self._unit = unit
        self._path = folder / "variant.pt"
        self._device = torch.device("cpu")
        self._architecture = architecture_named(unit.architecture)
        self._weights = synthesize(self._architecture, unit.seed, unit.spread)
        inputs = inputs_of(self._architecture)
        _, both = self._write(None)
        self._trial = self._prepare(both, list(batches(CORNERS, inputs, unit.seed)))
        self._classic = self._prepare(both, [classic(inputs)])

    def judge(self, variant: Variant) -> Finding:
        """Plant a variant, and see what comes of it."""
        from clipcheck.backends.jit import Archive
        from clipcheck.faults import CLEAN_FAMILY

        source, both = self._write(variant.plant)
        candidate = Archive(source, both)
        gates = judge_candidate(self._trial, candidate, source, Contract(), Stopwatch()).gates
        assertion = contract(self._classic.run(candidate).cases, Contract())
        worst = max(gates, key=lambda gate: gate.margin)
        failed = [gate for gate in gates if not gate.passed]
        found = self._localise(variant, source.checkpoint) if self._unit.localize else None
        return Finding(
            variant.name,
            variant.family,
            variant.reason,
            variant.family == CLEAN_FAMILY,
            self._unit.architecture,
            self._unit.seed,
            self._unit.spread,
            gate=max(failed, key=lambda gate: gate.margin).name if failed else None,
            margin=worst.margin,
            classic_caught=not assertion.passed,
            greatest=_greatest(gates),
            localisation=found,
            localised=found is not None and self._is_right(found, variant),
        )

    def _localise(self, variant: Variant, checkpoint: Checkpoint) -> Localisation | None:
        from clipcheck.faults import CLEAN_FAMILY
        from clipcheck.models.loader import load_checkpoint_both

        if variant.family == CLEAN_FAMILY:
            return None
        # Anew: some faults have changed the weights by now.
        both = load_checkpoint_both(checkpoint, self._device)
        return first_departures(checkpoint, both, self._device, "float32", Stopwatch())

    def _is_right(self, found: Localisation, variant: Variant) -> bool:
        """Whether the place in each tower is the first that was altered there."""
        from clipcheck.faults.where import spots

        first: dict[Tower, Spot] = {}
        for spot in spots(variant.name, self._architecture):
            first.setdefault(tower_of(spot.name), spot)
        return {place.tower for place in found.found} == first.keys() and all(
            _is_at(place, first[place.tower]) for place in found.found
        )

    def _write(self, plant: Alter | None) -> tuple[Source, Both]:
        from clipcheck.backends.artefacts import Artefacts
        from clipcheck.backends.base import Source
        from clipcheck.checkpoints.formats import open_checkpoint
        from clipcheck.models.loader import load_checkpoint_both
        from clipcheck.writers.archive import write_archive

        torchscript_support.forget_classes()
        write_archive(self._architecture, self._weights, self._path, alter=plant)
        checkpoint = open_checkpoint(self._path)
        both = load_checkpoint_both(checkpoint, self._device)
        folder = self._path.parent
        nothing = Artefacts(None, folder)
        model = both.eager_model
        return Source(checkpoint, model, self._device, "float32", {}, folder, nothing, both), both

    def _prepare(self, both: Both, drawn: list[Batch]) -> Trial:
        from clipcheck.backends.reference import Reference

        reference = Reference(both.eager_model, self._architecture, self._device)
        return Trial.of(reference, drawn, "float32", Stopwatch())
