"""Hypothesis strategies for CLIP's inputs: images, pixels, prompts, token ids, batches.

They draw few numbers, do not filter, and shrink, so every health check can stay enabled.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from hypothesis.strategies import SearchStrategy
from PIL import Image

from clipcheck.inputs.batches import Batch, Inputs, Pixels, Tokens, length_of, whole_row
from clipcheck.inputs.pictures import MODES, UNPROCESSABLE_MODES, Picture
from clipcheck.inputs.rules import TextRules, clip_texts
from clipcheck.inputs.sketches import described_pixels, pictures, sides, variants
from clipcheck.inputs.tokenizer import (
    CONTEXT_LENGTH,
    VOCABULARY_SIZE,
    ClipTokenizer,
    default_tokenizer,
)
from clipcheck.inputs.words import (
    BLANKS,
    CHARACTERS,
    JOINERS,
    PIECES,
    PLAIN,
    TEMPLATES,
    whole_words,
)

__all__ = [
    "MODES",
    "UNPROCESSABLE_MODES",
    "batches",
    "images",
    "pixels",
    "prompts",
    "token_ids",
]

T = TypeVar("T")


def images(
    *,
    modes: Sequence[str] = MODES,
    min_side: int = 1,
    max_side: int = 2048,
    max_aspect: int = 64,
) -> SearchStrategy[Image.Image]:
    """Return a strategy for Pillow images of every kind that preprocessing may get.

    Draws a mode, two sides, one of the `KINDS` of patterns, two colours (greys, channels of 0 or
    255, or any), and a seed for noise: about twenty numbers for any size.
    Palettes come without transparency, with one transparent colour, or with one opacity for each;
    of the last, Pillow warns when they are converted to RGB. Modes of more than 8 bits come with
    values up to 255, to 4095 or 1, to 65535, and down to -255 if they can store it. Half of the
    images have an EXIF orientation, 1 to 8, in ``image.info["exif"]``, where Pillow's ``getexif``
    finds it.

    Six in seven sides are up to 256. A side that is more than ``max_aspect`` times as long as the
    other is cut to that: resizing gives the shorter one the model's resolution. With 64, the
    resized image at 336 pixels is of 29 MB at most, and 58 MB with the copy that Pillow makes of
    one with opacities. A larger ``max_aspect`` needs proportionally more.

    Shrinks toward a flat, opaque grey image, 128 of 255, of the first of ``modes``, of
    ``min_side`` by ``min_side`` pixels, without EXIF.

    Args:
        modes: Pillow's names, from `MODES` and `UNPROCESSABLE_MODES`.
        min_side: pixels, at least 1.
        max_side: pixels.
        max_aspect: longer side by shorter side, at least 1.

    Raises:
        InvalidArgument: an argument is invalid, or the limits of a side contradict.
    """
    _check_sides(min_side, max_side)
    _check_integer("max_aspect", max_aspect, 1, "Pass the greatest ratio of the sides.")
    drawn = st.sampled_from(variants(_checked_modes(modes)))
    return pictures(drawn, sides(min_side, max_side), max_aspect).map(Picture.render)


def pixels(*, resolution: int) -> SearchStrategy[Pixels]:
    """Return a strategy for preprocessed images: float32 [3, resolution, resolution].

    Each channel goes from ``(0 - mean) / std`` to ``(1 - mean) / std``, both included. Three in
    four images have only values of the 256 levels, bit for bit as after preprocessing; the others
    may have values between them as well. Patterns and colours are those of `images`.

    Shrinks toward flat grey, 128 of 255.

    Args:
        resolution: pixels a side, at least 1.

    Raises:
        InvalidArgument: ``resolution`` is invalid.
    """
    _check_integer("resolution", resolution, 1, "Pass the model's resolution in pixels.")
    return described_pixels(resolution).map(lambda described: described[1])


def prompts(*, context_length: int = CONTEXT_LENGTH) -> SearchStrategy[str]:
    """Return a strategy for texts, from one word to more tokens than the context length.

    Most are pieces in a template such as ``"a photo of {}."``, with or without blanks between them,
    some repeated. Pieces are plain words; words of one token each, from the whole
    vocabulary; emoji; combining marks; scripts from right to left; Chinese, Japanese and
    Korean; HTML entities, escaped once and twice; mojibake; control characters; blanks of all
    kinds; the names of the special tokens. The other texts are blank, or any unicode. All are valid
    UTF-8, without surrogates.

    Shrinks toward ``"a"``: first to fewer pieces, then to plain words, then to words of low ids.

    Args:
        context_length: tokens, start and end included, at least 2. The lengths of the texts are
            spread evenly below and above it.

    Raises:
        InvalidArgument: ``context_length`` is invalid.
        VocabularyError: when drawing, from `clipcheck.inputs.tokenizer.read_vocabulary`.
    """
    _check_context(context_length)
    most = context_length + 8
    quarters = [(most * share // 4 + 1, most * (share + 1) // 4) for share in range(4)]
    lists = [st.lists(_words(), min_size=1, max_size=most)]
    lists += [st.lists(_words(), min_size=low, max_size=high) for low, high in quarters]
    repeated = st.builds(
        _repeated, st.lists(_words(), min_size=1, max_size=3), st.integers(2, most)
    )
    sentences = [
        st.builds(
            _sentence,
            pieces,
            st.just(" ") | st.sampled_from(JOINERS),
            st.just("{}") | st.sampled_from(TEMPLATES),
        )
        for pieces in (*lists, repeated)
    ]
    # As a list: a whole text would be a single choice, to which longer prompts would shrink.
    unicode = st.lists(st.characters(codec="utf-8")).map("".join)
    return st.one_of(_words(), *sentences, st.sampled_from(BLANKS), unicode)


def token_ids(
    *, context_length: int = CONTEXT_LENGTH, vocab_size: int = VOCABULARY_SIZE
) -> SearchStrategy[Tokens]:
    """Return a strategy for rows of ids: int32 [context_length].

    Each is the start id, which is ``vocab_size - 2``, any number of ids below it, the end id, which
    is ``vocab_size - 1``, and zeros. The end is at any position from 1 to the last. All ids are
    equally likely; some prompts only repeat a few of them.

    Shrinks toward the empty prompt, start and end; with ids, toward few and low ones.

    Args:
        context_length: tokens, start and end included, at least 2.
        vocab_size: at least 3.

    Raises:
        InvalidArgument: an argument is none of these.
    """
    _check_context(context_length)
    _check_integer("vocab_size", vocab_size, 3, "Two ids are the start and the end.")
    return rows_of(clip_texts(vocab_size), context_length)


def rows_of(texts: TextRules, context_length: int) -> SearchStrategy[Tokens]:
    """Return a strategy for rows such as `token_ids`, with the rules of any family."""
    room = context_length - texts.specials
    ids = st.integers(texts.first, texts.last)
    quarters = [(room * share // 4, room * (share + 1) // 4) for share in range(4)]
    lists = [
        st.lists(ids, min_size=low, max_size=high)
        for low, high in ((0, room), *quarters, (max(room - 1, 0), room))
    ]
    few = st.lists(ids, min_size=min(1, room), max_size=min(3, room))
    repeated = st.builds(_repeated, few, st.integers(0, room))
    row = functools.partial(whole_row, texts, context_length)
    return st.one_of(*(drawn.map(row) for drawn in (*lists, repeated)))


def batches(*, inputs: Inputs, max_images: int = 8, max_prompts: int = 8) -> SearchStrategy[Batch]:
    """Return a strategy for batches of N images from `pixels` and M prompts; N is never M.

    The prompts are from `token_ids` and, if the vocabulary is CLIP's, from `prompts`, truncated.
    ``batch.rows`` has the pattern of each image, and the text or the length of each prompt;
    ``batch.first_rows`` are 0.

    Shrinks toward one image of flat grey and two empty prompts.

    Args:
        inputs: what the model takes.
        max_images: at least 1.
        max_prompts: at least 1, and 2 if there is only one image.

    Raises:
        InvalidArgument: an argument is none of these.
    """
    _check_inputs(inputs)
    _check_integer("max_images", max_images, 1, "Pass the most rows of a batch.")
    _check_integer("max_prompts", max_prompts, 1, "Pass the most rows of a batch.")
    if max_images == max_prompts == 1:
        raise InvalidArgument(
            "Expected room for unequal numbers of images and prompts but got max_images=1 and "
            "max_prompts=1. Raise one of them."
        )
    return _batches(described_pixels(inputs.resolution), _prompt_rows(inputs), max_images,
                    max_prompts)  # fmt: skip


# --------------------------------------------------------------------------- prompts


@st.composite
def _words(draw: st.DrawFn) -> str:
    """Pieces of a sentence: plain words, then whole words by their token, then odd pieces."""
    whole = whole_words()
    known = len(PLAIN) + len(whole)
    # One number for both, so that there are as many of each as there are of them, not halves.
    number = draw(st.integers(0, known + known // 5))
    if number >= known:
        return draw(_odd_pieces())
    return PLAIN[number] if number < len(PLAIN) else whole[number - len(PLAIN)]


@functools.cache
def _odd_pieces() -> SearchStrategy[str]:
    listed = [st.sampled_from(pieces) for pieces in (*PIECES.values(), BLANKS)]
    spelled = [
        st.text(st.characters(min_codepoint=low, max_codepoint=high), min_size=1, max_size=4)
        for low, high in CHARACTERS.values()
    ]
    return st.one_of(*listed, *spelled)


def _repeated(pieces: list[T], count: int) -> list[T]:
    return list(itertools.islice(itertools.cycle(pieces), count))


def _sentence(pieces: list[str], joiner: str, template: str) -> str:
    return template.format(joiner.join(pieces))


# --------------------------------------------------------------------------- rows and batches


def _prompt_rows(inputs: Inputs) -> SearchStrategy[tuple[str, Tokens]]:
    length, texts = inputs.context_length, inputs.texts
    rows = rows_of(texts, length).map(functools.partial(_described, texts))
    if not isinstance(texts.tokenizer, ClipTokenizer):
        return rows
    return rows | prompts(context_length=length).map(functools.partial(_worded, inputs))


def _described(texts: TextRules, tokens: Tokens) -> tuple[str, Tokens]:
    length = length_of(texts, tokens)
    return "empty" if length <= texts.specials else f"{length} tokens", tokens


def _worded(inputs: Inputs, text: str) -> tuple[str, Tokens]:
    # Special tokens in the text are removed, because they would end it early.
    ids = [i for i in default_tokenizer().encode(text) if i <= inputs.texts.last]
    name, tokens = _described(inputs.texts, inputs.row(ids[: inputs.room]))
    return repr(text) if len(text) <= 40 else name, tokens


@st.composite
def _batches(
    draw: st.DrawFn,
    images: SearchStrategy[tuple[str, Pixels]],
    prompts: SearchStrategy[tuple[str, Tokens]],
    max_images: int,
    max_prompts: int,
) -> Batch:
    sizes = [(n, m) for n in range(1, max_images + 1) for m in range(1, max_prompts + 1) if n != m]
    count, others = draw(st.sampled_from(sorted(sizes, key=sum)))
    image_names, pixels = zip(*(draw(images) for _ in range(count)), strict=True)
    prompt_names, tokens = zip(*(draw(prompts) for _ in range(others)), strict=True)
    rows = {"image": image_names, "prompt": prompt_names}
    return Batch(np.stack(pixels), np.stack(tokens), rows, {"image": 0, "prompt": 0})


# --------------------------------------------------------------------------- arguments


def _check_integer(name: str, value: object, least: int, remedy: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(
            f"Expected int but got {name}={value!r} (type={type(value).__name__}). {remedy}"
        )
    if value < least:
        raise InvalidArgument(f"Expected {name} of at least {least} but got {value}. {remedy}")


def _check_context(context_length: object) -> None:
    remedy = f"Start and end are two tokens; released models have {CONTEXT_LENGTH}."
    _check_integer("context_length", context_length, 2, remedy)


def _check_inputs(inputs: object) -> None:
    if not isinstance(inputs, Inputs):
        raise InvalidArgument(
            f"Expected Inputs but got inputs={inputs!r} (type={type(inputs).__name__}). "
            "Pass the sizes of the model's inputs as clipcheck.inputs.batches.Inputs."
        )


def _checked_modes(modes: Sequence[str]) -> Sequence[str]:
    if isinstance(modes, str) or not isinstance(modes, Sequence):
        raise InvalidArgument(
            f"Expected Sequence but got modes={modes!r} (type={type(modes).__name__}). "
            'Pass names of modes, such as ("RGB", "L").'
        )
    unknown = [mode for mode in modes if mode not in (*MODES, *UNPROCESSABLE_MODES)]
    if unknown or not modes:
        raise InvalidArgument(
            f"Expected Pillow's modes but got modes={modes!r}. Pass some of "
            f"{', '.join((*MODES, *UNPROCESSABLE_MODES))}."
        )
    return tuple(modes)


def _check_sides(min_side: int, max_side: int) -> None:
    _check_integer("min_side", min_side, 1, "Pass a number of pixels.")
    _check_integer("max_side", max_side, 1, "Pass a number of pixels.")
    if min_side > max_side:
        raise InvalidArgument(
            f"Expected min_side of at most max_side={max_side} but got min_side={min_side}. "
            "Swap or change them."
        )
