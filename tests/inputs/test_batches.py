from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from clipcheck.checkpoints.architecture import ARCHITECTURES
from clipcheck.inputs.batches import (
    MOST_ROWS,
    Batch,
    Inputs,
    batches,
    classic,
    every_length,
    exhaustive,
    for_modules,
    population,
)
from clipcheck.inputs.counts import EDGE_CASES, SIZES
from clipcheck.inputs.preprocess import transform
from clipcheck.inputs.tokenizer import END_TOKEN, START_TOKEN, VOCABULARY_SIZE, tokenize

CLIP = Inputs(resolution=32, context_length=77, vocab_size=VOCABULARY_SIZE, grid=4)
OTHER = Inputs(resolution=32, context_length=16, vocab_size=300, grid=2)
MINUTE = Inputs(resolution=16, context_length=8, vocab_size=100, grid=2)

every_kind = pytest.mark.parametrize(
    "inputs", [CLIP, OTHER, MINUTE], ids=["clip", "other", "minute"]
)


def draw(examples: int = EDGE_CASES, inputs: Inputs = CLIP, seed: int = 0) -> list[Batch]:
    return list(batches(examples, inputs, seed))


def prompts_of(drawn: Iterable[Batch]) -> np.ndarray:
    return np.concatenate([batch.tokens for batch in drawn])


def images_of(drawn: Iterable[Batch]) -> dict[str, np.ndarray]:
    """Return images by description; of several, the first."""
    found: dict[str, np.ndarray] = {}
    for batch in drawn:
        for name, pixels in zip(batch.rows["image"], batch.pixels, strict=True):
            found.setdefault(name, pixels)
    return found


UNUSUAL = ("two end tokens", "no end token")


def described(drawn: Iterable[Batch]) -> list[tuple[str, np.ndarray]]:
    """Yield each prompt [1, L] with its description."""
    return [
        (name, tokens[np.newaxis])
        for batch in drawn
        for name, tokens in zip(batch.rows["prompt"], batch.tokens, strict=True)
    ]


def lengths_of(tokens: np.ndarray) -> np.ndarray:
    return tokens.argmax(axis=1) + 1


def ids_of(tokens: np.ndarray) -> list[int]:
    """Return the ids between the start and the end token."""
    return [int(i) for i in tokens[1 : tokens.argmax()]]


# --------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("examples", [1, 2, 3, 5, EDGE_CASES - 1, EDGE_CASES, EDGE_CASES + 1])
def test_there_are_as_many_images_as_asked_for_and_no_more_than_edge_cases(examples: int) -> None:
    drawn = draw(examples)
    assert sum(len(batch.pixels) for batch in drawn) == min(examples, EDGE_CASES)
    for batch in drawn:
        assert 1 <= len(batch.pixels) <= MOST_ROWS
        assert 1 <= len(batch.tokens) <= MOST_ROWS


def test_no_two_batches_have_as_many_rows_and_some_have_more_images_than_prompts() -> None:
    sizes = [(len(batch.pixels), len(batch.tokens)) for batch in draw()]
    assert sizes == list(SIZES)
    for rows in zip(*sizes, strict=True):
        assert {1, 2, 3} < set(rows)
        assert len(set(rows)) == len(sizes)
    assert any(images > prompts for images, prompts in sizes)
    assert any(images < prompts for images, prompts in sizes)


def test_one_batch_is_square_and_in_the_others_a_transpose_shows() -> None:
    assert sum(len(batch.pixels) == len(batch.tokens) for batch in draw()) == 1


@every_kind
def test_pixels_and_tokens_are_as_a_model_takes_them(inputs: Inputs) -> None:
    for batch in [*draw(inputs=inputs), for_modules(inputs, 0)]:
        side = inputs.resolution
        assert batch.pixels.shape[1:] == (3, side, side)
        assert batch.pixels.dtype == np.float32
        assert np.isfinite(batch.pixels).all()
        assert batch.tokens.shape[1:] == (inputs.context_length,)
        assert batch.tokens.dtype == np.int32
        assert len(batch.rows["image"]) == len(batch.pixels)
        assert len(batch.rows["prompt"]) == len(batch.tokens)


