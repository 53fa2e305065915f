"""Judge the modules of an archive one by one, for the gate ``modules``.

The archive runs as a whole, with taps around its submodules. The input of a module also goes into
the eager module of the same name and into its float64 copy, and the three outputs are compared at
once. So each module is judged independently of earlier errors, and only the tensors of one residual
block are kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from clipcheck.backends.reference import Reference, exact_arithmetic
from clipcheck.backends.runner import Listened, Runner, Shows
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.errors import RunError
from clipcheck.families import eager
from clipcheck.families.base import DualEncoder
from clipcheck.gates.localisation import FORWARD
from clipcheck.gates.modules import Coverage, ModuleError, ratio
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness.modules.library import LibraryTwins
from clipcheck.harness.modules.ranges import CallSite, Ranges, record_call
from clipcheck.harness.modules.twins import Pair, Twins, distance
from clipcheck.inputs.batches import Batch
from clipcheck.models.taps import Site
from clipcheck.system.progress import Advance, Tally, still

Tensors = Sequence[torch.Tensor]

NO_TENSORS = "it is given no tensors"
"""Reason for a module without tensors as inputs, which is not judged."""


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
        batch: inputs; the numbers of images and of prompts must differ from the number of positions
            in their tower.
        library: the architecture, where a library computes the model.

    Returns:
        The errors of the modules, why others were not judged, and why methods failed.
    """
    twins = twins_of(model, batch, device, library)
    judge = Judge(twins=twins, tally=Tally(len(twins.blocks), advance))
    with exact_arithmetic():
        found = judge.coverage(_run(archive, judge, batch, device))
        if not isinstance(model, eager.CLIP):
            return found
        return replace(found, **_ranges(archive, model, judge, batch, device, found))


def judge_hooked(
    candidate: Listened,
    twins: Twins | LibraryTwins,
    batch: Batch,
    device: torch.device,
    advance: Advance = still,
) -> Coverage:
    """Call the methods of a torch module, and judge the modules that it shares with the reference,
    as `judge_modules` does."""
    judge = Judge(twins=twins, tally=Tally(len(twins.blocks), advance), subject="the candidate")
    with exact_arithmetic():
        return judge.coverage(_run(candidate, judge, batch, device))


def twins_in_memory(
    model: DualEncoder, reference: Reference, batch: Batch, device: torch.device
) -> Twins | LibraryTwins:
    """Return the modules of a model in memory, to compare with those of another model."""
    if isinstance(model, eager.CLIP):
        return Twins(model, len(batch.pixels), len(batch.tokens), device)
    return LibraryTwins(model, reference, batch, device)


def _run(archive: Listened, judge: Judge, batch: Batch, device: torch.device) -> list[str]:
    """Call each method, with the judge listening, and return why methods failed."""
    pixels = torch.from_numpy(batch.pixels).to(device)
    tokens = torch.from_numpy(batch.tokens).to(device)
    methods = {
        "encode_image": (pixels,),
        "encode_text": (tokens,),
        "forward": (pixels, tokens),
    }
    failures: list[str] = []
    for method, inputs in methods.items():
        if method not in archive.facts.methods:
            continue
        try:
            repeats = method == "forward" and judge.ends
            if repeats and _forward_repeats_encoders(archive, inputs, judge):
                continue  # bit for bit, so the modules below are the same as well
            archive.listen(method, inputs, judge.twins.blocks, judge.listen)
        except RunError as error:
            rows = " and ".join(str(len(tensor)) for tensor in inputs)
            failures.append(f"{error.problem}, in a batch of {rows} rows")
            judge.running.clear()
    return failures


def judge_library_program(
    program: Shows,
    model: DualEncoder,
    library: LibraryArchitecture,
    batch: Batch,
    device: torch.device,
    advance: Advance = still,
) -> Coverage:
    """Run the towers of a program, and judge the modules that it shares with a library's ``model``.

    See `judge_modules`; logits follow from features in the same run.
    """
    twins = twins_of(model, batch, device, library)
    judge = Judge(
        twins=twins, tally=Tally(len(twins.blocks), advance), subject="the program", stay=True
    )
    inputs = {"encode_image": batch.pixels, "encode_text": batch.tokens}
    failures: list[str] = []
    with exact_arithmetic():
        for method in methods_of(program, batch):
            given = list(inputs.values()) if method == FORWARD else [inputs[method]]
            try:
                tensors = [torch.from_numpy(each).to(device) for each in given]
                program.listen(method, tensors, twins.blocks, judge.listen)
            except RunError as error:
                rows = " and ".join(str(len(each)) for each in given)
                failures.append(f"{error.problem}, in a batch of {rows} rows")
                judge.running.clear()
    found = judge.coverage(failures)
    skipped = {**found.skipped, **program.hidden}
    return replace(found, skipped=skipped, note=program.note)


def methods_of(model: Shows, batch: Batch) -> list[str]:
    """Return the methods that a model has inputs for, in their order; of a program that runs both
    towers at once, only the one that does."""
    rows = {"encode_image": len(batch.pixels), "encode_text": len(batch.tokens)}
    rows[FORWARD] = min(rows.values())
    methods = [each for each, count in rows.items() if count and each in model.facts.methods]
    return [FORWARD] if model.of_program and FORWARD in methods else methods


def twins_of(
    model: DualEncoder,
    batch: Batch,
    device: torch.device,
    library: LibraryArchitecture | None,
) -> Twins | LibraryTwins:
    """Return the modules to compare with those of an archive, see `judge_modules`."""
    if library is not None:
        return LibraryTwins(model, Reference(model, library, device), batch, device)
    if not isinstance(model, eager.CLIP):
        raise TypeError(f"expected clipcheck's own modules, found {type(model).__name__}")
    return Twins(model, len(batch.pixels), len(batch.tokens), device)


