"""Find the first place where an archive of a library's model differs: in a module, between the
modules that a module calls, or in a method outside all modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from clipcheck.backends.forward import Sizes, is_normalised, outputs_of
from clipcheck.backends.graph import APART, MERGED
from clipcheck.backends.reference import Reference, exact_arithmetic
from clipcheck.backends.runner import Shows
from clipcheck.backends.source import Source
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.errors import RunError
from clipcheck.families.base import OF_LOGITS, DualEncoder
from clipcheck.gates.localisation import (
    FORWARD,
    HEAD,
    Failure,
    Localisation,
    Place,
    Tower,
    localise,
)
from clipcheck.gates.modules import ModuleError
from clipcheck.gates.result import ENCODERS, LOGITS
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness.modules.judge import NO_TENSORS, Judge, error_of, methods_of
from clipcheck.harness.modules.library import LibraryTwins
from clipcheck.harness.modules.twins import Pair
from clipcheck.harness.modules.walk import described
from clipcheck.inputs.batches import Batch

OUTSIDE = "outside of its modules"
BETWEEN = "between its modules"
MISSING = "which is not called like the eager model's"


def walk_library(
    archive: Shows, source: Source, library: LibraryArchitecture, batch: Batch, given: str
) -> Localisation:
    """Find the first place in each tower where an archive differs from a library's eager model.

    Each module is compared on its inputs in the archive, and each method on the batch. If a module
    differs but the modules in it do not, the place is between them.

    Args:
        archive: runner of the archive.
        source: with the eager model, which has the archive's weights.
        library: the model's configuration.
        batch: inputs; a tower without inputs is not run.
        given: description of the batch.
    """
    with exact_arithmetic():
        walker = _Walker(archive, source, library, batch)
        for method in methods_of(archive, batch):
            walker.run(method)
        return walker.localisation(given)


class _Walker:
    def __init__(
        self, archive: Shows, source: Source, library: LibraryArchitecture, batch: Batch
    ) -> None:
        device = source.device
        self._limits = LIMITS[source.dtype]
        self._inputs = {
            "encode_image": torch.from_numpy(batch.pixels).to(device),
            "encode_text": torch.from_numpy(batch.tokens).to(device),
        }
        self._archive = archive
        self._model = source.model
        reference = Reference(source.model, library, device)
        self._twins = LibraryTwins(source.model, reference, batch, device, trusting=True)
        self._judge = Judge(twins=self._twins, stay=archive.of_program)
        self._sizes = Sizes(len(batch.pixels), len(batch.tokens), source.sizes.embed_dim)
        self._features: dict[str, Pair] = {}
        self._failures: list[Failure] = []

    def run(self, method: str) -> None:
        """Call a method of the archive, and compare its modules and its outputs."""
        wanted = list(self._inputs) if method == FORWARD else [method]
        inputs = [self._inputs[each] for each in wanted]
        if not all(map(len, inputs)):
            return
        whole = method == FORWARD and self._archive.of_program
        there = [each for each in ENCODERS if whole and ENCODERS[each] in self._model.outputs]
        expected: dict[str, Pair] = {}
        # Before the modules: the float64 copy is of one tower at a time.
        if "encode_image" in there:
            expected["encode_image"] = self._twins.features("encode_image", inputs[0])
        try:
            found = self._archive.listen(method, inputs, self._twins.blocks, self._judge.listen)
        except RunError as error:
            running = self._judge.running
            self._failures.append(
                Failure(method, running[-1][0].module if running else "", error.problem)
            )
            running.clear()
            return
        if "encode_text" in there:
            expected["encode_text"] = self._twins.features("encode_text", inputs[1])
        if isinstance(found, Mapping):
            for encoder, pair in expected.items():
                if (features := found.get(ENCODERS[encoder])) is not None:
                    self._compare_features(encoder, features, pair)
        if method == FORWARD:
            self._compare_forward(found)
        elif isinstance(found, torch.Tensor):
            pair = self._twins.features(method, inputs[0], [found])
            self._compare_features(method, found, pair)

    def _compare_features(self, method: str, found: torch.Tensor, expected: Pair) -> None:
        if is_normalised(found):
            expected = Pair(_unit(expected.own), _unit(expected.exact))
        self._judge.errors.append(_error(method, method, found, expected))
        self._features[method] = self._twins.pair(found)

    def _compare_forward(self, given: object) -> None:
        """Compare the logits of ``forward`` with those from the archive's encoders' features.

        If the archive has no encoders, the eager model's are used, unless a module differs before.
        """
        found: Mapping[str, torch.Tensor] = outputs_of(given, self._sizes)
        follows = self._features or not self.localisation("").found
        if not follows or not set(LOGITS).intersection(found):
            return
        image, text = (
            self._features.get(method) or self._twins.features(method, self._inputs[method])
            for method in ENCODERS
        )
        logits = self._twins.logits(image, text, [found[name] for name in LOGITS if name in found])
        pairs = dict(zip(LOGITS, logits, strict=True))
        for name in LOGITS:
            if name in found:
                self._judge.errors.append(_error(FORWARD, FORWARD, found[name], pairs[name]))

    def localisation(self, given: str) -> Localisation:
        """Return the places of differences."""
        given = described(given, self._archive)
        tower = partial(tower_in, self._model)
        found = localise(self._judge.errors, self._failures, self._limits, given, tower)
        return Localisation([self._placed(place) for place in found.places])

    def _placed(self, place: Place) -> Place:
        """Add the part to a place that contains several modules."""
        name = place.module
        if name is None or place.part:
            return place
        if name in (FORWARD, *ENCODERS):
            return replace(place, part=HEAD if name == FORWARD and self._features else OUTSIDE)
        children = self._twins.children(name)
        judged = {error.module for error in self._judge.errors}
        others = {site.module for site, reason in self._judge.skipped if reason != NO_TENSORS}
        # A program runs these, but does not show them as one call.
        others |= {each for each, why in self._archive.hidden.items() if why in (APART, MERGED)}
        missing = [child for child in children if child not in judged | others]
        if missing:
            return replace(place, module=missing[0], part=MISSING)
        return replace(place, part=BETWEEN) if children else place


def tower_in(model: DualEncoder, name: str) -> Tower:
    """Return the tower of a module or weight of a library's model, or of a method."""
    if name in (FORWARD, *OF_LOGITS):
        return "logits"
    return "image" if name == "encode_image" or model.is_visual(f"{name}.") else "text"


def _unit(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features, dim=-1)


def _error(name: str, method: str, got: torch.Tensor, expected: Pair) -> ModuleError:
    if got.shape != expected.exact.shape:
        return ModuleError(module=name, method=method, candidate=float("inf"), reference=0, size=0)
    return error_of(name, method, got, expected, "")
