"""Run the user's own images and prompts through both sides, and measure them batch by batch."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipcheck.backends.base import Backend
from clipcheck.backends.calling import Array
from clipcheck.errors import RunError, UsageError
from clipcheck.gates.own import Candidates, OwnFound, OwnMeasures
from clipcheck.gates.result import OUTPUTS, Case, in_form
from clipcheck.harness.search.probe import Probe
from clipcheck.harness.search.probe import worst as worst_measure
from clipcheck.harness.search.reduction import reduce
from clipcheck.inputs.examples import Example, Preprocessing, batch, ids_of, spelled
from clipcheck.inputs.own import IMAGES, PROMPTS, OwnData, OwnKind, OwnRows, Skipped
from clipcheck.inputs.preprocess import picture_of
from clipcheck.results.failing import Failing
from clipcheck.system.progress import Advance, Tally, still

if TYPE_CHECKING:
    from clipcheck.backends.reference import Reference, Standing

_ENCODERS: dict[OwnKind, tuple[str, str]] = {
    "prompt": ("encode_text", "text_features"),
    "image": ("encode_image", "image_features"),
}
"""By kind, the method and its output. Prompts run first: images are matched with them."""

_OPTIONS: dict[OwnKind, str] = {"image": IMAGES, "prompt": PROMPTS}


class EagerFeatures:
    """The eager model's features of the user's data, computed once for all backends.

    They are kept in a temporary file, by a digest of the inputs.

    Args:
        reference: returns the eager model.
    """

    def __init__(self, reference: Callable[[], Reference]) -> None:
        self._reference = reference
        self._file: IO[bytes] | None = None
        self._places: dict[str, int] = {}
        self._standing: Standing | None = None

    @property
    def bias(self) -> float:
        """Bias of the model's logits."""
        return self._reference().bias

    def own(self, method: str, array: NDArray[Any]) -> Array:
        """Return features in the model's dtype."""
        return self._kept(f"own {method}", array, lambda: self._run().own_features(method, array))

    def exact(self, method: str, array: NDArray[Any]) -> Array:
        """Return features in float64."""
        return self._kept(
            f"exact {method}", array, lambda: self._run().exact_features(method, array)
        )

    def release(self) -> None:
        """Release the float64 weights."""
        self._standing = None

    def forget(self) -> None:
        """Compute everything anew: a candidate changed the weights."""
        self.release()
        self._places.clear()

    def close(self) -> None:
        """Delete the temporary file."""
        self.forget()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _run(self) -> Standing:
        self._standing = self._standing or self._reference().standing()
        return self._standing

    def _kept(self, what: str, array: NDArray[Any], compute: Callable[[], Array]) -> Array:
        key = f"{what} {hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()}"
        self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        if key in self._places:
            self._file.seek(self._places[key])
            return np.asarray(np.load(self._file))
        found = compute()
        self._places[key] = self._file.seek(0, 2)
        np.save(self._file, found)
        return found


@dataclass(frozen=True)
class Own:
    """The user's data, for all candidates of a trial.

    Attributes:
        preprocessing: the eager model's preprocessing and tokenizer.
        eager: its features.
        exactly: whether all rows run in float64; else only those for which it may matter.
    """

    data: OwnData
    preprocessing: Preprocessing
    eager: EagerFeatures
    exactly: bool


@dataclass(frozen=True, kw_only=True)
class OwnRun:
    """The user's data as a candidate ran it.

    Attributes:
        measures: for the gates.
        found: for reports.
        digest: of all inputs.
        preprocessing: the eager model's preprocessing and tokenizer.
        failures: why batches could not be run.
        pictures: the worst images as preprocessed, each with its name.
    """

    measures: OwnMeasures
    found: OwnFound
    digest: str
    preprocessing: Preprocessing
    failures: tuple[str, ...] = ()
    pictures: tuple[tuple[str, Image.Image], ...] = ()

    def digest_with(self, others: str) -> str:
        """Return a digest of these and the other inputs."""
        return hashlib.blake2b(f"{others} {self.digest}".encode(), digest_size=16).hexdigest()

    def failing(self, probe: Probe) -> Failing | None:
        """Return the worst row that is beyond its limit: the smallest part of it that fails alone,
        or if it fails only among others, the row as it is. None if no features are."""
        worst = self.measures.worst_failing()
        if worst is None:
            return None
        (kind, kept), preprocessing = worst, self.preprocessing
        if kind == "image":
            first = example = Example(images=(preprocessing.image_of(kept.given),))
        else:
            example = Example(prompts=(ids_of(kept.given, preprocessing.texts),))
            first = spelled(example, preprocessing)
        found = reduce(example, probe, preprocessing)
        given = batch(found or first, preprocessing)
        named = replace(given, rows={**given.rows, kind: (kept.name,)})
        measure = worst_measure(probe.measure(named))
        return Failing(
            example=found or first,
            measure=measure,
            shrunk=found is not None,
            first=first,
            own=kept.name,
        )


