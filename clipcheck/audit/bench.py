"""Judge variants of the catalogue, planted into any backend of one model.

A variant is written as an archive, or planted into the source of another backend, and is then
judged like any checkpoint. The classic assertion of one image and three prompts is run as well.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.faults.where import Spot, spots, spots_in
from clipcheck.audit.findings import Finding
from clipcheck.audit.small import model_named
from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.loading import opened_sides
from clipcheck.backends.reference import Reference, exact_floats
from clipcheck.backends.registry import Choice
from clipcheck.backends.source import Source
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.families.model_inputs import inputs_of
from clipcheck.families.registry import parameters_of, sizes_of
from clipcheck.gates.allclose import allclose
from clipcheck.gates.budget import inputs_for, parse_budget
from clipcheck.gates.localisation import HEAD, Localisation, Place, Tower, tower_of
from clipcheck.gates.result import LOGITS, OUTPUTS, Case, GateResult, expected_outputs
from clipcheck.gates.tolerances import Allclose
from clipcheck.harness.judging import judge_candidate
from clipcheck.harness.localising import first_departures
from clipcheck.harness.modules.whole import BETWEEN, MISSING, OUTSIDE, tower_in
from clipcheck.harness.phases import Stopwatch
from clipcheck.harness.running import run_candidate
from clipcheck.harness.trial import Trial, effort_for, lengths_for
from clipcheck.inputs.batches import batches, classic, population
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.models.loader import load_eager
from clipcheck.system import torchscript_support
from clipcheck.writers.archive import Alter, write_archive
from clipcheck.writers.convert import write
from clipcheck.writers.library import write_folder
from clipcheck.writers.trained import weights_of

CPU = torch.device("cpu")

_ENDS = (OUTSIDE, HEAD)
"""Parts of a library's model that are not modules."""

ARCHIVE = "variant.pt"
"""Name of the archive that a variant is written to."""


@dataclass(frozen=True)
class Model:
    """A model that variants are planted into.

    Attributes:
        dtype: dtype of the computation, unless a variant has its own dtype.
    """

    architecture: str
    seed: int
    weights: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.architecture}, seed {self.seed}, {self.weights} weights, {self.dtype}"


@dataclass(frozen=True)
class Setting:
    """The reference and its outputs, shared by all variants in one dtype. Its weights come from a
    safetensors file, so that only TorchScript backends need an archive.

    Attributes:
        source: the sound model, without an archive.
        trial: inputs and reference outputs for the gates.
        classic: inputs and reference outputs for the classic assertion.
    """

    source: Source
    trial: Trial
    classic: Trial


