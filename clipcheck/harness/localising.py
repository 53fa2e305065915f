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
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.formats import open_checkpoint, require_found
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.checkpoints.told import named
from clipcheck.errors import RunError
from clipcheck.gates.localisation import Localisation, Tower
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
    """Where a checkpoint departs."""

    localisation: Localisation

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
    opened = open_checkpoint(name, download_root, key=key, told=told)
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
    )


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
    from clipcheck.harness.modules.whole import tower_in, walk_library

    archive = runner or (source.archive.runner if source.archive else None)
    if archive is None:
        raise ValueError("expected an archive that is loaded")
    limits, model = LIMITS[source.dtype], source.checkpoint.model
    found = Localisation.nowhere()
    for what, batch, tower in _inputs(inputs_of(model), seed, suspect):
        placed = {place.tower for place in found.found}
        if tower in placed or (tower is None and placed):
            continue
        batch = batch.of_sizes(*sizes)
        with watch.phase("localisation"):
            tower_of: Callable[[str], Tower] | None = None
            if isinstance(model, LibraryArchitecture):
                tower_of = partial(tower_in, source.model)
                eager = source.model
                here = walk_library(archive, eager, model, batch, source.device, limits, what)
            else:
                here = walk(archive, source.clip, batch, source.device, limits, what)
        changed = Localisation.of_changed(archive.changed(), what, tower_of)
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
