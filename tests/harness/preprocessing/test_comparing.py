"""A planted fault is reported as unknown, beside known differences; the counts add up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipcheck.errors import RunError
from clipcheck.harness.preprocessing import comparing
from clipcheck.harness.preprocessing.base import Candidate
from clipcheck.harness.preprocessing.comparing import compare
from clipcheck.harness.preprocessing.differences import (
    PADDED_WITH_END,
    REFUSED,
    UNTRUNCATED,
    Difference,
)
from clipcheck.inputs.rules import STD
from clipcheck.inputs.tokenizer import END_TOKEN
from tests.harness.preprocessing.conftest import Candidates
from tests.harness.preprocessing.samples import LENGTH, SMALL

Array = np.ndarray[Any, Any]

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8))
VEILED = NOISE.convert("RGBA")
VEILED.putalpha(NOISE.getchannel(1))
PALETTE = NOISE.quantize(16)
IMAGES = [NOISE, VEILED, PALETTE]
TEXTS = ["A DOG", "dog " * 30, "Caf\u00e9 &amp; BAR \x07", "Is THIS \u2019tis?"]


def shifted(pixels: Array) -> Array:
    """Shift the image as a crop that begins one pixel late does."""
    return np.roll(pixels, 1, axis=2)


IMAGE_FAULTS: dict[str, Callable[[Array], Array]] = {
    "BGR": lambda pixels: pixels[::-1],
    "crop off by one": shifted,
    "turned": lambda pixels: pixels.swapaxes(1, 2),
    "another mean": lambda pixels: pixels - np.float32(1e-4),
    "another deviation": lambda pixels: pixels * np.float32(1.0001),
    "one level of one pixel": lambda pixels: pixels + one_level(pixels.shape),
    "half": lambda pixels: pixels.astype(np.float16).astype(np.float32),
    "one row less": lambda pixels: pixels[:, :-1],
    "float64": lambda pixels: pixels.astype(np.float64),
    "not a number": lambda pixels: np.full_like(pixels, np.nan),
}


def one_level(shape: tuple[int, ...]) -> Array:
    change = np.zeros(shape, dtype=np.float32)
    change[0, 5, 5] = 1 / 255 / STD[0]
    return change


def without_end(ids: Array) -> Array:
    """Leave the end token out, as a tokenizer that only cuts does."""
    end = int(np.argmax(ids == END_TOKEN))
    return np.concatenate([ids[:end], ids[end + 1 :], [0]])


TEXT_FAULTS: dict[str, Callable[[Array], Array]] = {
    "no end token": without_end,
    "no start token": lambda ids: np.append(ids[1:], ids[-1]),
    "ids off by one": lambda ids: ids + 1,
    "two exchanged": lambda ids: ids[[0, 2, 1, *range(3, len(ids))]],
    "one id too few": lambda ids: ids[:-1],
    "one id too many": lambda ids: np.append(ids, 0),
    "floats": lambda ids: ids.astype(np.float32),
    "a batch": lambda ids: ids[np.newaxis],
}


def changed(candidate: Candidate, fault: Callable[[Array], Array]) -> Candidate:
    def run(raw: Any) -> Array:
        return fault(candidate(raw))

    return dataclasses.replace(candidate, run=run)


def of_kind(candidates: Candidates, kind: str) -> list[Candidate]:
    return [each for each in candidates.values() if each.kind == kind]


@pytest.mark.parametrize("fault", IMAGE_FAULTS.values(), ids=IMAGE_FAULTS)
def test_a_fault_in_pixels_is_unknown_in_every_image_and_library(
    candidates: Candidates, fault: Callable[[Array], Array]
) -> None:
    faulty = [changed(each, fault) for each in of_kind(candidates, "image")]
    assert len(faulty) == 5
    for result in compare(faulty, IMAGES, [], SMALL):
        assert len(result.unknown) == len(IMAGES), result.name
        assert not result.known


@pytest.mark.parametrize("fault", TEXT_FAULTS.values(), ids=TEXT_FAULTS)
def test_a_fault_in_ids_is_unknown_in_every_text_and_library(
    candidates: Candidates, fault: Callable[[Array], Array]
) -> None:
    # What is refused has no ids.
    texts = [text for text in TEXTS if text != "dog " * 30]
    faulty = [changed(each, fault) for each in of_kind(candidates, "text")]
    assert len(faulty) == 6
    for result in compare(faulty, [], texts, SMALL):
        assert len(result.unknown) == len(texts), result.name
        assert not result.known


def test_a_missing_end_token_is_unknown_where_a_text_is_cut(candidates: Candidates) -> None:
    def unended(ids: Array) -> Array:
        return np.append(ids[:-1], ids[-2])

    for name in ("transformers (truncation=True)", "open_clip (SimpleTokenizer)"):
        (result,) = compare([changed(candidates[f"text {name}"], unended)], [], [TEXTS[1]], SMALL)
        assert len(result.unknown) == 1


def test_a_tokenizer_that_does_not_lower_is_unknown(tmp_path: Path) -> None:
    from tokenizers import normalizers
    from transformers import CLIPTokenizer

    from clipcheck.harness.preprocessing import transformers

    transformers.tokenizer_files(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    faulty = Candidate(
        "transformers",
        "text",
        "transformers 5",
        lambda text: tokenizer(text, padding="max_length", max_length=LENGTH)["input_ids"],
        (*transformers._TOKENIZER, PADDED_WITH_END),
    )
    (result,) = compare([faulty], [], ["A dog", "a dog"], SMALL)
    assert [each.example for each in result.unknown] == ["'A dog'"]
    assert result.known["padded with the end token"].count == 1


def test_padding_with_another_id_is_unknown(candidates: Candidates) -> None:
    def padded_with_one(ids: Array) -> Array:
        ids = ids.copy()
        ids[int(np.argmax(ids == END_TOKEN)) + 1 :] = 1
        return ids

    faulty = changed(candidates["text transformers (truncation=True)"], padded_with_one)
    (result,) = compare([faulty], [], ["a dog"], SMALL)
    assert [each.unlike.message for each in result.unknown] == ["id 1 in place of 0 at position 4"]


def test_resizing_tensors_without_antialiasing_is_unknown() -> None:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    from clipcheck.harness.preprocessing import transformers
    from clipcheck.inputs.rules import MEAN

    def run(antialias: bool) -> Callable[[Image.Image], Any]:
        def preprocess(image: Image.Image) -> Any:
            tensor = functional.pil_to_tensor(image)
            bicubic = InterpolationMode.BICUBIC
            tensor = functional.resize(tensor, [33], bicubic, antialias=antialias)
            tensor = functional.center_crop(tensor, [33, 33])
            shares = functional.to_dtype(tensor, scale=True)
            return functional.normalize(shares, list(MEAN), list(STD))

        return preprocess

    right, wrong = (
        Candidate("x", "image", "x 1", run(antialias), transformers._FAST)
        for antialias in (True, False)
    )
    square = NOISE.crop((0, 0, 40, 40))
    known, unknown = compare([right, wrong], [square], [], SMALL)
    assert list(known.known) == ["resized as a tensor"]
    assert len(unknown.unknown) == 1
    assert not unknown.known


def test_an_error_of_a_library_is_unknown_and_quoted() -> None:
    def run(raw: object) -> Array:
        raise ValueError("first line\nno such mode")

    failing = [
        Candidate("x", "image", "x 1", run),
        Candidate("x", "text", "x 1", run, (REFUSED,)),
    ]
    for result in compare(failing, [NOISE], ["dog " * 30], SMALL):
        (unknown,) = result.unknown
        assert unknown.unlike.message == "refused: first line\nno such mode"


def test_a_candidate_makes_what_a_library_raises_an_error_of_ours() -> None:
    def run(raw: object) -> Array:
        raise KeyError("none")

    with pytest.raises(RunError, match=r"^x \(fast\): preprocessing failed \('none'\)"):
        Candidate("x (fast)", "image", "x 1", run)(NOISE)


def test_all_differences_are_named_where_no_single_one_matters() -> None:
    def make(raw: object, how: Collection[Difference]) -> Array:
        return np.array([len(how) >= 2], dtype=np.int64)

    three = (PADDED_WITH_END, REFUSED, UNTRUNCATED)
    inputs = comparing._Inputs(["x"], [np.array([0])], make, str)
    assert comparing._reasons("x", three, inputs) == three
    assert comparing._reasons("x", three[:2], inputs) == list(three[:2])


def test_an_image_that_neither_side_takes_is_the_same() -> None:
    # Pillow cannot convert it to RGB.
    veiled = Image.new("La", (4, 4))
    candidate = Candidate("x", "image", "x 1", SMALL.pixels)
    (result,) = compare([candidate], [veiled], [], SMALL)
    assert (result.compared, result.same) == (1, 1)


def test_counts_add_up_and_the_first_example_is_shown(candidates: Candidates) -> None:
    texts = ["dog " * 30, "a", "two", "caf\u00e9 \x07"]

    def sometimes(ids: Array) -> Array:
        return ids + 1 if ids[1] == 1237 else ids

    assert candidates["text clip (truncate=True)"]("two")[1] == 1237
    candidate = changed(candidates["text transformers (truncation=True)"], sometimes)
    (result,) = compare([candidate], [], texts, SMALL)
    assert (result.compared, result.same, result.differing_as_known) == (4, 1, 2)
    assert [each.example for each in result.unknown] == ["'two'"]
    padded = result.known["padded with the end token"]
    assert (padded.count, padded.example) == (2, "'a'")
    assert padded.meaning == PADDED_WITH_END.meaning
    assert padded.link == PADDED_WITH_END.link
    repaired = result.known["no repairs by ftfy"]
    assert (repaired.count, repaired.example) == (1, ascii("caf\u00e9 \x07"))


def test_rounding_is_reported_for_outputs_that_count_as_equal() -> None:
    def run(image: Image.Image) -> Array:
        return SMALL.pixels(image) + np.float32(1e-6)

    (result,) = compare([Candidate("x", "image", "x 1", run)], [NOISE], [], SMALL)
    assert result.same == 1
    assert 5e-7 < result.rounding < 2e-6


def test_ids_and_letters_that_are_new_in_unicode_are_left_out(candidates: Candidates) -> None:
    new = "\U000323b0"
    prompts = [(49406, 5, 49407), "a", new]
    (result,) = compare([candidates["text clip (truncate=True)"]], [], prompts, SMALL)
    assert result.compared == 1 + _is_assigned(new)


def _is_assigned(character: str) -> bool:
    """Whether this Python's Unicode has the character; later versions have more."""
    import unicodedata

    return unicodedata.category(character) != "Cn"
