"""The batches of a check, and their outputs in the reference.

The reference's outputs, in its own dtype and in float64, are the same for every candidate: a
`Trial` computes them once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clipcheck.backends.calling import Array
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.errors import RunError
from clipcheck.families.model_inputs import inputs_of
from clipcheck.gates.registry import GATES, NAMES
from clipcheck.gates.result import OUTPUTS, Case, eager_not_finite, in_form
from clipcheck.gates.tolerances import LIMITS, Budget, Limits, assuming
from clipcheck.harness.own import Own
from clipcheck.harness.phases import Stopwatch
from clipcheck.inputs.batches import Batch, Inputs, every_length, length_of
from clipcheck.inputs.dealing import BRIEF, FULL, Call, Effort, deal
from clipcheck.inputs.digest import digest
from clipcheck.inputs.rules import CLIP_TEXTS, TextRules

if TYPE_CHECKING:
    from clipcheck.backends.reference import Reference
    from clipcheck.families.sizes import Sizes

_REPEATING = frozenset(gate.name for gate in GATES if gate.needs_repeats)

_OF_LENGTHS = frozenset(gate.name for gate in GATES if gate.needs_lengths)

_FAST = 3 * 10**9
"""Models with fewer parameters times positions, of an image and a text, are fast enough for all
calls. A ViT-B/32 has 19 * 10**9."""


@dataclass(frozen=True)
class Lengths:
    """Prompts of every length, and their text features in the reference.

    Attributes:
        batch: without images.
        reference: the eager model's text features, in the judged dtype.
        exact: those in float64.
    """

    batch: Batch
    reference: Array
    exact: Array

    def case(self, rows: Sequence[int], found: Array, normalised: Collection[str]) -> Case:
        """Return some rows of the candidate as a case."""
        names = self.batch.rows["prompt"]
        return Case(
            candidate={"text_features": found},
            reference=in_form({"text_features": self.reference[rows]}, normalised),
            exact=in_form({"text_features": self.exact[rows]}, normalised),
            rows={"prompt": tuple(names[row] for row in rows)},
        )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Batches, and their outputs in the reference.

    Attributes:
        batches: for the candidates.
        reference: the eager model's outputs for each batch, in the judged dtype.
        exact: those in float64.
        calls: further calls of candidates: some rows again, and prompts of the lengths that the
            batches do not have.
        in_form: number of rows in each form of the inputs.
        at_once: how often the first batch runs again before the second one.
        gates: names of the gates that judge; work that only other gates need is not done.
        budget: limits of lossy candidates; None for others.
        population: inputs of the gate ``budget``, from `clipcheck.inputs.batches.population`.
        of_population: the eager model's outputs for the population, in float64.
        error: assumed relative error of a reference without a float64 copy; None where it is
            measured.
        output_dtype: of a candidate's outputs, if ``reference`` has another; else empty.
        own: the user's images and prompts, or None.
    """

    batches: Sequence[Batch]
    reference: Sequence[Mapping[str, Array]]
    exact: Sequence[Mapping[str, Array]]
    scale: float
    dtype: str
    lengths: Lengths | None = None
    calls: Sequence[Call] = ()
    in_form: int = 0
    at_once: int = 2
    gates: Collection[str] = NAMES
    budget: Budget | None = None
    population: Sequence[Batch] = ()
    of_population: Sequence[Mapping[str, Array]] = ()
    output_dtype: str = ""
    error: float | None = None
    own: Own | None = None

    @property
    def repeats(self) -> bool:
        """Whether a gate judges calls that run again."""
        return not _REPEATING.isdisjoint(self.gates)

    @property
    def ruler_limits(self) -> Limits:
        """Limits of a candidate's error."""
        limits = LIMITS[self.dtype]
        return limits if self.error is None else assuming(limits, self.error)

    @property
    def digest(self) -> str:
        """A fingerprint of all inputs."""
        lengths = [self.lengths.batch] if self.lengths else []
        return digest([*self.batches, *lengths, *self.population])

    @classmethod
    def of(
        cls,
        reference: Reference,
        batches: Sequence[Batch],
        dtype: str,
        watch: Stopwatch,
        *,
        lengths: Batch | None = None,
        outputs: Collection[str] = tuple(OUTPUTS),
        texts: TextRules | None = None,
        effort: Effort | None = None,
        gates: Collection[str] = NAMES,
        budget: Budget | None = None,
        population: Sequence[Batch] = (),
        own: Own | None = None,
    ) -> Trial:
        """Run the reference over all batches, in its dtype and in float64.

        Call it before any candidate runs: a candidate may share the eager model's weights and
        change them.

        Args:
            batches: for both sides.
            lengths: from `clipcheck.inputs.batches.every_length`.
            texts: rules for rows of ids; default: CLIP's.
            effort: how many further calls candidates get; None for none.
            budget: limits of lossy candidates. Their rows may depend on the whole batch, so only
                whole batches run.
            population: inputs of the gate ``budget``.
            own: the user's images and prompts, which run with each candidate.

        Raises:
            RunError: the model cannot be run, or its outputs are not finite: nothing can be
                compared with them.
        """
        inputs = [(batch.pixels, batch.tokens) for batch in batches]
        again = not _REPEATING.isdisjoint(gates)
        if budget is not None or (not again and _OF_LENGTHS.isdisjoint(gates)):
            lengths = effort = None
        if "text_features" not in outputs:
            lengths = None
        more = {} if lengths is None else {"lengths": lengths.tokens}
        with watch.phase("eager") as advance:
            mine = reference.outputs(inputs, advance, **more)
        with watch.phase("float64") as advance:
            drawn = [(batch.pixels, batch.tokens) for batch in population]
            exact = reference.exact_outputs([*inputs, *drawn], advance, **more)
        measured = None
        if lengths is not None:
            measured = Lengths(lengths, mine.pop()["text_features"], exact.pop()["text_features"])
        exact, of_population = exact[: len(inputs)], exact[len(inputs) :]
        _require_finite(batches, mine, exact, dtype)
        texts = texts or CLIP_TEXTS
        rows = [] if lengths is None else lengths_not_drawn(lengths, batches, texts)
        calls = deal(batches, rows, effort) if effort else ()
        if not again:
            calls = [call for call in calls if any(r.batch == len(batches) for r in call.prompts)]
        return cls(
            batches=batches,
            reference=mine,
            exact=exact,
            scale=reference.scale,
            dtype=dtype,
            lengths=measured,
            calls=calls,
            in_form=effort.in_form if effort and again else 0,
            at_once=effort.at_once if effort else cls.at_once,
            gates=gates,
            budget=budget,
            population=population,
            of_population=of_population,
            own=own,
        )