@pytest.mark.parametrize("draw_some", [draw, lambda: list(exhaustive(MINUTE))])
def test_rows_are_numbered_through_all_batches(draw_some: object) -> None:
    images = prompts = 0
    for batch in draw_some():  # type: ignore[operator]
        assert batch.first_rows == {"image": images, "prompt": prompts}
        images, prompts = images + len(batch.pixels), prompts + len(batch.tokens)


# --------------------------------------------------------------------------- seeds


@every_kind
def test_the_same_seed_gives_the_same_bits_and_another_gives_others(inputs: Inputs) -> None:
    first, again, other = (draw(30, inputs, seed) for seed in (1, 1, 2))
    for one, two, three in zip(first, again, other, strict=True):
        assert one.pixels.tobytes() == two.pixels.tobytes()
        assert one.tokens.tobytes() == two.tokens.tobytes()
        assert one.rows == two.rows
        assert one.tokens.tobytes() != three.tokens.tobytes()
    assert images_of(first)["blobs"].tobytes() != images_of(other)["blobs"].tobytes()
    assert images_of(first)["left half flat"].tobytes() != (
        images_of(other)["left half flat"].tobytes()
    )


def test_more_examples_begin_with_those_of_fewer() -> None:
    for few, many in zip(draw(), draw(40), strict=False):
        assert few.pixels.tobytes() == many.pixels.tobytes()
        assert few.tokens.tobytes() == many.tokens.tobytes()


def test_each_batch_has_new_rows() -> None:
    drawn = draw(60)
    images = [image.tobytes() for batch in drawn for image in batch.pixels]
    assert len(set(images)) == len(images)
    # Of the empty prompt and of the words there may be several.
    assert len({row.tobytes() for row in prompts_of(drawn)}) > 0.8 * len(prompts_of(drawn))


# --------------------------------------------------------------------------- images


