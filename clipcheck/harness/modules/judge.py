"""Judge the modules of an archive one by one, for the gate ``modules``.

The archive runs as a whole, with taps around its submodules. What goes into a module goes into
the eager module of that name as well, and into a float64 copy of that one; the three outputs are
compared there and then. So each module is judged on its own, whatever the ones before it did, and
no more is kept than what one residual block works on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from clipcheck.backends.reference import exact_arithmetic
from clipcheck.backends.runner import Runner
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.errors import RunError
from clipcheck.families import eager
from clipcheck.families.base import DualEncoder
from clipcheck.gates.modules import Coverage, ModuleError, ratio
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness.modules.library import LibraryTwins
from clipcheck.harness.modules.ranges import Ranges, Sited, sited
from clipcheck.harness.modules.twins import Pair, Twins, distance
from clipcheck.inputs.batches import Batch
from clipcheck.models.taps import Site
from clipcheck.system.progress import Advance, Tally, still

Tensors = Sequence[torch.Tensor]

NO_TENSORS = "it is given no tensors"
"""Why a module is not judged that the tracer found to do nothing with what it is given."""


def judge_modules(
    archive: Runner,
    model: DualEncoder,
    batch: Batch,
    device: torch.device,
    advance: Advance = still,
    library: LibraryArchitecture | None = None,
) -> Coverage:
    """Call the methods of an archive, and judge the modules that it shares with ``model``.

    Args:
        batch: inputs; neither the number of images nor that of prompts may be that of the
            positions in a tower.
        library: the architecture, where a library computes the model.

    Returns:
        The errors of the modules, and why others were not judged. A method that fails leaves its
        reason; one that is not there is not called.
    """
    twins = twins_of(model, batch, device, library)
    judge = Judge(twins, Tally(len(twins.blocks), advance))
    pixels = torch.from_numpy(batch.pixels).to(device)
    tokens = torch.from_numpy(batch.tokens).to(device)
    methods = {
        "encode_image": (pixels,),
        "encode_text": (tokens,),
        "forward": (pixels, tokens),
    }
    failures: list[str] = []
    with exact_arithmetic():
        for method, inputs in methods.items():
            if method not in archive.facts.methods:
                continue
            try:
                if method == "forward" and judge.ends and _ends_alike(archive, inputs, judge):
                    continue  # Down to the last bit: what is above the ends is alike as well.
                archive.listen(method, inputs, twins.blocks, judge.listen)
            except RunError as error:
                rows = " and ".join(str(len(tensor)) for tensor in inputs)
                failures.append(f"{error.problem}, in a batch of {rows} rows")
                judge.running.clear()
        found = judge.coverage(failures)
        if not isinstance(model, eager.CLIP):
            return found
        return replace(found, **_ranges(archive, model, judge, batch, device, found))


def twins_of(
    model: DualEncoder,
    batch: Batch,
    device: torch.device,
    library: LibraryArchitecture | None,
) -> Twins | LibraryTwins:
    """The modules that those of an archive are compared with, see `judge_modules`."""
    if library is not None:
        return LibraryTwins(model, library, batch, device)
    if not isinstance(model, eager.CLIP):
        raise TypeError(f"expected clipcheck's own modules, found {type(model).__name__}")
    return Twins(model, len(batch.pixels), len(batch.tokens), device)


def _ends_alike(archive: Runner, inputs: Tensors, judge: Judge) -> bool:
    """Whether ``forward`` makes of both towers what the encoders made of them."""
    ends: dict[str, bytes] = {}

    def listen(site: Site, entering: bool, tensors: Tensors) -> None:
        if not entering:
            ends[site.module] = _digest(tensors)

    archive.listen("forward", inputs, judge.twins.last, listen)
    return bool(ends) and ends == judge.ends


def _ranges(
    archive: Runner,
    model: eager.CLIP,
    judge: Judge,
    batch: Batch,
    device: torch.device,
    found: Coverage,
) -> dict[str, Any]:
    """Judge modules beyond the numbers that ordinary inputs give."""
    if found.failures or not archive.facts.scripted:
        return {}
    ranges = Ranges(archive, model, device)
    ranges.modules(judge.sites)
    ranges.head(batch)
    return {"ranges": ranges.errors, "reached": ranges.reached}


@dataclass
class Judge:
    """Listens to an archive, and judges each module that it calls.

    Attributes:
        skipped: the calls that could not be judged, with the reason.
        running: the calls that have begun, with what they were given; after a failure those that
            it happened in.
        sites: by module, how its first call that was judged was made.
        ends: by module of ``twins.last``, a digest of what its last call gave.
    """

    twins: Twins | LibraryTwins
    tally: Tally = field(default_factory=lambda: Tally(1, still))
    errors: list[ModuleError] = field(default_factory=list)
    skipped: list[tuple[Site, str]] = field(default_factory=list)
    running: list[tuple[Site, Tensors]] = field(default_factory=list)
    sites: dict[str, Sited] = field(default_factory=dict)
    ends: dict[str, bytes] = field(default_factory=dict)
    _judged: set[tuple[str, bytes]] = field(default_factory=set)

    def listen(self, site: Site, entering: bool, tensors: Tensors) -> None:
        """Called by the taps of an archive, see `clipcheck.models.taps.Listener`."""
        if entering:
            # Copied: a ReLU in place, or a sum, may write over it before the call ends.
            self.running.append((site, [tensor.clone() for tensor in tensors]))
        else:
            _, inputs = self.running.pop()
            self._judge(site, inputs, tensors)

    def _judge(self, site: Site, inputs: Tensors, outputs: Tensors) -> None:
        if site.module in self.twins.last:
            self.ends[site.module] = _digest(outputs)
        key = site.module, _digest([*inputs, *outputs])
        if key in self._judged:
            return  # Another method did the very same.
        self._judged.add(key)
        self.tally.add()
        if not inputs:
            self.skipped.append((site, NO_TENSORS))
            return
        # What is not finite is no activation: it is a mask, or comes of a fault further up.
        if not any(bool(torch.isfinite(tensor).all()) for tensor in inputs):
            self.skipped.append((site, "nothing that it is given is finite"))
            return
        found = [
            (*worst, expected.place)
            for expected in self.twins.expected(site.module, inputs)
            if (worst := self._worst(site, expected.outputs, outputs)) is not None
        ]
        if found:
            error, output, place = min(found, key=lambda each: _size(each[0]))
            self.errors.append(error)
            self.sites.setdefault(site.module, sited(site, inputs, place, output, error))
        else:
            self.skipped.append((site, "it takes or gives other shapes than the eager module"))

    def _worst(
        self, site: Site, expected: Sequence[Pair], outputs: Tensors
    ) -> tuple[ModuleError, int] | None:
        """The worst error of a module's outputs, and the place of that one; None where none has
        the shape of what is expected.

        The tracer leaves out outputs that nobody takes, and adds others: those that there are
        fewer of are held against the nearest of the others.
        """
        limits, block = LIMITS["float32"], self.twins.blocks[site.module]
        found: list[tuple[ModuleError, int]] = []
        for shape in {pair.exact.shape for pair in expected}:
            pairs = [pair for pair in expected if pair.exact.shape == shape]
            places = [place for place, got in enumerate(outputs) if got.shape == shape]
            errors = [
                [(error_of(site.module, site.method, outputs[n], pair, block), n) for pair in pairs]
                for n in places
            ]
            several = errors if len(places) < len(pairs) else zip(*errors, strict=True)
            found += [min(row, key=lambda each: _size(each[0])) for row in several]
        return max(found, key=lambda each: ratio(each[0], limits), default=None)

    def coverage(self, failures: Sequence[str] = ()) -> Coverage:
        """Return the modules that were judged, and those that were not.

        Args:
            failures: why methods could not be run to their end.
        """
        judged = {error.module for error in self.errors}
        called = judged | {site.module for site, _ in self.skipped}
        skipped = {
            name: "the archive does not call it" for name in self.twins.blocks if name not in called
        }
        for site, reason in self.skipped:
            # One method may call it in a way that can be judged, and another not.
            name = f"{site.module} in {site.method}" if site.module in judged else site.module
            skipped[name] = reason
        return Coverage(self.errors, skipped, failures)


def nearest(errors: Sequence[ModuleError]) -> ModuleError:
    """The least of several; one that is not a number is more than all others."""
    return min(errors, key=_size)


def _size(error: ModuleError) -> float:
    return error.candidate if math.isfinite(error.candidate) else math.inf


def error_of(
    name: str, method: str, got: torch.Tensor, expected: Pair, block: str, part: str = ""
) -> ModuleError:
    """How far ``got`` is from what the eager model has there, of the same shape."""
    return ModuleError(
        name,
        method,
        candidate=distance(got, expected.exact),
        reference=distance(expected.own, expected.exact),
        size=float(expected.exact.double().square().mean().sqrt()),
        block=block,
        part=part,
    )


def _digest(tensors: Tensors) -> bytes:
    digest = hashlib.sha256()  # Processors have instructions for it: half the time of BLAKE2.
    for tensor in tensors:
        # As bytes: numpy has no bfloat16, which a layer may well be in.
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
