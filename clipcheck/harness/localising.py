"""Find where an archive or a program first departs from the eager model, in each tower."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from clipcheck.backends.base import Backend
from clipcheck.backends.calling import Rows
from clipcheck.backends.loading import OpenSides, build, opened_sides, require_runs
from clipcheck.backends.names import OF_ARCHIVES
from clipcheck.backends.registry import Choice, default_for, showing_modules
from clipcheck.backends.sandboxes import prepare, sandbox_for
from clipcheck.backends.source import Source
from clipcheck.backends.weights import compare_weights
from clipcheck.checkpoints.checkpoint import Checkpoint, Program
from clipcheck.checkpoints.formats import require_found
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.checkpoints.opening import open_pair
from clipcheck.errors import RunError, UnfitError, UsageError
from clipcheck.families.model_inputs import inputs_of
from clipcheck.families.registry import verified
from clipcheck.gates.distance import Ruler
from clipcheck.gates.localisation import Localisation, Tower, tower_of
from clipcheck.gates.optimised import Optimised
from clipcheck.gates.result import Case
from clipcheck.gates.tolerances import LIMITS, Allclose
from clipcheck.harness.optimising import Fails, find_optimised, on_batch
from clipcheck.harness.options import CheckOptions
from clipcheck.harness.phases import Stopwatch
from clipcheck.harness.search.probe import Probe
from clipcheck.inputs.batches import Batch, Inputs, batches, for_modules
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.results.judgement import Conditions, Cost, Subject
from clipcheck.system.progress import say_import, silent

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.runner import Shows


_TOWERS: Mapping[str, Tower] = {"image_features": "image", "text_features": "text"}
"""The tower of each output of features."""


@dataclass(frozen=True, kw_only=True)
class Localised(Cost, Conditions, Subject):
    """Where a checkpoint departs.

    Attributes:
        optimised: what of its library's optimiser makes it depart, if it does not without; or None.
    """

    localisation: Localisation
    optimised: Optimised | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing departs."""
        return not self.localisation.found and self.optimised is None


@dataclass(frozen=True)
class Suspect:
    """An input that an archive fails on.

    Attributes:
        batch: the input; images or prompts may be missing.
    """

    batch: Batch
    output: str


