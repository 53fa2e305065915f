"""Compare libraries' preprocessing and tokenizers with clipcheck's, input by input."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from clipcheck.backends.calling import Array, translating
from clipcheck.errors import RunError, UsageError
from clipcheck.gates.preprocessing import (
    Kind,
    Known,
    Outcome,
    PreprocessingResult,
    Refusal,
    Unknown,
    distance,
    unlike,
)
from clipcheck.harness.preprocessing import texts
from clipcheck.harness.preprocessing.base import DOING, Candidate
from clipcheck.harness.preprocessing.differences import LEGACY_END, Difference
from clipcheck.harness.preprocessing.images import pixels
from clipcheck.inputs.examples import Preprocessing, Prompt, describe_image, describe_prompt
from clipcheck.inputs.rules import STD
from clipcheck.inputs.tokenizer import END_TOKEN

if TYPE_CHECKING:
    from PIL import Image

LEGACY_END_TOKEN = 2
"""The end token in the configurations of transformers before its pull request 24773."""


def compare(
    candidates: Sequence[Candidate],
    images: Sequence[Image.Image],
    prompts: Sequence[Prompt],
    preprocessing: Preprocessing,
) -> list[PreprocessingResult]:
    """Give raw inputs to clipcheck and to each candidate.

    Args:
        candidates: from `clipcheck.harness.preprocessing.registry.of`.
        prompts: for candidates of texts. Prompts of ids and texts that are not
            `clipcheck.harness.preprocessing.texts.settled` are left out.
        preprocessing: the eager model's, with the sizes of its inputs.

    Returns:
        One result for each candidate. A refused input is a difference, not an error.

    Raises:
        VocabularyError: see `clipcheck.inputs.tokenizer.read_vocabulary`.
    """
    written = [each for each in prompts if isinstance(each, str) and texts.settled(each)]
    inputs: dict[Kind, _Inputs] = {
        "image": _images(images, preprocessing),
        "text": _texts(written, preprocessing),
        "end token": _end_token(),
    }
    return [_result(each, inputs[each.kind]) for each in candidates]


@dataclass(frozen=True)
class _Inputs:
    """Raw inputs of a kind, and clipcheck's result for each.

    Attributes:
        make: computes clipcheck's result with some steps done as in another library.
        deviations: see `clipcheck.gates.preprocessing.unlike`.
    """

    raw: Sequence[Any]
    expected: Sequence[Outcome]
    make: Callable[[Any, Collection[Difference]], Outcome]
    describe: Callable[[Any], str]
    deviations: Sequence[float] = ()


def _images(images: Sequence[Image.Image], preprocessing: Preprocessing) -> _Inputs:
    def make(image: Image.Image, how: Collection[Difference]) -> Outcome:
        return _outcome("image", partial(pixels, image, preprocessing.resolution, how))

    expected = [_outcome("image", partial(preprocessing.pixels, image)) for image in images]
    return _Inputs(images, expected, make, describe_image, STD)


def _texts(written: Sequence[str], preprocessing: Preprocessing) -> _Inputs:
    def make(text: str, how: Collection[Difference]) -> Outcome:
        return _outcome("text", partial(texts.tokens, text, preprocessing.context_length, how))

    expected = [_outcome("text", partial(preprocessing.tokens, text)) for text in written]
    return _Inputs(written, expected, make, describe_prompt)


def _end_token() -> _Inputs:
    def make(_: str, how: Collection[Difference]) -> Outcome:
        return np.array([LEGACY_END_TOKEN if LEGACY_END in how else END_TOKEN])

    return _Inputs(["<|endoftext|>"], [make("", ())], make, str)


def _outcome(kind: Kind, make: Callable[[], Array]) -> Outcome:
    try:
        with translating("clipcheck", DOING[kind]):
            return make()
    except (RunError, UsageError) as error:
        return Refusal(str(error.__cause__ or error))


def _result(candidate: Candidate, inputs: _Inputs) -> PreprocessingResult:
    same, rounding = 0, 0.0
    known: dict[Difference, list[str]] = {each: [] for each in candidate.differences}
    unknown: list[Unknown] = []
    for raw, expected in zip(inputs.raw, inputs.expected, strict=True):
        found = _outcome(candidate.kind, partial(candidate, raw))
        differs = unlike(expected, found, inputs.deviations)
        if differs is None:
            same += 1
            rounding = max(rounding, distance(expected, found))
        elif unlike(inputs.make(raw, candidate.differences), found, inputs.deviations) is None:
            for each in _reasons(raw, candidate.differences, inputs):
                known[each].append(inputs.describe(raw))
        else:
            unknown.append(Unknown(inputs.describe(raw), differs))
    return PreprocessingResult(
        name=candidate.name,
        kind=candidate.kind,
        version=candidate.version,
        compared=len(inputs.raw),
        same=same,
        rounding=rounding,
        known={
            each.name: Known(len(met), met[0], each.meaning, each.link)
            for each, met in known.items()
            if met
        },
        unknown=unknown,
    )


def _reasons(
    raw: object, differences: Collection[Difference], inputs: _Inputs
) -> Collection[Difference]:
    """Return the differences that matter for an input, or all if only all together do."""
    return list(_mattering(raw, differences, inputs)) or differences


def _mattering(
    raw: object, differences: Collection[Difference], inputs: _Inputs
) -> Iterator[Difference]:
    none, everything = inputs.make(raw, ()), inputs.make(raw, differences)
    for each in differences:
        others = [other for other in differences if other != each]
        if (
            unlike(none, inputs.make(raw, [each]), inputs.deviations) is not None
            or unlike(everything, inputs.make(raw, others), inputs.deviations) is not None
        ):
            yield each
