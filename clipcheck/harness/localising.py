"""Find where an archive first departs from the eager model, in each tower."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from clipcheck.backends.calling import Rows
from clipcheck.backends.cells import cell_for, isolation_named, prepare
from clipcheck.backends.loading import build, opened_sides
from clipcheck.backends.registry import Choice, default_for
from clipcheck.backends.source import Source
from clipcheck.backends.weights import compare_weights
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, Program
from clipcheck.checkpoints.formats import open_checkpoint, require_found
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.checkpoints.opening import open_pair
from clipcheck.checkpoints.told import named
from clipcheck.errors import RunError, UsageError
from clipcheck.gates.localisation import Localisation, Tower, tower_of
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness.judging import Stopwatch, inputs_of
from clipcheck.inputs.batches import EDGE_CASES, Batch, Inputs, batches, for_modules
from clipcheck.results.judgement import Conditions, Cost, Subject
from clipcheck.system.progress import say_import, silent

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.forward import ByName


_TOWERS: Mapping[str, Tower] = {"image_features": "image", "text_features": "text"}
"""The tower of each output of features."""


@dataclass(frozen=True, kw_only=True)
class Localised(Cost, Conditions, Subject):
    """Where a checkpoint departs.

    Attributes:
        asked_reference: ``--reference``, or None.
    """

    localisation: Localisation
    asked_reference: str | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing departs."""
        return not self.localisation.found


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
    key: str | None = None,
    architecture: str | os.PathLike[str] | None = None,
    reference: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    seed: int = 0,
    isolation: str | None = None,
    download_root: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Localised:
    """Run an archive, and find the first module of each tower that departs.

    Args:
        checkpoint: a path or a released name.
        key: as for `clipcheck.check`.
        architecture: as for `clipcheck.check`.
        reference: the model that an archive was made from, which tells its architecture. A module
            whose weight is not the reference's, rounded at most, departs as well.
        device: default: the GPU if there is one.
        dtype: to compute in.
        seed: of the inputs.
        isolation: as for `clipcheck.check`.
        download_root: folder for released files.
        progress: called with a text before each phase.

    Raises:
        ClipcheckError: the checkpoint or the device cannot be used; the subclass tells why.
    """
    require_found(checkpoint)
    prepare([os.fspath(checkpoint)], isolation_named(isolation))

    say = progress or silent
    say_import(say)
    from clipcheck.models.loader import resolve_device

    name = os.fspath(checkpoint)
    watch = Stopwatch()
    target = resolve_device(device)
    say(f"{name}: reading")
    told = None if architecture is None else named(os.fspath(architecture))
    if reference is None:
        opened, other = open_checkpoint(name, download_root, key=key, told=told), None
    else:
        opened, other = _opened_beside(name, reference, download_root, key, architecture)
    opened.verify()
    say(f"{name}: loading both models on {target} in {dtype}")
    with (
        cell_for(opened, target, isolation_named(isolation)) as cell,
        opened_sides(opened, None, target, dtype, archive=True, cell=cell) as sides,
    ):
        with watch.phase("load"):
            source = sides.load().source
        say(f"{name}: comparing its modules")
        sizes = _batch_sizes(source, seed)
        found = first_departures(source, watch, seed=seed, sizes=sizes)
        if other is not None:
            found = found.with_changed_weights(_with_other_weights(source, other))
    return Localised(
        name,
        str(target),
        path=str(opened.path),
        sha256=opened.sha256,
        dtype=dtype,
        seconds=dict(watch.seconds),
        localisation=found,
        key=key,
        asked_architecture=None if told is None else told.argument,
        asked_reference=None if reference is None else os.fspath(reference),
    )


def _opened_beside(
    name: str,
    reference: str | os.PathLike[str],
    download_root: str | os.PathLike[str] | None,
    key: str | None,
    architecture: str | os.PathLike[str] | None,
) -> tuple[Checkpoint, Checkpoint | None]:
    """Open an archive and its reference."""
    require_found(os.fspath(reference))
    opened, other = open_pair(name, reference, download_root, key=key, architecture=architecture)
    if isinstance(opened, Program):
        raise UsageError(
            f"expected an archive, whose modules are compared, found a program ({opened.format})",
            remedy="Judge it by its outputs: clipcheck check.",
            path=opened.path,
        )
    if other is not None:
        other.verify()
    return opened, other


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
    runner: ByName | None = None,
    seed: int = 0,
    suspect: Suspect | None = None,
    sizes: Rows = (None, None),
) -> Localisation:
    """Compare an archive's modules on more and more inputs, until one departs.

    First the inputs of the gate ``modules``; then the failing input, if no place was found in its
    tower; then the edge cases, if no place was found at all.

    Args:
        source: an archive, with the weights of the file; running it may change them.
        runner: runs what is to be walked through; by default the source's archive.
        sizes: the only numbers of images and prompts with which it runs; None for any.
    """
    from clipcheck.harness.modules.walk import walk
    from clipcheck.harness.modules.whole import walk_library

    archive = runner or (source.archive.runner if source.archive else None)
    if archive is None:
        raise ValueError("expected an archive that is loaded")
    model = source.checkpoint.model
    found = Localisation.nowhere()
    for what, batch, tower in _inputs(inputs_of(model), seed, suspect):
        placed = {place.tower for place in found.found}
        if tower in placed or (tower is None and placed):
            continue
        batch = batch.of_sizes(*sizes)
        with watch.phase("localisation"):
            if isinstance(model, LibraryArchitecture):
                here = walk_library(archive, source, model, batch, what)
            else:
                limits = LIMITS[source.dtype]
                here = walk(archive, source.clip, batch, source.device, limits, what)
        changed = Localisation.of_changed(archive.changed(), what, _tower_for(source))
        found = found.fill_from(here.with_changed_weights(changed))
    return found


def _batch_sizes(source: Source, seed: int) -> Rows:
    """Run an archive in two sizes, to find the only ones with which it runs."""
    batch = for_modules(inputs_of(source.checkpoint.model), seed)
    with build(Choice(default_for(Format.ARCHIVE)), source) as candidate:
        for each in (batch, batch.of_sizes(1, 1)):
            with suppress(RunError):
                candidate.outputs(each.pixels, each.tokens)
    return candidate.batch_sizes


def _inputs(
    inputs: Inputs, seed: int, suspect: Suspect | None
) -> Iterator[tuple[str, Batch, Tower | None]]:
    """Yield a description, a batch, and the tower that it is for (None for any)."""
    yield "those of the `modules` gate", for_modules(inputs, seed), None
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
