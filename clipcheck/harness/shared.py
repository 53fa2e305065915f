"""State shared by all backends that run one checkpoint on one device in one dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from clipcheck.backends.base import Backend
from clipcheck.backends.calling import Pixels
from clipcheck.backends.loading import OpenSides, rounded_alike
from clipcheck.backends.source import Source
from clipcheck.families.model_inputs import inputs_of
from clipcheck.families.registry import sizes_of
from clipcheck.gates.budget import inputs_for
from clipcheck.harness.draft import Draft
from clipcheck.harness.files import Files
from clipcheck.harness.options import CheckOptions
from clipcheck.harness.own import EagerFeatures, Own
from clipcheck.harness.phases import SHARED, Phases, Stopwatch
from clipcheck.harness.search.inputs import Drawn, Wanted, draw
from clipcheck.harness.trial import Trial, effort_for, lengths_for
from clipcheck.inputs.batches import Batch, population
from clipcheck.inputs.own import OwnData
from clipcheck.system.progress import Span

if TYPE_CHECKING:
    from clipcheck.backends.reference import Reference


class Shared:
    """Inputs, reference and its outputs, which all backends of a checkpoint share in one dtype on
    one device.

    Args:
        own: the user's images and prompts.
        draft: the judgement before any backend runs.
        span: progress of what is done once.
    """

    def __init__(
        self,
        *,
        options: CheckOptions,
        own: OwnData,
        draft: Draft,
        files: Files,
        sides: OpenSides,
        span: Span,
    ) -> None:
        self.files = files
        self._eager = self._rounded = EagerFeatures(lambda: self.reference)
        self.limits = replace(options.limits, sigmoid=sizes_of(files.checkpoint.model).sigmoid)
        self._sides = sides
        self._watch = Stopwatch(Phases(span, draft.judgement, SHARED))
        self._told = False
        # Before loading, while the process that starts sandbox processes still imports torch.
        with self._watch.phase("inputs"):
            wanted = Wanted(
                options.examples, options.exhaustive, options.seed, draft.judgement.checkpoint
            )
            inputs = inputs_of(files.checkpoint.model)
            self.drawn: Drawn = draw(wanted, inputs)
        with self._watch.phase("load"):
            self.renew()
        self.options = options
        self._own = None
        if own:
            preprocessing = replace(self.drawn.preprocessing, texts=inputs.texts)
            exactly = self.source.dtype != "float32"
            self._own = Own(own, preprocessing, self._eager, exactly)
        self.trial = self._trial(self.drawn.batches, self._watch, self.reference, _unchanged)

    def trial_seen_by(self, candidate: Backend, watch: Stopwatch) -> Trial:
        """Return the trial of a candidate: that of all, unless it rounds pixels, as to whole
        numbers, or stores rounded weights. Then the reference runs with these, too."""
        if candidate.seen is None and not candidate.rounded:
            return self.trial
        reference = self.reference_for(candidate)
        return self._trial(self.drawn.batches, watch, reference, candidate.seen or _unchanged)

    def reference_for(self, candidate: Backend) -> Reference:
        """Return the reference of a candidate: that of all, or one with weights that are rounded as
        the candidate stores them."""
        if not candidate.rounded:
            return self.reference
        from clipcheck.backends.reference import Reference

        source = self.source_for(candidate)
        return Reference(source.model, source.checkpoint.model, source.device)

    def source_for(self, candidate: Backend) -> Source:
        """Return the source with the reference's weights, see `reference_for`."""
        if not candidate.rounded:
            return self.source
        return rounded_alike(self.source, candidate.rounded)

    def _trial(
        self,
        drawn: Sequence[Batch],
        watch: Stopwatch,
        reference: Reference,
        seen: Callable[[Pixels], Pixels],
    ) -> Trial:
        options, checkpoint = self.options, self.files.checkpoint
        inputs = inputs_of(checkpoint.model)
        own = self._own
        if own is not None and reference is not self.reference:
            self._rounded.close()
            self._rounded = EagerFeatures(lambda: reference)
            own = replace(own, eager=self._rounded)
        lossy = options.allowed_loss
        count = 0 if lossy is None or "budget" not in options.gates else inputs_for(lossy)
        several = (drawn, population(count, inputs, options.seed))
        batches, of_budget = (
            [replace(each, pixels=seen(each.pixels)) for each in some] for some in several
        )
        return Trial.of(
            reference,
            batches,
            self.source.dtype,
            watch,
            lengths=lengths_for(checkpoint.model, options.seed),
            outputs=sizes_of(checkpoint.model).outputs,
            texts=inputs.texts,
            effort=effort_for(inputs, checkpoint.parameters),
            gates=options.gates,
            budget=lossy,
            population=of_budget,
            own=own,
        )

    @property
    def source(self) -> Source:
        """Source that candidates are made of."""
        return self._sides.source

    @property
    def reference(self) -> Reference:
        """Reference that candidates are compared with."""
        return self._sides.reference

    def renew(self) -> None:
        """Load both sides again, after a candidate changed the weights that all share."""
        self._sides.load()
        self._eager.forget()

    def close(self) -> None:
        """Delete the temporary file of the user's data."""
        self._eager.close()
        self._rounded.close()

    def seconds_once(self) -> Mapping[str, float]:
        """Return the seconds of shared phases on the first call, then nothing, so that only one
        backend reports them."""
        told, self._told = self._told, True
        return {} if told else self._watch.seconds


def _unchanged(pixels: Pixels) -> Pixels:
    return pixels