class Bench:
    """Judge variants of one model. The reference runs once in each dtype, because all variants
    have the same weights.

    Args:
        described: the architecture; by default the one that the model's name has in an audit.
    """

    def __init__(
        self,
        model: Model,
        folder: Path,
        described: Architecture | LibraryArchitecture | None = None,
    ) -> None:
        self.model = model
        self.described = described or model_named(model.architecture)
        self._folder = folder
        if isinstance(self.described, LibraryArchitecture):
            path = folder / "model"
            write_folder(self.described, path, model.seed)
        else:
            self._weights = weights_of(self.described, model.seed, model.weights)
            path = folder / "weights.safetensors"
            write(self.described, self._weights, path, Format.SAFETENSORS)
        self._checkpoint = open_checkpoint(path)
        self._limits = Allclose(sigmoid=sizes_of(self.described).sigmoid)
        self.setting = cache(self._setting)

    @property
    def architecture(self) -> Architecture:
        """The architecture of a model that clipcheck's own modules compute.

        Raises:
            UnfitError: a library computes the model.
        """
        if isinstance(self.described, LibraryArchitecture):
            raise self.described.unfit()
        return self.described

    def find(self, variant: Variant, backend: str, *, localize: bool = False) -> Finding:
        """Plant a variant and judge it.

        Args:
            localize: find the first place where a fault departs, if the variant has a place.

        Raises:
            RunError: the backend cannot be built with it.
        """
        look = localize and variant.places is not None
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            gates, assertion, found = self._judged(variant, backend, Path(scratch), look=look)
        right = found is not None and self.is_right(found, variant)
        failed = [gate for gate in gates if not gate.passed]
        model = self.model
        return Finding(
            name=variant.name,
            family=variant.family,
            reason=variant.reason,
            clean=variant.clean,
            architecture=model.architecture,
            seed=model.seed,
            weights=model.weights,
            dtype=model.dtype,
            gate=max(failed, key=lambda gate: gate.margin).name if failed else None,
            margin=max(gate.margin for gate in gates if gate.judged),
            classic_caught=not assertion.passed,
            backend=backend,
            greatest=_greatest(gates),
            localisation=found,
            localised=right,
        )

    def judge(
        self, variant: Variant, backend: str, scratch: Path
    ) -> tuple[Sequence[GateResult], GateResult]:
        """Plant a variant into a backend; return the results of the gates and the classic one.

        Args:
            scratch: a folder for the files of this variant only.
        """
        gates, assertion, _ = self._judged(variant, backend, scratch, look=False)
        return gates, assertion

    def _judged(
        self, variant: Variant, backend: str, scratch: Path, *, look: bool
    ) -> tuple[Sequence[GateResult], GateResult, Localisation | None]:
        """Judge a variant, and find where it departs if ``look``; None if the backend does not show
        modules."""
        setting = self.setting(variant.dtype or self.model.dtype, variant.budget)
        place = None
        # A fault planted into a library stays there until all runs are done.
        with self.planted(variant, backend, scratch) as source:
            with exact_floats():
                candidate = Choice(backend).backend.build(source)
            with candidate:
                model = source.model if source.archive else setting.source.model
                candidate.lacks = frozenset(OUTPUTS).difference(model.outputs)
                found = judge_candidate(
                    setting.trial, candidate, source, self._limits, Stopwatch(), model=model
                )
                assertion = self._classic(run_candidate(setting.classic, candidate).cases)
                if look and source.archive is None and candidate.runs_modules:
                    place = first_departures(
                        setting.source,
                        Stopwatch(),
                        shown=candidate.runner,
                        sizes=candidate.batch_sizes,
                    )
            archive = source.archive is not None
        if look and archive:
            # Planted again: some faults have changed the weights by now.
            with self.planted(variant, backend, scratch) as source:
                place = first_departures(source, Stopwatch())
        return found.gates, assertion, place

    def _classic(self, cases: Sequence[Case]) -> GateResult:
        """Assert the probabilities; a single tower has none, so that its assertion cannot fail."""
        if not expected_outputs(cases, LOGITS):
            return GateResult(name="allclose", passed=True, message="no logits to compare")
        return allclose(cases, self._limits)

    @contextmanager
    def planted(self, variant: Variant, backend: str, scratch: Path) -> Iterator[Source]:
        """Give the source of the backend, with the variant planted; an archive that is already in
        the folder is opened again."""
        choice = Choice(backend)
        if choice.backend.needs_archive:
            archive = scratch / ARCHIVE
            if not archive.exists():
                self.written(variant.plant, scratch)
            torchscript_support.forget_classes()
            with self.opened(archive) as source:
                yield source
            return
        source = replace(
            self.setting(variant.dtype or self.model.dtype, variant.budget).source,
            options=choice.settings,
            scratch=scratch,
        )
        with variant.plants[backend](source) as changed:
            yield changed

    def written(self, alter: Alter | None, folder: Path) -> Path:
        """Write an archive of the model with altered modules."""
        torchscript_support.forget_classes()
        path = folder / ARCHIVE
        write_archive(self.architecture, self._weights, path, alter=alter)
        return path

    @contextmanager
    def opened(self, archive: Path) -> Iterator[Source]:
        """Open an archive in this process, without a sandbox: it was written here."""
        opened = opened_sides(open_checkpoint(archive), None, CPU, self.model.dtype, archive=True)
        with opened as sides:
            yield sides.source

    def is_right(self, found: Localisation, variant: Variant) -> bool:
        """Whether the place found in each tower is the first altered place of that tower."""
        if variant.hidden and not found.found:
            return True
        first: dict[Tower, Spot] = {}
        for tower, spot in self._spots(variant):
            first.setdefault(tower, spot)
        return {place.tower for place in found.found} == first.keys() and all(
            is_at(place, first[place.tower]) for place in found.found
        )

    def _spots(self, variant: Variant) -> Iterator[tuple[Tower, Spot]]:
        """Yield the places where a variant is planted, each with its tower."""
        places = variant.places or ()
        if isinstance(self.described, LibraryArchitecture):
            model = self.setting(variant.dtype or "float32", variant.budget).source.model
            for spot in spots_in(places, model):
                yield tower_in(model, spot.name), spot
            return
        for spot in spots(places, self.architecture):
            yield tower_of(spot.name), spot

    def _setting(self, dtype: str, lossy: str | None = None) -> Setting:
        described = self.described
        model = load_eager(self._checkpoint, CPU, getattr(torch, dtype))
        reference = Reference(model, described, CPU)
        inputs, seed = inputs_of(described), self.model.seed
        budget = None if lossy is None else parse_budget(lossy)
        drawn = population(0 if budget is None else inputs_for(budget), inputs, seed)
        trial = Trial.of(
            reference,
            list(batches(EDGE_CASES, inputs, seed)),
            dtype,
            Stopwatch(),
            lengths=lengths_for(described, seed),
            outputs=sizes_of(described).outputs,
            texts=inputs.texts,
            effort=effort_for(inputs, parameters_of(described)),
            budget=budget,
            population=list(drawn),
        )
        folder = self._folder
        return Setting(
            Source(
                checkpoint=self._checkpoint,
                model=model,
                device=CPU,
                dtype=dtype,
                options={},
                scratch=folder,
                artefacts=Artefacts(None, folder),
            ),
            trial,
            Trial.of(reference, [classic(inputs)], dtype, Stopwatch()),
        )


def is_at(place: Place, spot: Spot) -> bool:
    """Whether ``place``, which was found, is ``spot``, which was altered."""
    # A block of the archive has one ReLU, which is called three times; the eager model has three.
    names = {spot.name, *(f"{spot.name}{number}" for number in (1, 2, 3))}
    # The module itself, its weights, or code between its modules in a library's model.
    # Folded into one operation, a convolution and its BatchNorm cannot be distinguished.
    both = place.part.removeprefix("itself, or ")
    if both in names:
        return not spot.part
    of_module = place.part in ("", BETWEEN, MISSING, *_ENDS) or place.part.startswith("its")
    return place.module in names and (spot.part in place.part if spot.part else of_module)


def _greatest(gates: Sequence[GateResult]) -> Mapping[str, float]:
    found = (gate.figures.get("greatest", {}) for gate in gates)
    return {limit: float(ratio) for each in found for limit, ratio in each.items()}