def extremes(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Return black and white after preprocessing, by channel."""
    from PIL import Image

    side = inputs.resolution
    plain = (np.full((side, side, 3), value, dtype=np.uint8) for value in (0, 255))
    low, high = (transform(side)(Image.fromarray(colours)).numpy() for colours in plain)
    return low[:, :1, :1], high[:, :1, :1]


@every_kind
def test_the_default_holds_the_edge_cases_of_images(inputs: Inputs) -> None:
    images = images_of(draw(EDGE_CASES, inputs))
    low, high = extremes(inputs)
    assert (images["black"] == low).all()
    assert (images["white"] == high).all()
    grey = images["flat grey"]
    assert (np.ptp(grey, axis=(1, 2)) == 0).all()
    assert ((low < grey) & (grey < high)).all()


@every_kind
def test_saturated_squares_have_only_extreme_values_in_each_channel(inputs: Inputs) -> None:
    image = images_of(draw(EDGE_CASES, inputs))["saturated squares"]
    low, high = extremes(inputs)
    assert ((image == low) | (image == high)).all()
    assert len(np.unique(image.reshape(3, -1), axis=1).T) > 4


@every_kind
def test_the_checkerboard_changes_from_each_pixel_to_the_next(inputs: Inputs) -> None:
    image = images_of(draw(EDGE_CASES, inputs))["checkerboard of pixels"]
    low, high = extremes(inputs)
    for this, neighbour in ((image[:, 1:], image[:, :-1]), (image[:, :, 1:], image[:, :, :-1])):
        assert (((this == low) & (neighbour == high)) | ((this == high) & (neighbour == low))).all()


@every_kind
def test_half_images_are_flat_to_the_left_and_at_the_top(inputs: Inputs) -> None:
    images = images_of(draw(EDGE_CASES, inputs))
    half = inputs.resolution // 2
    left, top = images["left half flat"], images["top half flat"]
    for flat, noise in (
        (left[:, :, :half], left[:, :, half:]),
        (top[:, :half], top[:, half:]),
    ):
        assert (np.ptp(flat, axis=(1, 2)) == 0).all()
        assert (noise.std(axis=(1, 2)) > 0.1).all()


def test_there_is_faint_and_strong_noise() -> None:
    images = images_of(draw())
    low, high = extremes(CLIP)
    spread = (high - low).max()
    assert 0 < np.ptp(images["faint noise"]) < 0.2 * spread
    assert np.ptp(images["noise of pixels"]) > 0.9 * spread


# --------------------------------------------------------------------------- prompts


@every_kind
def test_every_prompt_begins_and_ends_as_models_expect_with_zeros_after(inputs: Inputs) -> None:
    drawn = [*draw(40, inputs), for_modules(inputs, 0), every_length(inputs, 0)]
    tokens = np.concatenate([row for name, row in described(drawn) if name not in UNUSUAL])
    assert inputs.texts.start == inputs.vocab_size - 2
    assert inputs.texts.end == inputs.vocab_size - 1
    for row in tokens:
        end = int(row.argmax())
        assert row[0] == inputs.texts.start
        assert row[end] == inputs.texts.end == row.max()
        assert (row == inputs.texts.end).sum() == 1
        assert (row[1:end] < inputs.texts.start).all()
        assert (row >= 0).all()
        assert (row[end + 1 :] == 0).all()


@every_kind
def test_there_is_a_prompt_of_every_length_and_all_begin_alike(inputs: Inputs) -> None:
    found = every_length(inputs, 0)
    assert len(found.pixels) == 0
    assert lengths_of(found.tokens).tolist() == list(range(2, inputs.context_length + 1))
    *shorter, longest = found.tokens
    for row in shorter:
        end = int(row.argmax())
        assert (row[:end] == longest[:end]).all()
    assert not np.array_equal(every_length(inputs, 1).tokens, found.tokens)


def test_images_have_values_that_no_picture_gives() -> None:
    images = images_of(draw())
    assert not images["all zero"].any()
    (name,) = (name for name in images if name.startswith("natural but"))
    assert (images[name] == 0).all(axis=0).sum() == 1
    assert np.abs(images["beyond white and black"]).max() > 5
    for channel, name in enumerate(("red", "green", "blue")):
        lit = images[name] > 0
        assert lit[channel].all()
        assert lit.sum() == lit[channel].size


def test_a_natural_image_has_amplitudes_that_fall_with_the_frequency() -> None:
    large = Inputs(resolution=64, context_length=8, vocab_size=100, grid=2)
    plane = images_of(draw(inputs=large))["natural"].mean(axis=0)
    amplitudes = np.abs(np.fft.rfft2(plane - plane.mean()))
    distance = np.hypot(np.fft.fftfreq(64)[:, np.newaxis], np.fft.rfftfreq(64))
    bands = [(low, 2 * low) for low in (1 / 32, 1 / 16, 1 / 8, 1 / 4)]
    means = [amplitudes[(distance >= low) & (distance < high)].mean() for low, high in bands]
    for one, next_ in itertools.pairwise(means):
        assert 1.5 < one / next_ < 2.7


def test_clips_own_start_and_end_are_the_tokenizers() -> None:
    assert (CLIP.texts.start, CLIP.texts.end) == (START_TOKEN, END_TOKEN)
    assert CLIP.vocab_size == VOCABULARY_SIZE


@every_kind
def test_the_default_holds_prompts_of_every_class_of_lengths(inputs: Inputs) -> None:
    drawn = draw(EDGE_CASES, inputs)
    lengths = set(lengths_of(prompts_of(drawn)).tolist())
    most = inputs.context_length
    assert {2, 3, most, most - 1} <= lengths
    assert len(lengths) >= min(8, most - 2)
    for low, high in ((4, most // 4), (most // 4, most // 2), (most // 2, most - 2)):
        if low <= high:  # Where there are so few tokens, some classes are empty.
            assert any(low <= length <= high for length in lengths), (low, high)


@every_kind
def test_the_default_holds_a_repeated_token(inputs: Inputs) -> None:
    rows = prompts_of(draw(EDGE_CASES, inputs))
    repeated = [ids for ids in map(ids_of, rows) if len(ids) > 2 and len(set(ids)) == 1]
    assert [len(ids) for ids in repeated] == [inputs.context_length // 2]


@every_kind
def test_the_default_holds_two_prompts_in_one_batch_that_differ_in_one_id(inputs: Inputs) -> None:
    alike = [
        (one, other)
        for batch in draw(EDGE_CASES, inputs)
        for one, other in itertools.combinations(batch.tokens, 2)
        if (one != other).sum() == 1 and one.argmax() == other.argmax() > 2
    ]
    assert alike


@pytest.mark.parametrize(("inputs", "parts"), [(CLIP, 10), (OTHER, 10), (MINUTE, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_ids_come_from_every_part_of_the_vocabulary(inputs: Inputs, parts: int, seed: int) -> None:
    rows = prompts_of(draw(EDGE_CASES, inputs, seed))
    ids = np.array([i for row in rows for i in ids_of(row)])
    counts, _ = np.histogram(ids, bins=parts, range=(0, inputs.texts.start))
    assert (counts > 0).all()
    # The first, which padding has too, and the last.
    assert {0, inputs.texts.start - 1} <= set(ids.tolist())


@every_kind
def test_even_one_long_prompt_has_ids_from_everywhere_in_no_order(inputs: Inputs) -> None:
    rows = prompts_of(draw(EDGE_CASES, inputs))
    full = next(row for row in rows if lengths_of(row[np.newaxis])[0] == inputs.context_length)
    ids = ids_of(full)
    share = inputs.texts.start / len(ids)
    assert sorted(int(i // share) for i in ids) == pytest.approx(list(range(len(ids))), abs=1)
    assert ids != sorted(ids)


def test_a_prompt_says_what_it_is() -> None:
    for batch in draw(40):
        for name, row in zip(batch.rows["prompt"], batch.tokens, strict=True):
            length = int(row.argmax()) + 1
            if name.startswith(("'", '"')):
                assert (row == tokenize(name[1:-1], 77).numpy()[0]).all()
            elif name == "empty":
                assert length == 2
            elif name.startswith("one token"):
                assert name == f"one token {length - 2} times"
            elif name == "two end tokens":
                assert (row == CLIP.texts.end).sum() == 2
            elif name == "no end token":
                assert row.max() == row[0]
            else:
                assert name.removesuffix(", one changed") == f"{length} tokens"


def test_there_are_words_where_the_vocabulary_is_clips_and_none_elsewhere() -> None:
    def words(inputs: Inputs) -> list[str]:
        drawn = draw(EDGE_CASES, inputs)
        return [name for batch in drawn for name in batch.rows["prompt"] if name[0] in "'\""]

    assert words(CLIP)
    assert words(OTHER) == []


# --------------------------------------------------------------------------- some of the rows


def test_a_selection_has_those_rows_and_what_they_are() -> None:
    batch = draw()[2]
    some = batch.select([4, 0], [3])
    assert (some.pixels == batch.pixels[[4, 0]]).all()
    assert (some.tokens == batch.tokens[[3]]).all()
    assert some.rows == {
        "image": (batch.rows["image"][4], batch.rows["image"][0]),
        "prompt": (batch.rows["prompt"][3],),
    }
    assert some.first_rows == batch.first_rows


# --------------------------------------------------------------------------- for the modules


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_rows_for_modules_are_not_as_many_as_a_tower_has_positions(name: str) -> None:
    """Else nobody could tell which dimension is which."""
    a = ARCHITECTURES[name]
    inputs = Inputs(resolution=32, context_length=a.context_length, vocab_size=a.vocab_size, grid=4)
    batch = for_modules(inputs, 0)
    positions = {a.grid**2, a.grid**2 + 1, a.context_length}
    assert not positions & {len(batch.pixels), len(batch.tokens)}
    assert len(batch.pixels) != len(batch.tokens)
    assert min(len(batch.pixels), len(batch.tokens)) > 1


def test_the_batch_for_modules_is_small_coloured_and_seeded() -> None:
    batch, again, other = (for_modules(CLIP, seed) for seed in (3, 3, 4))
    assert batch.pixels.tobytes() == again.pixels.tobytes() != other.pixels.tobytes()
    assert batch.tokens.tobytes() == again.tokens.tobytes() != other.tokens.tobytes()
    assert lengths_of(batch.tokens).tolist() == [77, 3, 20]
    assert batch.pixels.tobytes() != draw(2, seed=3)[0].pixels.tobytes()
    assert (batch.pixels.std(axis=(2, 3)) > 0.01).all()
    assert batch.first_rows == {"image": 0, "prompt": 0}


# --------------------------------------------------------------------------- classic


def test_the_classic_batch_is_one_image_and_the_prompts_of_the_references_own_test() -> None:
    batch = classic(CLIP)
    assert batch.pixels.shape == (1, 3, 32, 32)
    texts = ["a diagram", "a dog", "a cat"]
    assert (batch.tokens == tokenize(texts).numpy()).all()
    assert batch.rows["prompt"] == ("'a diagram'", "'a dog'", "'a cat'")
    assert batch.pixels.tobytes() == classic(CLIP).pixels.tobytes()


# --------------------------------------------------------------------------- population


def test_a_population_has_the_asked_number_of_both_and_no_edge_case() -> None:
    found = list(population(19, MINUTE, 3))
    assert [len(batch.pixels) for batch in found] == [8, 8, 3]
    assert [batch.first_rows["prompt"] for batch in found] == [0, 8, 16]
    for batch in found:
        assert batch.pixels.shape[1:] == (3, MINUTE.resolution, MINUTE.resolution)
        assert batch.pixels.std(axis=(1, 2, 3)).min() > 0
        assert batch.tokens.shape == (len(batch.pixels), MINUTE.context_length)
    again, other = population(19, MINUTE, 3), population(19, MINUTE, 4)
    assert next(again).pixels.tobytes() == found[0].pixels.tobytes() != next(other).pixels.tobytes()


def test_captions_are_prompts_where_the_vocabulary_has_the_words() -> None:
    names = [
        {name for batch in population(8, inputs, 0) for name in batch.rows["prompt"]}
        for inputs in (MINUTE, CLIP)
    ]
    assert [any(name.startswith("'") for name in each) for each in names] == [False, True]


# --------------------------------------------------------------------------- exhaustive


@pytest.fixture(scope="module")
def everything() -> list[Batch]:
    return list(exhaustive(MINUTE))


def test_every_id_of_the_vocabulary_is_walked(everything: Sequence[Batch]) -> None:
    found = {int(i) for row in prompts_of(everything) for i in row[: row.argmax() + 1]}
    assert found == set(range(MINUTE.vocab_size))
    # By prompts of one id after the other, each once, before lengths are walked.
    ids = [i for row in prompts_of(everything) for i in ids_of(row)]
    assert ids[: MINUTE.texts.start] == list(range(MINUTE.texts.start))


def test_every_length_is_walked(everything: Sequence[Batch]) -> None:
    tokens = prompts_of(everything)
    lengths = lengths_of(tokens)
    assert set(lengths.tolist()) == set(range(2, MINUTE.context_length + 1))
    for row in tokens:
        end = int(row.argmax())
        assert (row[0], row[end]) == (MINUTE.texts.start, MINUTE.texts.end)
        assert (row[end + 1 :] == 0).all()
        assert (row == MINUTE.texts.end).sum() == 1


@pytest.mark.parametrize(
    "inputs",
    [
        MINUTE,
        OTHER,
        Inputs(resolution=32, context_length=6, vocab_size=12, grid=8),
        Inputs(resolution=42, context_length=40, vocab_size=20, grid=7),
    ],
    ids=["few", "other", "many positions", "few prompts"],
)
def test_every_position_has_an_image_that_is_flat_elsewhere(inputs: Inputs) -> None:
    size = inputs.resolution // inputs.grid
    found = set()
    for batch in exhaustive(inputs):
        assert 1 <= len(batch.pixels) <= MOST_ROWS
        assert 1 <= len(batch.tokens) <= MOST_ROWS
        for image, name in zip(batch.pixels, batch.rows["image"], strict=True):
            flat = image == np.median(image, axis=(1, 2), keepdims=True)
            ys, xs = np.nonzero(~flat.all(axis=0))
            row, column = ys.min() // size, xs.min() // size
            assert (ys // size == row).all()
            assert (xs // size == column).all()
            assert len(ys) > size * size / 2
            assert name == f"grey but at {row}, {column}"
            found.add((int(row), int(column)))
    every = set(itertools.product(range(inputs.grid), repeat=2))
    assert found == every


def test_every_position_is_walked_of_all_known_architectures() -> None:
    for a in ARCHITECTURES.values():
        prompts = -(-(a.vocab_size - 2) // (a.context_length - 2)) + a.context_length - 1
        count = -(-prompts // MOST_ROWS)
        assert count * MOST_ROWS >= a.grid**2


def test_ids_and_positions_are_named(everything: Sequence[Batch]) -> None:
    assert everything[0].rows["prompt"][0] == "ids 0 to 5"
    assert everything[0].rows["image"][0] == "grey but at 0, 0"
    assert everything[-1].rows["prompt"][-1] == "8 tokens"