def run_own(
    own: Own,
    candidate: Backend,
    measures: OwnMeasures,
    cases: Sequence[Case],
    *,
    repeats: bool,
    advance: Advance = still,
) -> OwnRun:
    """Run the user's data through the eager model and a candidate.

    Args:
        measures: empty.
        cases: of the other inputs, which images are matched with if there are no prompts, and
            prompts if there are no images.
        repeats: whether the worst rows run again, in another batch.

    Raises:
        UsageError: none of the files is a readable image, no tokenizer is at hand, or the candidate
            does not have the features to compare.
        RunError: the eager model cannot be run, or its features are not finite.
    """
    run = _Run(own=own, candidate=candidate, measures=measures, cases=cases, advance=advance)
    for kind in _ENCODERS:
        if own.data.count(kind) and not run.failures:
            run.through(kind, repeats)
    if own.data.prompts and not run.failures:
        run.match_prompts()
    return run.result()


@dataclass(kw_only=True)
class _Run:
    own: Own
    candidate: Backend
    measures: OwnMeasures
    cases: Sequence[Case]
    advance: Advance
    skipped: Skipped = field(default_factory=Skipped)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        data = self.own.data
        self._tally = Tally(len(data.files) + len(data.prompts), self.advance)
        self._digest = hashlib.blake2b(digest_size=16)

    def through(self, kind: OwnKind, repeats: bool) -> None:
        """Run all rows of a kind."""
        name = _ENCODERS[kind][1]
        if name in self.candidate.absent:
            raise UsageError(
                f"{_OPTIONS[kind]}: expected a candidate with {name}, found one without",
                remedy=f"Leave {_OPTIONS[kind]} out for this file.",
            )
        others = self._others(kind) if kind == "image" else None
        ran = 0
        for rows in self.own.data.rows(kind, self.own.preprocessing, self.skipped):
            if not self._measure(rows, others):
                break
            ran += len(rows.names)
            self._tally.add(len(rows.names))
        if kind == "image" and not ran and not self.failures:
            reasons = "; ".join(self.skipped.named[:3])
            raise UsageError(
                f"{IMAGES}: expected images, found no file that can be read as one: {reasons}",
                remedy="Give a folder of images that Pillow can read, such as JPEG or PNG.",
                path=self.own.data.folder,
            )
        if ran and not self.failures:
            self.measures.complete(kind, lambda given: self._exact(kind, given))
            if repeats:
                self._repeat(kind)
        self.own.eager.release()

    def _measure(self, rows: OwnRows, others: Candidates | None) -> bool:
        """Run a batch in both sides; return whether the candidate's features can be compared."""
        method, name = _ENCODERS[rows.kind]
        given = rows.array
        self._digest.update(given.tobytes())
        if rows.kind == "image" and self.candidate.seen is not None:
            given = self.candidate.seen(given)
        eager = self.own.eager
        expected = eager.own(method, given)
        exact = eager.exact(method, given) if self.own.exactly else expected
        _require_finite(rows, name, expected, exact)
        try:
            got = getattr(self.candidate, method)(given)
        except RunError as error:
            self.failures.append(
                f"{error.problem}, in a batch of own {rows.kind}s: {rows.names[0]}"
            )
            return False
        normalised = self.candidate.normalised
        reference = in_form({name: expected}, normalised)
        case = Case(
            candidate={name: got},
            reference=reference,
            exact=in_form({name: exact}, normalised) if self.own.exactly else reference,
            rows={rows.kind: rows.names},
            first_rows={rows.kind: rows.first},
        )
        problem = _problem(rows, name, got, expected)
        if problem:
            self.failures.append(problem)
        if got.shape != expected.shape:
            return False

        def exactly(picked: Sequence[int]) -> Array:
            return self._exact(rows.kind, given[list(picked)])

        self.measures.add(rows.kind, case, given, None if self.own.exactly else exactly)
        if others is not None:
            mine = Candidates.of(name, [case], rows.names)
            self.measures.match(rows.kind, mine, rows.first, others)
        return not problem

    def _exact(self, kind: OwnKind, given: NDArray[Any]) -> Array:
        """Return features in float64, as the candidate gives them."""
        method, name = _ENCODERS[kind]
        exact = self.own.eager.exact(method, given)
        return in_form({name: exact}, self.candidate.normalised)[name]

    def _repeat(self, kind: OwnKind) -> None:
        """Run the worst rows again, in a batch of their own."""
        method, _ = _ENCODERS[kind]
        given = np.stack([kept.given for kept in self.measures.kept(kind)])
        try:
            again = getattr(self.candidate, method)(given)
        except RunError as error:
            self.failures.append(f"{error.problem}, in another batch of own {kind}s")
            return
        if len(again) == len(given):
            self.measures.repeat(kind, again)
        else:
            count = f"{len(again)} rows for {len(given)} own {kind}s"
            self.failures.append(f"{self.candidate.name}: {method} gave {count}")

    def _others(self, kind: OwnKind) -> Candidates | None:
        """Return the rows that those of a kind are matched with: the user's, or if there are none,
        those of the other inputs; None for a single tower."""
        other: OwnKind = "prompt" if kind == "image" else "image"
        if self.own.data.count(other):
            return self.measures.candidates(other)
        name = _ENCODERS[other][1]
        if not all(name in side for case in self.cases for side in (case.candidate, case.exact)):
            return None
        names = [
            case.place(OUTPUTS[name][0], row)
            for case in self.cases
            for row in range(len(case.exact[name]))
        ]
        return Candidates.of(name, self.cases, names)

    def match_prompts(self) -> None:
        """Match the prompts with images, a block at a time."""
        rows, others = self.measures.candidates("prompt"), self._others("prompt")
        if others is not None:
            for first in range(0, len(rows.names), _BLOCK):
                block = rows.some(slice(first, first + _BLOCK))
                self.measures.match("prompt", block, first, others)

    def result(self) -> OwnRun:
        """Return everything that was found."""
        found = replace(
            self.measures.found(),
            skipped=self.skipped.files,
            skipped_files=tuple(self.skipped.named),
            truncated=self.skipped.truncated,
        )
        rules = self.own.preprocessing.images
        pictures = [
            (kept.name, picture_of(kept.given, rules)) for kept in self.measures.kept("image")
        ]
        return OwnRun(
            measures=self.measures,
            found=found,
            digest=self._digest.hexdigest(),
            preprocessing=self.own.preprocessing,
            failures=tuple(self.failures),
            pictures=tuple(pictures),
        )


_BLOCK = 64
"""Prompts that are matched with images at once."""


def _require_finite(rows: OwnRows, name: str, expected: Array, exact: Array) -> None:
    bad = np.flatnonzero(~(np.isfinite(expected) & np.isfinite(exact)).all(axis=1))
    if len(bad):
        raise RunError(
            f"the eager model itself is not finite: {name} of {rows.names[bad[0]]}, so nothing can "
            "be compared with it",
            remedy=f"Leave this {rows.kind} out, or choose a --dtype with a wider range.",
        )


def _problem(rows: OwnRows, name: str, got: Array, expected: Array) -> str:
    """Say what is wrong with the candidate's features of a batch, or return an empty string."""
    where = f"own {rows.kind}s from {rows.names[0]}"
    if got.shape != expected.shape:
        return f"{name} has shape {got.shape} in place of {expected.shape}, of {where}"
    if got.dtype != expected.dtype:
        return f"{name} has dtype {got.dtype} in place of {expected.dtype}, of {where}"
    bad = np.flatnonzero(~np.isfinite(got).all(axis=1))
    return f"{name} of own {rows.kind} {rows.names[bad[0]]} is not finite" if len(bad) else ""
