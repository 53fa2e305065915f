"""Run a candidate over the batches of a trial, and over some of their rows again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from clipcheck.backends.base import Backend
from clipcheck.backends.calling import Array
from clipcheck.errors import RunError
from clipcheck.gates.repeatability import Repeat
from clipcheck.gates.result import ENCODERS, OUTPUTS, Case, in_form
from clipcheck.harness.trial import Trial
from clipcheck.inputs.batches import Batch
from clipcheck.inputs.dealing import Call
from clipcheck.system.progress import Advance, Tally, still

if TYPE_CHECKING:
    pass

_FORMS = {
    "encode_image": ("strided", "channels last", "with gradients"),
    "encode_text": ("strided", "as int64"),
    "forward": ("as int64",),
}
"""Forms of the inputs of each method, see `clipcheck.backends.forms`. With the first form, another
call is made before the result is read."""

_OWN_FORMS = {("encode_image", dtype): (f"as {dtype}",) for dtype in ("float16", "bfloat16")}
"""Further forms, by method and dtype."""

_KINDS = {
    "encode_image": ("image",),
    "encode_text": ("prompt",),
    "forward": ("image", "prompt"),
}
"""Inputs of each method."""

_OF_IMAGES = tuple(name for name, kinds in OUTPUTS.items() if "image" in kinds)
"""Outputs that depend on images."""

_SMALL = 0
"""Number of the batch that runs several times in a row and once at the end: the smallest."""

_AT_ONCE = ("in the second call", "in the third call")

_LARGE = 2
"""Number of the batch whose rows run alone."""


@dataclass(frozen=True)
class Run:
    """Outputs of a candidate.

    Attributes:
        cases: each batch, with the reference's outputs.
        failures: why batches could not be run.
        lengths: prompts of every length, by call; only text features.
        sample: the population, for the gate ``budget``.
    """

    cases: Sequence[Case]
    repeats: Sequence[Repeat]
    failures: list[str] = field(default_factory=list)
    lengths: Sequence[Case] = ()
    sample: Sequence[Case] = ()


def run_candidate(trial: Trial, candidate: Backend, advance: Advance = still) -> Run:
    """Run a candidate over all batches, and over some of their rows again.

    A batch that it cannot run has no outputs, and adds a failure.
    """
    return _Runner(trial, candidate)(advance)


@dataclass(frozen=True)
class _Runner:
    """Runs a candidate; what it cannot run is added to the failures."""

    trial: Trial
    candidate: Backend
    failures: list[str] = field(default_factory=list)

    def __call__(self, advance: Advance) -> Run:
        trial, candidate = self.trial, self.candidate
        rows = sum(len(b.pixels) + len(b.tokens) for b in (*trial.batches, *trial.population))
        rows += sum(len(call.images) + len(call.prompts) for call in trial.calls)
        tally = Tally(rows, advance)
        again: list[Repeat] = []
        found: list[Mapping[str, Array]] = []
        by_length: list[Case] = []
        for number, batch in enumerate(trial.batches):
            found.append(self._outputs(batch))
            tally.add(len(batch.pixels) + len(batch.tokens))
            if number == _SMALL and trial.repeats:
                again += [self._again(what) for what in _AT_ONCE[: trial.at_once]]
        if not trial.calls and trial.repeats and trial.budget is None:
            again += self._alone()
        if trial.in_form and candidate.takes_forms:
            again += self._in_forms()
        # What is quantised has no NaN, nor have whole numbers; beside a budget there are no calls.
        shows_nan = candidate.keeps_nan and candidate.seen is None
        if trial.calls and "integrity" in trial.gates and shows_nan:
            self._look_for_hidden_nan()
        for call in trial.calls:
            names = candidate.gives(call.method)
            if not names:
                continue
            outputs = self._called(call)
            again += self._repeats(call, outputs, names)
            by_length += self._by_length(call, outputs)
            tally.add(len(call.images) + len(call.prompts))
        if trial.repeats:
            again.append(self._again("after all other calls"))
        of_population = []
        for batch in trial.population:
            of_population.append(self._outputs(batch))
            tally.add(len(batch.pixels) + len(batch.tokens))
        exact = trial.of_population
        return Run(
            self._cases(trial.batches, found, trial.reference, trial.exact, trial.output_dtype),
            again,
            self.failures,
            by_length,
            self._cases(trial.population, of_population, exact, exact),
        )

    def _cases(
        self,
        batches: Sequence[Batch],
        found: Sequence[Mapping[str, Array]],
        reference: Sequence[Mapping[str, Array]],
        exact: Sequence[Mapping[str, Array]],
        dtype: str = "",
    ) -> list[Case]:
        as_given = partial(in_form, normalised=self.candidate.normalised)
        return [
            Case(
                candidate=mine,
                reference=as_given(own),
                exact=as_given(in_float64),
                rows=batch.rows,
                first_rows=batch.first_rows,
                absent=self.candidate.absent,
                dtype=dtype,
            )
            for batch, mine, own, in_float64 in zip(batches, found, reference, exact, strict=True)
        ]

    def _outputs(self, batch: Batch) -> Mapping[str, Array]:
        pixels, tokens = batch.pixels, batch.tokens
        return self._attempted(
            lambda: self.candidate.outputs(pixels, tokens), len(pixels), len(tokens)
        )

    def _attempted(
        self, call: Callable[[], Mapping[str, Array]], images: int, prompts: int
    ) -> Mapping[str, Array]:
        try:
            return call()
        except RunError as error:
            rows = " and ".join(
                f"{count} {kind}{'' if count == 1 else 's'}"
                for kind, count in (("image", images), ("prompt", prompts))
                if count
            )
            self.failures.append(f"{error.problem}, in a batch of {rows}")
            return {}

    def _in_forms(self) -> Iterator[Repeat]:
        """Yield a few rows again, in every form of the inputs."""
        few = self.trial.in_form
        number = min(_LARGE, len(self.trial.batches) - 1)
        batch = self.trial.batches[number]
        every = {"image": batch.pixels, "prompt": batch.tokens}
        for method, forms in _FORMS.items():
            names = self.candidate.gives(method, itself=True)
            if not names:
                continue
            arrays = {kind: every[kind] for kind in _KINDS[method]}
            rows = {kind: list(range(min(few, len(array)))) for kind, array in arrays.items()}
            given = {kind: array[rows[kind]] for kind, array in arrays.items()}
            for form in (*forms, *_OWN_FORMS.get((method, self.trial.dtype), ())):
                kept = form == forms[0]
                after = {kind: array[-few:] for kind, array in arrays.items() if kept}
                found = self._in_form(form, method, given, after, names)
                yield Repeat(form, number, {"image": [], "prompt": [], **rows}, found, names)

    def _in_form(
        self,
        form: str,
        method: str,
        given: Mapping[str, Array],
        after: Mapping[str, Array],
        names: tuple[str, ...],
    ) -> Mapping[str, Array]:
        """Return the outputs of a method for inputs in some form; what goes wrong is a failure."""

        def outputs() -> Mapping[str, Array]:
            arrays = list(given.values()), list(after.values())
            found, wrong = self.candidate.call_in_form(form, method, *arrays)
            if wrong:
                self.failures.append(f"{self.candidate.name}: {method} {wrong}")
            return dict(zip(names, found, strict=False))

        images, prompts = (len(given.get(kind, ())) for kind in ("image", "prompt"))
        return self._attempted(outputs, images, prompts)

    def _look_for_hidden_nan(self) -> None:
        """Run an image with one NaN, and add a failure if outputs have numbers: in the eager model,
        all outputs of this image are NaN."""
        batch = self.trial.batches[_SMALL].select([0], [0])
        pixels = batch.pixels.copy()
        pixels[0, 0, 0, 0] = np.nan
        outputs = self._outputs(replace(batch, pixels=pixels))
        hiding = [name for name in _OF_IMAGES if not np.isnan(outputs.get(name, np.nan)).all()]
        if hiding:
            self.failures.append(
                f"{self.candidate.name}: {hiding[0]} of an image with a NaN in it has numbers, "
                "where the eager model gives NaN"
            )

    def _called(self, call: Call) -> Mapping[str, Array]:
        """Return the outputs of a call, by name."""
        trial, candidate = self.trial, self.candidate
        every = [*trial.batches, *([trial.lengths.batch] if trial.lengths else [])]
        pixels = [every[row.batch].pixels[row.row] for row in call.images]
        tokens = [every[row.batch].tokens[row.row] for row in call.prompts]
        inputs = [np.stack(rows) for rows in (pixels, tokens) if rows]

        def outputs() -> Mapping[str, Array]:
            if call.method == "forward":
                return candidate.forward(*inputs)
            return {ENCODERS[call.method]: getattr(candidate, call.method)(*inputs)}

        return self._attempted(outputs, len(pixels), len(tokens))

    def _repeats(
        self, call: Call, outputs: Mapping[str, Array], names: tuple[str, ...]
    ) -> Iterator[Repeat]:
        """Yield the rows of each batch that has rows in the call."""
        what = "alone" if max(len(call.images), len(call.prompts)) == 1 else "in another batch"
        if call.method == "forward":
            rows = {
                "image": [row.row for row in call.images],
                "prompt": [row.row for row in call.prompts],
            }
            yield Repeat(what, call.images[0].batch, rows, outputs, names)
            return
        name = ENCODERS[call.method]
        kind, given = ("image", call.images) if call.images else ("prompt", call.prompts)
        if len(given) > 1:
            what = f"in a batch of {len(given)}"
        for number in sorted({row.batch for row in given} - {len(self.trial.batches)}):
            places = [place for place, row in enumerate(given) if row.batch == number]
            here = {name: outputs[name][places]} if _has(outputs, name, len(given)) else {}
            rows = {"image": [], "prompt": [], kind: [given[place].row for place in places]}
            yield Repeat(what, number, rows, here, (name,))

    def _by_length(self, call: Call, outputs: Mapping[str, Array]) -> Iterator[Case]:
        """Yield the case of the rows that are prompts of every length."""
        trial, name = self.trial, "text_features"
        places = [n for n, row in enumerate(call.prompts) if row.batch == len(trial.batches)]
        if trial.lengths and places and _has(outputs, name, len(call.prompts)):
            rows = [call.prompts[place].row for place in places]
            yield trial.lengths.case(rows, outputs[name][places], self.candidate.normalised)

    def _again(self, what: str) -> Repeat:
        """Run the small batch once more."""
        batch = self.trial.batches[_SMALL]
        rows = {"image": list(range(len(batch.pixels))), "prompt": list(range(len(batch.tokens)))}
        return Repeat(what, _SMALL, rows, self._outputs(batch))

    def _alone(self) -> Iterator[Repeat]:
        """Yield the first and the last row of a large batch, each as a batch of one."""
        number = min(_LARGE, len(self.trial.batches) - 1)
        batch = self.trial.batches[number]
        for row in (0, -1):
            rows = {
                "image": [range(len(batch.pixels))[row]],
                "prompt": [range(len(batch.tokens))[row]],
            }
            single = batch.select(rows["image"], rows["prompt"])
            yield Repeat("alone in a batch", number, rows, self._outputs(single))


def _has(outputs: Mapping[str, Array], name: str, rows: int) -> bool:
    """Tell whether the output exists and has this number of rows."""
    return name in outputs and outputs[name].ndim > 0 and len(outputs[name]) == rows
