"""Find where an archive of a library's model departs first: in a module, in what lies between the
modules that one calls, or in what a method does outside of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from clipcheck.backends.forward import Sizes, outputs_of
from clipcheck.backends.reference import exact_arithmetic
from clipcheck.backends.runner import Runner
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.errors import RunError
from clipcheck.families.base import DualEncoder
from clipcheck.families.registry import sizes_of
from clipcheck.gates.localisation import (
    FORWARD,
    Failure,
    Localisation,
    Place,
    Tower,
    localise,
)
from clipcheck.gates.modules import ModuleError
from clipcheck.gates.result import ENCODERS, LOGITS
from clipcheck.gates.tolerances import Limits
from clipcheck.harness.modules.judge import NO_TENSORS, Judge, error_of
from clipcheck.harness.modules.library import LibraryTwins
from clipcheck.harness.modules.twins import Pair
from clipcheck.harness.modules.walk import HEAD
from clipcheck.inputs.batches import Batch
from clipcheck.models.facts import METHODS

OUTSIDE = "outside of its modules"
BETWEEN = "what lies between its modules"
MISSING = "which is not called as it should be"


def walk_library(
    archive: Runner,
    model: DualEncoder,
    library: LibraryArchitecture,
    batch: Batch,
    device: torch.device,
    limits: Limits,
    given: str,
) -> Localisation:
    """Find where an archive first departs from a library's eager model, in each tower.

    Each module is judged on what the archive gives it, and what a method gives on what it was
    given. A module whose own modules are as they should be departs by what lies between them.

    Args:
        archive: runs it, with the weights of ``model``.
        model: the eager model.
        library: its configuration.
        batch: inputs; of one kind there may be none, and that tower is not run.
        device: where both are.
        limits: of the model's dtype.
        given: what the batch is, for people.
    """
    with exact_arithmetic():
        walker = _Walker(archive, model, library, batch, device, limits)
        for method in METHODS:
            if method in archive.facts.methods:
                walker.run(method)
        return walker.localisation(given)


class _Walker:
    def __init__(
        self,
        archive: Runner,
        model: DualEncoder,
        library: LibraryArchitecture,
        batch: Batch,
        device: torch.device,
        limits: Limits,
    ) -> None:
        self._limits = limits
        self._inputs = {
            "encode_image": torch.from_numpy(batch.pixels).to(device),
            "encode_text": torch.from_numpy(batch.tokens).to(device),
        }
        self._archive = archive
        self._model = model
        self._twins = LibraryTwins(model, library, batch, device)
        self._judge = Judge(self._twins)
        width = sizes_of(library).embed_dim
        self._sizes = Sizes(len(batch.pixels), len(batch.tokens), width)
        self._features: dict[str, Pair] = {}
        self._failures: list[Failure] = []

    def run(self, method: str) -> None:
        """Call a method of the archive, and compare its modules and what it gives."""
        wanted = list(self._inputs) if method == FORWARD else [method]
        inputs = [self._inputs[each] for each in wanted]
        if not all(map(len, inputs)):
            return
        try:
            found = self._archive.listen(method, inputs, self._twins.blocks, self._judge.listen)
        except RunError as error:
            running = self._judge.running
            self._failures.append(
                Failure(method, running[-1][0].module if running else "", error.problem)
            )
            running.clear()
            return
        if method == FORWARD:
            self._compare_forward(found)
        elif isinstance(found, torch.Tensor):
            expected = self._twins.features(method, *inputs)
            self._judge.errors.append(_error(method, method, found, expected))
            self._features[method] = self._twins.pair(found)

    def _compare_forward(self, given: object) -> None:
        """Compare logits with what follows from what the encoders gave; or would give, if they are
        not there and nothing departs before."""
        found: Mapping[str, torch.Tensor] = outputs_of(given, self._sizes)
        follows = self._features or not self.localisation("").found
        if not follows or not set(LOGITS).intersection(found):
            return
        image, text = (
            self._features.get(method) or self._twins.features(method, self._inputs[method])
            for method in ENCODERS
        )
        pairs = dict(zip(LOGITS, self._twins.logits(image, text), strict=True))
        for name in LOGITS:
            if name in found:
                self._judge.errors.append(_error(FORWARD, FORWARD, found[name], pairs[name]))

    def localisation(self, given: str) -> Localisation:
        """Return what was found."""
        tower = partial(tower_in, self._model)
        found = localise(self._judge.errors, self._failures, self._limits, given, tower)
        return Localisation([self._placed(place) for place in found.places])

    def _placed(self, place: Place) -> Place:
        """The place, and what of it, where it is more than one module."""
        name = place.module
        if name is None or place.part:
            return place
        if name in (FORWARD, *ENCODERS):
            return replace(place, part=HEAD if name == FORWARD and self._features else OUTSIDE)
        children = self._twins.children(name)
        judged = {error.module for error in self._judge.errors}
        others = {site.module for site, reason in self._judge.skipped if reason != NO_TENSORS}
        missing = [child for child in children if child not in judged | others]
        if missing:
            return replace(place, module=missing[0], part=MISSING)
        return replace(place, part=BETWEEN) if children else place


def tower_in(model: DualEncoder, name: str) -> Tower:
    """The tower that a module of a library's model, or one of the methods, belongs to."""
    if name == FORWARD:
        return "logits"
    return "image" if name == "encode_image" or model.is_visual(f"{name}.") else "text"


def _error(name: str, method: str, got: torch.Tensor, expected: Pair) -> ModuleError:
    if got.shape != expected.exact.shape:
        return ModuleError(name, method, float("inf"), 0, 0)
    return error_of(name, method, got, expected, "")