def _forward_repeats_encoders(archive: Listened, inputs: Tensors, judge: Judge) -> bool:
    """Tell whether ``forward`` gives the towers' ends bit for bit as the encoders did."""
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
    """Judge modules on numbers outside the range of ordinary inputs."""
    if found.failures or not archive.facts.scripted:
        return {}
    ranges = Ranges(archive=archive, model=model, device=device)
    ranges.modules(judge.sites)
    ranges.head(archive, batch)
    return {"ranges": ranges.errors, "reached": ranges.reached}


@dataclass(kw_only=True)
class Judge:
    """Listens to an archive, and judges each module that it calls.

    Attributes:
        skipped: calls that could not be judged, with the reason.
        running: calls that have started, with their inputs; after a failure, those in which it
            happened.
        sites: by module, its first judged call.
        ends: by module of ``twins.last``, a digest of its last output.
        subject: name of what is judged, for reasons.
        stay: whether its tensors are not overwritten, and no call is repeated by another method, as
            in a program.
    """

    twins: Twins | LibraryTwins
    tally: Tally = field(default_factory=lambda: Tally(1, still))
    errors: list[ModuleError] = field(default_factory=list)
    skipped: list[tuple[Site, str]] = field(default_factory=list)
    running: list[tuple[Site, Tensors]] = field(default_factory=list)
    sites: dict[str, CallSite] = field(default_factory=dict)
    ends: dict[str, bytes] = field(default_factory=dict)
    subject: str = "the archive"
    stay: bool = False
    _judged: set[tuple[str, bytes]] = field(default_factory=set)

    def listen(self, site: Site, entering: bool, tensors: Tensors) -> None:
        """Take a tensor from a tap of the archive, see `clipcheck.models.taps.Listener`."""
        if entering:
            # Copied: an operation in place may overwrite it before the call ends.
            given = tensors if self.stay else [tensor.clone() for tensor in tensors]
            self.running.append((site, given))
        else:
            _, inputs = self.running.pop()
            if not site.last:
                self._judge(site, inputs, tensors)

    def settle(self, outputs: Tensors) -> None:
        """End the call of a block that passes because all of its inside does. Alone, it can be
        called where one tensor enters it and one leaves it."""
        site, inputs = self.running.pop()
        if len(inputs) == len(outputs) == 1:
            self.sites.setdefault(site.module, record_call(site, inputs, 0, 0, sound=True))

    def _judge(self, site: Site, inputs: Tensors, outputs: Tensors) -> None:
        if site.module in self.twins.last:
            self.ends[site.module] = _digest(outputs)
        if not self.stay:
            key = site.module, _digest([*inputs, *outputs])
            if key in self._judged:
                return  # another method made the same call
            self._judged.add(key)
        self.tally.add()
        if not inputs:
            self.skipped.append((site, NO_TENSORS))
            return
        # Tensors that are not finite are masks, or follow from an earlier fault.
        if not any(bool(torch.isfinite(tensor).all()) for tensor in inputs):
            self.skipped.append((site, "none of its inputs is finite"))
            return
        found = [
            (*worst, expected.place)
            for expected in self.twins.expected(site.module, inputs, outputs)
            if (worst := self._worst(site, expected.outputs, outputs)) is not None
        ]
        if found:
            error, output, place = min(found, key=lambda each: _size(each[0]))
            self.errors.append(error)
            limits = LIMITS["float32"]
            sound = ratio(error, limits) <= limits.module
            self.sites.setdefault(
                site.module, record_call(site, inputs, place, output, sound=sound)
            )
        else:
            self.skipped.append((site, "its shapes differ from the eager module's"))

    def _worst(
        self, site: Site, expected: Sequence[Pair], outputs: Tensors
    ) -> tuple[ModuleError, int] | None:
        """Return the worst error of a module's outputs and its place; None if no output has an
        expected shape.

        Tracing removes unused outputs and adds others: if there are fewer expected than actual
        outputs of a shape, or the reverse, each of the fewer is compared with the nearest one.
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
        reason = f"{self.subject} {'fails before it is called' if failures else 'does not call it'}"
        skipped = {name: reason for name in self.twins.blocks if name not in called}
        for site, reason in self.skipped:
            # One method's call may be judged while another's cannot.
            name = f"{site.module} in {site.method}" if site.module in judged else site.module
            skipped[name] = reason
        return Coverage(errors=self.errors, skipped=skipped, failures=failures)


def nearest(errors: Sequence[ModuleError]) -> ModuleError:
    """Return the least error; one that is not finite counts as the greatest."""
    return min(errors, key=_size)


def _size(error: ModuleError) -> float:
    return error.candidate if math.isfinite(error.candidate) else math.inf


def error_of(
    name: str, method: str, got: torch.Tensor, expected: Pair, block: str, part: str = ""
) -> ModuleError:
    """Measure how far ``got`` is from the eager model's tensor of the same shape."""
    return ModuleError(
        module=name,
        method=method,
        candidate=distance(got, expected.exact),
        reference=distance(expected.own, expected.exact),
        size=float(expected.exact.double().square().mean().sqrt()),
        block=block,
        part=part,
    )


def _digest(tensors: Tensors) -> bytes:
    digest = hashlib.sha256()  # in hardware: half the time of BLAKE2
    for tensor in tensors:
        # As bytes: numpy has no bfloat16.
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