def localize(
    checkpoint: str | os.PathLike[str],
    *,
    backend: str | None = None,
    key: str | None = None,
    architecture: str | os.PathLike[str] | None = None,
    reference: str | os.PathLike[str] | None = None,
    map: str | Sequence[str] | None = None,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    seed: int = CheckOptions.seed,
    isolation: str | None = None,
    download_root: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Localised:
    """Run an archive or a program, and find the first module of each tower that departs.

    Args:
        checkpoint: a path or a released name.
        backend: that runs it, one that shows modules. Default: the one for the file's format.
        key: as for `clipcheck.check`.
        architecture: as for `clipcheck.check`.
        reference: the model that the archive or program was made from. It has the weights of a
            program; of an archive, it tells the architecture, and a module whose weight is not the
            reference's, rounded at most, departs as well.
        map: as for `clipcheck.check`.
        device: default: the GPU if there is one.
        dtype: to compute in. Default: float32.
        seed: of the inputs.
        isolation: as for `clipcheck.check`.
        download_root: folder for released files.
        progress: called with a text before each phase.

    Raises:
        ClipcheckError: the checkpoint or the device cannot be used; the subclass tells why.
    """
    dtype = dtype or "float32"
    options = CheckOptions(
        backend=backend,
        key=key,
        reference=reference,
        architecture=architecture,
        map=map,
        device=device,
        dtype=dtype,
        seed=seed,
        isolation=isolation,
        download_root=download_root,
    )
    require_found(checkpoint)
    prepare([os.fspath(checkpoint)], options.apart)

    say = progress or silent
    say_import(say)
    from clipcheck.backends.reference import exact_floats
    from clipcheck.models.loader import resolve_device

    name = os.fspath(checkpoint)
    watch = Stopwatch()
    target = resolve_device(device)
    say(f"{name}: reading")
    if reference is not None:
        require_found(reference)
    subject, other = open_pair(name, reference, download_root, key=key, architecture=options.told)
    program = isinstance(subject, Program)
    if isinstance(subject, Checkpoint):
        subject = verified(subject)
    other = other and verified(other)
    choice = _only(options.choices) or Choice(default_for(subject.format) or OF_ARCHIVES)
    require_runs(choice, subject)
    say(f"{name}: loading both models on {target} in {dtype}")
    with (
        sandbox_for(subject, target, options.apart) as sandbox,
        opened_sides(
            subject,
            other if program else None,
            target,
            dtype,
            archive=choice.backend.needs_archive,
            sandbox=sandbox,
            artefacts=options.artefacts,
            names=options.names,
        ) as sides,
    ):
        with watch.phase("load"), exact_floats():
            candidate = build(choice, sides.load().source)
        with candidate:
            if not candidate.runs_modules:
                raise UnfitError(
                    f"{choice}: it does not show its modules",
                    remedy=f"Choose one of these backends: {', '.join(showing_modules())}.",
                    path=subject.path,
                )
            say(f"{name}: comparing its modules")
            sizes = _batch_sizes(candidate, sides.source, seed)
            shown = None if choice.backend.needs_archive else candidate.runner
            found = first_departures(sides.source, watch, shown=shown, seed=seed, sizes=sizes)
            if other is not None and not program:
                found = found.with_changed_weights(_with_other_weights(sides.source, other))
            optimised = None
            if candidate.optimisers:
                say(f"{name}: running it with less graph optimisation")
                optimised = _optimised(candidate, sides, found, seed)
    return Localised(
        name,
        str(target),
        path=str(subject.path),
        sha256=subject.sha256,
        dtype=dtype,
        backend=str(choice),
        reference_checkpoint=None if other is None else str(other.path),
        seconds=dict(watch.seconds),
        localisation=found,
        optimised=optimised,
        key=key,
        asked_architecture=options.told,
        asked_names=options.names,
        options=options.asked,
    )


def _optimised(
    candidate: Backend, sides: OpenSides, found: Localisation, seed: int
) -> Optimised | None:
    """Find what of its library's optimiser makes its outputs depart, or else its modules."""
    source, reference = sides.source, sides.reference
    sizes = candidate.batch_sizes
    batch = for_modules(inputs_of(source.checkpoint.model), seed).of_sizes(*sizes)
    inputs = [(batch.pixels, batch.tokens)]
    (own,), (exact,) = reference.outputs(inputs), reference.exact_outputs(inputs)
    ruler = Ruler(
        [Case(candidate=own, reference=own, exact=exact)], LIMITS[source.dtype], reference.scale
    )
    probe = Probe(candidate, reference.standing(), ruler, Allclose())
    fails = on_batch(probe, batch, "those of the `modules` gate")
    if fails.call():
        return find_optimised(candidate, fails, batch)
    if not found.found:
        return None

    def modules_depart() -> bool:
        shown, watch = candidate.runner, Stopwatch()
        return bool(first_departures(source, watch, shown=shown, seed=seed, sizes=sizes).found)

    return find_optimised(candidate, Fails(fails.given, modules_depart), batch)


def _only(choices: Sequence[Choice]) -> Choice | None:
    """Return the backend that was chosen, or None.

    Raises:
        UsageError: several were chosen.
    """
    if len(choices) > 1:
        raise UsageError(
            f"expected one backend, found {', '.join(map(str, choices))}", remedy="Name one."
        )
    return choices[0] if choices else None


def _with_other_weights(source: Source, reference: Checkpoint) -> Localisation:
    """Find the weights that are not the reference's."""
    differing = compare_weights(source.checkpoint, reference)
    found = {each.key: str(each) for each in differing if not each.harmless}
    return Localisation.of_weights(found, _tower_for(source))


def _tower_for(source: Source) -> Callable[[str], Tower]:
    """Return a function that tells the tower of a module or weight."""
    from clipcheck.harness.modules.whole import tower_in

    library = isinstance(source.checkpoint.model, LibraryArchitecture)
    return partial(tower_in, source.model) if library else tower_of


def first_departures(
    source: Source,
    watch: Stopwatch,
    *,
    shown: Shows | None = None,
    seed: int = CheckOptions.seed,
    suspect: Suspect | None = None,
    sizes: Rows = (None, None),
) -> Localisation:
    """Compare an archive's or a program's modules on more and more inputs, until one departs.

    First the inputs of the gate ``modules``, and each module of a program alone; then the failing
    input, if no place was found in its tower; then the edge cases, if no place was found at all.

    Args:
        source: of the eager model; running an archive may change the weights that both share.
        shown: shows the candidate's modules; by default the source's archive.
        sizes: the only numbers of images and prompts with which it runs; None for any.
    """
    from clipcheck.harness.modules.walk import walk
    from clipcheck.harness.modules.whole import walk_library

    archive = shown or (source.archive.runner if source.archive else None)
    if archive is None:
        raise ValueError("expected an archive that is loaded")
    model = source.checkpoint.model
    found = Localisation.nowhere()
    # An archive's modules are called alone only by the gate.
    alone = archive.of_program and source.dtype == "float32"
    for what, batch, tower in _inputs(inputs_of(model), seed, suspect):
        placed = {place.tower for place in found.found}
        if tower in placed or (tower is None and placed):
            continue
        fitting = batch.of_sizes(*sizes)
        with watch.phase("localisation"):
            if isinstance(model, LibraryArchitecture):
                here = walk_library(archive, source, model, fitting, what)
            else:
                limits = LIMITS[source.dtype]
                here = walk(archive, source.clip, fitting, source.device, limits, what, alone=alone)
                alone = False
        changed = Localisation.of_changed(archive.changed(), what, _tower_for(source))
        found = found.fill_from(here.with_changed_weights(changed))
    return found


def _batch_sizes(candidate: Backend, source: Source, seed: int) -> Rows:
    """Run a candidate in two sizes, to find the only ones with which it runs."""
    batch = for_modules(inputs_of(source.checkpoint.model), seed)
    for each in (batch, batch.of_sizes(1, 1)):
        with suppress(RunError):
            candidate.outputs(each.pixels, each.tokens)
    return candidate.batch_sizes


def _inputs(
    inputs: Inputs, seed: int, suspect: Suspect | None
) -> Iterator[tuple[str, Batch, Tower | None]]:
    """Yield a description, a batch, and the tower that it is for (None for any)."""
    yield "the fixed batch of the gate `modules`", for_modules(inputs, seed), None
    if suspect is not None:
        yield (
            "the input that fails",
            _distinguishable(suspect.batch, inputs),
            _TOWERS.get(suspect.output),
        )
    for number, batch in enumerate(batches(EDGE_CASES, inputs, seed), start=1):
        yield f"batch {number} of the edge cases", _distinguishable(batch, inputs), None


def _distinguishable(batch: Batch, inputs: Inputs) -> Batch:
    """Repeat the first row at the end if there are as many rows as positions, which could not be
    told apart."""
    images, prompts = list(range(len(batch.pixels))), list(range(len(batch.tokens)))
    images += images[:1] if len(images) == 1 + inputs.grid**2 else []
    prompts += prompts[:1] if len(prompts) == inputs.context_length else []
    return batch.select(images, prompts)
