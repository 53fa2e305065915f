"""Find out more about a candidate that failed: on which input, where, and why.

An error here does not change the verdict.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from clipcheck.backends.base import Backend
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.errors import ClipcheckError
from clipcheck.families.model_inputs import inputs_of
from clipcheck.gates.alternative import Departure
from clipcheck.gates.distance import Ruler
from clipcheck.gates.localisation import Localisation
from clipcheck.harness.colours import told_colours
from clipcheck.harness.draft import Draft
from clipcheck.harness.explaining import find_alternative
from clipcheck.harness.judging import Verdict, judge_candidate
from clipcheck.harness.layers import costly_layers
from clipcheck.harness.localising import Suspect, first_departures
from clipcheck.harness.mismatch import find_mismatch
from clipcheck.harness.optimising import find_optimised, on_all, on_batch
from clipcheck.harness.phases import Stopwatch
from clipcheck.harness.search.probe import Probe
from clipcheck.harness.search.smallest import smallest
from clipcheck.harness.shared import Shared
from clipcheck.harness.trial import Trial, effort_for
from clipcheck.inputs.batches import Batch
from clipcheck.inputs.dealing import FULL
from clipcheck.inputs.examples import batch

if TYPE_CHECKING:
    pass

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Adds to a judgement what can be found out about its candidate.

    Attributes:
        draft: with the results of the gates.
        candidate: has run, and can run again.
    """

    draft: Draft
    shared: Shared
    trial: Trial
    candidate: Backend
    verdict: Verdict
    ruler: Ruler
    watch: Stopwatch

    def __call__(self) -> None:
        """Add where and why it fails, and what the layers of a lossy candidate cost."""
        passed = self.draft.judgement.passed
        if not passed:
            told = told_colours(self.candidate, self.trial, self.verdict.run.cases)
            self.draft.add(mapping=(*self.draft.judgement.mapping, *told))
        # Every input departs of what is lossy: the smallest tells nothing.
        if self.trial.budget is not None:
            self.draft.add(**self._layers())
            if not passed:
                self.draft.add(**self._optimiser())
        elif not passed:
            self._explain()

    def _explain(self) -> None:
        """Add the smallest failing input, the row of a different best match, and the departure."""
        draft, verdict = self.draft, self.verdict
        if any(gate.name == "top1" and not gate.passed for gate in verdict.gates):
            rules = self.shared.drawn.preprocessing.images
            draft.add(mismatch=find_mismatch(self.trial, verdict.run.cases, rules))
        if verdict.intact:
            probe = self._probe()
            with self.watch.phase("search"):
                found = smallest(probe, self.shared.drawn, verdict.run.cases)
                if found is None and verdict.own is not None:
                    found = verdict.own.failing(probe)
                draft.add(failing=found)
            draft.add(**self._optimiser())
        with self.watch.phase("alternative"):
            # What only its optimiser changes is no other architecture.
            if draft.judgement.optimised is None:
                draft.add(alternative=self._alternative())
        if self.candidate.runs_modules:
            draft.add(localisation=self._localise().places)

    def _probe(self) -> Probe:
        standing = self.shared.reference_for(self.candidate).standing()
        return Probe(self.candidate, standing, self.ruler, self.shared.limits)

    def _failing(self) -> Batch | None:
        """Return the smallest failing input as a batch, if there is one."""
        failing = self.draft.judgement.failing
        if failing is None:
            return None
        preprocessing = self.candidate.preprocessing or self.shared.drawn.preprocessing
        return batch(failing.example, preprocessing)

    def _optimiser(self) -> dict[str, object]:
        """Find out if its optimiser makes it fail."""
        judged, candidate, trial = self.draft.judgement, self.candidate, self.trial
        if not candidate.optimisers:
            return {}
        failed = [gate.name for gate in judged.gates if not gate.passed]
        # Only what these gates need: repeated calls show nothing of single modules.
        calls = () if failed == ["modules"] else trial.calls
        few = replace(trial, gates=failed, calls=calls)
        source = self.shared.source_for(candidate)
        again = partial(judge_candidate, few, candidate, source, self.shared.limits)
        example = self._failing()
        fails = (
            on_all(again, self.shared.options.seed)
            if example is None
            else on_batch(self._probe(), example, "the failing input")
        )
        with self.watch.phase("optimiser"):
            try:
                return {"optimised": find_optimised(candidate, fails, trial.batches[0])}
            except ClipcheckError as error:
                _log.debug("%s: its optimiser was not seen", judged.checkpoint, exc_info=True)
                return {"optimised_problem": error.problem}

    def _alternative(self) -> Mapping[str, Departure] | None:
        """Return the other architecture that the candidate computes, if any; one that is only
        nearer counts if the judged architecture was assumed."""
        checkpoint = self.shared.files.checkpoint
        if not self.verdict.intact:
            return None
        if isinstance(checkpoint.model, LibraryArchitecture):
            return None  # its configuration tells how it computes
        return find_alternative(
            self.shared.source.clip,
            checkpoint.architecture,
            self.trial.batches,
            self.verdict.run.cases,
            self.ruler,
            normalised=self.candidate.normalised,
            nearer=self.draft.judgement.assumed,
        )

    def _localise(self) -> Localisation:
        """Find where the candidate departs."""
        judged, candidate, shared = self.draft.judgement, self.candidate, self.shared
        given = self._failing()
        suspect = None
        if given is not None and judged.failing is not None:
            suspect = Suspect(given, judged.failing.measure.output)
        try:
            if not self.verdict.intact:
                # Running changed the weights, which both models share.
                shared.renew()
            return first_departures(
                shared.source_for(candidate),
                self.watch,
                # An archive was loaded again, with its source.
                shown=None if candidate.needs_archive else candidate.runner,
                seed=shared.options.seed,
                suspect=suspect,
                sizes=candidate.batch_sizes,
            )
        except (ClipcheckError, RuntimeError, MemoryError) as error:
            # torch raises RuntimeError, for example if a GPU runs out of memory.
            _log.debug("%s could not be localised", judged.checkpoint, exc_info=True)
            return Localisation.nowhere(f"the search failed ({str(error).strip()})")

    def _layers(self) -> dict[str, object]:
        """Measure what each quantised layer costs, or give the reason why not."""
        if not self.candidate.takes_weights or not self.trial.population:
            return {}
        weights = self.shared.source.model.state_dict()
        # Of a large model eight images and prompts take long enough.
        checkpoint = self.shared.files.checkpoint
        effort = effort_for(inputs_of(checkpoint.model), checkpoint.parameters)
        batches = 4 if effort is FULL else 1
        try:
            with self.watch.phase("layers") as advance:
                found, problem = costly_layers(
                    self.candidate, self.verdict.evidence, weights, self.trial, batches, advance
                )
        except ClipcheckError as error:
            return {"layers_problem": error.problem}
        return {"layers": found, "layers_problem": problem}