def effort_for(inputs: Inputs | Sizes, parameters: int) -> Effort:
    """Return the effort for a model with these inputs and this number of parameters."""
    return FULL if parameters * (inputs.grid**2 + inputs.context_length) < _FAST else BRIEF


def lengths_for(model: Architecture | LibraryArchitecture, seed: int) -> Batch:
    """Return prompts of every length for this model."""
    return every_length(inputs_of(model), seed)


def lengths_not_drawn(lengths: Batch, batches: Sequence[Batch], texts: TextRules) -> list[int]:
    """Return the rows of ``lengths`` whose length no prompt of the batches has."""
    end = lengths.tokens.max() if texts.ends_at_greatest else texts.end
    drawn = {
        length_of(texts, row)
        for batch in batches
        for row in batch.tokens
        if end is None or np.count_nonzero(row == end) == 1
    }
    return [
        number for number, row in enumerate(lengths.tokens) if length_of(texts, row) not in drawn
    ]


def _require_finite(
    batches: Sequence[Batch],
    reference: Sequence[Mapping[str, Array]],
    exact: Sequence[Mapping[str, Array]],
    dtype: str,
) -> None:
    wider = f"choose a --dtype with a wider range than {dtype}."
    if dtype == "float16":
        cast = f"Look for weights that overflow in {dtype}, and for zeros; or {wider}"
        overflowing = f"The numbers overflow: {wider}"
    else:
        cast = "Look for NaN, infinities and zeros in its weights."
        overflowing = (
            f"The numbers overflow, and no dtype has a wider range than {dtype}: look for "
            "weights that are too large, and for variances close to zero."
        )
    for batch, own, in_float64 in zip(batches, reference, exact, strict=True):
        for outputs, name, remedy in ((in_float64, "float64", cast), (own, dtype, overflowing)):
            problem = eager_not_finite(
                Case(
                    candidate=outputs,
                    reference=outputs,
                    exact=outputs,
                    rows=batch.rows,
                    first_rows=batch.first_rows,
                ),
                tuple(outputs),
            )
            if problem:
                unknown = "so nothing can be compared with it"
                raise RunError(f"{problem}, in {name}, {unknown}", remedy=remedy)
