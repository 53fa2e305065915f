"""A fault on some inputs is found and shrunk to the smallest of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clipcheck.backends.base import Backend
from clipcheck.backends.reference import Reference
from clipcheck.checkpoints.architecture import Architecture, ViT
from clipcheck.errors import RunError
from clipcheck.families import eager
from clipcheck.families.model_inputs import inputs_of
from clipcheck.gates.distance import Ruler
from clipcheck.gates.result import Case
from clipcheck.gates.tolerances import LIMITS, Allclose
from clipcheck.harness.phases import Stopwatch
from clipcheck.harness.running import run_candidate
from clipcheck.harness.search import smallest as module
from clipcheck.harness.search.inputs import Drawn, Wanted, draw
from clipcheck.harness.search.probe import Probe, worst
from clipcheck.harness.search.smallest import smallest
from clipcheck.harness.search.source import Source
from clipcheck.harness.trial import Trial
from clipcheck.inputs.batches import MOST_ROWS
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.results.failing import Failing, Measure
from clipcheck.writers.synthesize import synthesize

# CLIP's own vocabulary, so that prompts are texts.
SMALL = Architecture(
    embed_dim=64,
    image_resolution=16,
    vision=ViT(layers=1, width=64, patch_size=8),
    text_width=64,
    text_layers=1,
    vocab_size=49408,
)
CPU = torch.device("cpu")
OFF = 0.1

Spoil = Callable[[np.ndarray], np.ndarray]


class Candidate(Backend):
    """The eager model, with features that are off where a ``Spoil`` says so; counts rows."""

    name = "jit"

    def __init__(self, model: eager.CLIP, image: Spoil, text: Spoil, pair: Spoil | None) -> None:
        self._model, self._image, self._text, self._pair = model, image, text, pair
        self.rows: list[int] = []

    def encode_image(self, pixels: np.ndarray) -> np.ndarray:
        self.rows.append(len(pixels))
        with torch.inference_mode():
            return self._image(pixels) + self._model.encode_image(torch.from_numpy(pixels)).numpy()

    def encode_text(self, tokens: np.ndarray) -> np.ndarray:
        self.rows.append(len(tokens))
        with torch.inference_mode():
            return self._text(tokens) + self._model.encode_text(torch.from_numpy(tokens)).numpy()

    def __call__(self, pixels: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, texts = self.encode_image(pixels), self.encode_text(tokens)
        with torch.inference_mode():
            per_image, per_text = self._model.logits(
                torch.from_numpy(images), torch.from_numpy(texts)
            )
        wrong = OFF * self._pair(np.array([len(pixels), len(tokens)])) if self._pair else 0
        return per_image.numpy() + wrong, per_text.numpy() + wrong


def nowhere(rows: np.ndarray) -> np.ndarray:
    return np.zeros((len(rows), 1), dtype=np.float32)


def where(condition: Callable[[np.ndarray], bool]) -> Spoil:
    """Spoil the rows for which the condition holds."""
    return lambda rows: np.array([[OFF * condition(row)] for row in rows], dtype=np.float32)


@pytest.fixture(scope="module")
def model() -> eager.CLIP:
    weights = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in synthesize(SMALL).items()
    }
    return eager.build(SMALL, weights)


@pytest.fixture(autouse=True)
def _database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(module, "SEARCHED", 40)


Found = tuple[Failing | None, Candidate, Drawn]


@pytest.fixture
def look(model: eager.CLIP) -> Callable[..., Found]:
    def look(
        *,
        image: Spoil = nowhere,
        text: Spoil = nowhere,
        pair: Spoil | None = None,
        examples: int = EDGE_CASES + 16,
        kind: type[Candidate] = Candidate,
        limits: Allclose | None = None,
    ) -> Found:
        candidate = kind(model, image, text, pair)
        drawn = draw(Wanted(examples, False, 0, "x.pt"), inputs_of(SMALL))
        reference = Reference(model, SMALL, CPU)
        trial = Trial.of(reference, drawn.batches, "float32", Stopwatch())
        cases = run_candidate(trial, candidate).cases
        candidate.rows.clear()
        ruler = Ruler(cases, LIMITS["float32"], trial.scale)
        probe = Probe(candidate, reference.standing(), ruler, limits or Allclose())
        return smallest(probe, drawn, cases), candidate, drawn

    return look


def prompts_of(found: Failing | None) -> Sequence[object]:
    assert found is not None
    assert found.shrunk
    assert found.measure.margin > 1
    assert found.example.images == ()
    return found.example.prompts


def images_of(found: Failing | None) -> list[tuple[str, tuple[int, int], object]]:
    assert found is not None
    assert found.shrunk
    assert found.measure.margin > 1
    assert found.example.prompts == ()
    return [(i.mode, i.size, i.convert("RGB").getpixel((0, 0))) for i in found.example.images]


def test_without_a_failure_nothing_is_searched(look: Callable[..., Found]) -> None:
    found, candidate, _ = look()
    assert found is None
    assert candidate.rows == []


@pytest.mark.thorough
def test_ids_above_40_000_shrink_to_a_text_of_one_such_token(look: Callable[..., Found]) -> None:
    found, _, _ = look(text=where(lambda row: bool(((row >= 40_000) & (row < 49406)).any())))
    (prompt,) = prompts_of(found)
    assert isinstance(prompt, str)
    from clipcheck.inputs.tokenizer import default_tokenizer

    (token,) = default_tokenizer().encode(prompt)
    assert 40_000 <= token < 40_100
    assert found.measure.output == "text_features"
    assert f"text features of prompt 0 ('{prompt}')" in found.measure.message


@pytest.mark.thorough
def test_a_fault_on_every_prompt_shrinks_to_a_letter(look: Callable[..., Found]) -> None:
    assert prompts_of(look(text=where(lambda _: True))[0]) == ("a",)


def test_the_input_that_failed_before_it_was_shrunk_is_kept_as_a_text(
    look: Callable[..., Found],
) -> None:
    found, _, _ = look(text=where(lambda row: int(row.argmax()) > 3))
    assert found is not None
    assert found.first is not None
    ((small,), (first,)) = found.example.prompts, found.first.prompts
    assert isinstance(small, str)
    assert isinstance(first, str)
    assert len(first) > len(small)


def test_the_input_that_failed_before_it_was_shrunk_is_kept_as_ids(
    look: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Source._prompts
    monkeypatch.setattr(Source, "_prompts", lambda self: {"ids": both(self)["ids"]})
    found, _, _ = look(text=where(lambda _: True))
    assert found is not None
    assert found.first is not None
    assert isinstance(found.first.prompts[0], str)


@pytest.mark.thorough
def test_a_fault_on_the_empty_prompt_shrinks_to_a_minimal_text(look: Callable[..., Found]) -> None:
    (prompt,) = prompts_of(look(text=where(lambda row: row[1] == 49407))[0])
    assert isinstance(prompt, str)
    assert len(prompt) <= 1


@pytest.mark.thorough
def test_ids_that_no_text_gives_stay_ids(look: Callable[..., Found]) -> None:
    # A byte that does not end a word comes last, and nothing was cut.
    def odd(row: np.ndarray) -> bool:
        end = int(row.argmax())
        return 1 < end < 76 and bool(row[end - 1] < 256)

    (prompt,) = prompts_of(look(text=where(odd))[0])
    assert prompt == (49406, 0, 49407)


def test_ids_are_shown_as_a_text_that_gives_them(
    look: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Source._prompts
    monkeypatch.setattr(Source, "_prompts", lambda self: {"ids": both(self)["ids"]})
    assert prompts_of(look(text=where(lambda _: True))[0]) == ("",)


@pytest.mark.thorough
def test_inputs_of_the_check_are_searched_first(
    look: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEARCHED", 0)
    monkeypatch.setattr(module, "_TOGETHER", 1)
    found, _, _ = look(text=where(lambda row: bool(((row >= 40_000) & (row < 49406)).any())))
    assert len(prompts_of(found)) == 1


def test_the_search_draws_as_many_examples_as_the_check(
    look: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    counts, draw = Source.counts, Source.draw
    fewer = lambda self, images: replace(draw(self, images), images=draw(self, images).images[:-1])  # noqa: E731
    monkeypatch.setattr(Source, "draw", fewer)
    monkeypatch.setattr(
        Source, "counts", lambda self, images: seen.append(images) or counts(self, images)
    )
    look(text=where(lambda _: True))
    assert set(seen) == {16}


def test_a_fault_on_every_image_shrinks_to_one_grey_pixel(look: Callable[..., Found]) -> None:
    ((mode, size, colour),) = images_of(look(image=where(lambda _: True))[0])
    assert (mode, size) == ("RGB", (1, 1))
    assert len(set(colour)) == 1  # type: ignore[call-overload]


@pytest.mark.thorough
def test_a_fault_on_highlights_shrinks_to_a_flat_image(look: Callable[..., Found]) -> None:
    found, _, _ = look(image=where(lambda row: row.max() > 2.1))
    ((_, size, colour),) = images_of(found)
    assert size == (1, 1)
    assert max(colour) == 255  # type: ignore[call-overload]


@pytest.mark.thorough
def test_a_fault_on_what_is_not_flat_shrinks_to_a_tiny_image(look: Callable[..., Found]) -> None:
    found, _, _ = look(image=where(lambda row: np.ptp(row, axis=(1, 2)).max() > 1))
    ((_, size, _),) = images_of(found)
    assert max(size) <= 16


@pytest.mark.thorough
def test_a_row_beyond_the_fourth_takes_five(look: Callable[..., Found]) -> None:
    def beyond(rows: np.ndarray) -> np.ndarray:
        return np.array([[OFF * (n >= 4)] for n in range(len(rows))], dtype=np.float32)

    rows = images_of(look(image=beyond)[0])
    assert len(rows) == 5
    assert len(set(rows)) == 1


@pytest.mark.thorough
def test_a_row_that_fails_for_being_alone_is_one(look: Callable[..., Found]) -> None:
    found, _, _ = look(text=lambda rows: nowhere(rows) + OFF * (len(rows) == 1))
    assert prompts_of(found) == ("a",)


def test_a_fault_of_logits_alone_needs_a_pair(look: Callable[..., Found]) -> None:
    found, _, _ = look(pair=lambda counts: counts[0] > counts[1])
    assert found is not None
    assert (len(found.example.images), len(found.example.prompts)) == (2, 1)
    assert found.measure.output.startswith("logits")


def test_the_kind_with_the_largest_error_is_searched(look: Callable[..., Found]) -> None:
    slightly = where(lambda _: True)
    found, _, _ = look(image=lambda rows: slightly(rows) / 1000, text=slightly)
    assert prompts_of(found) == ("a",)


@pytest.mark.thorough
def test_a_failure_of_a_stricter_allclose_is_found_as_a_pair(look: Callable[..., Found]) -> None:
    found, _, _ = look(limits=Allclose(atol=0, rtol=0), pair=lambda _: 1e-7 / OFF)
    assert found is not None
    assert found.measure.message.startswith("softmax(logits_per_")


class Crashing(Candidate):
    """Fails on a batch of three or more images."""

    def encode_image(self, pixels: np.ndarray) -> np.ndarray:
        if len(pixels) >= 3:
            raise RunError("jit: encode_image failed", remedy="")
        return super().encode_image(pixels)


@pytest.mark.thorough
def test_a_batch_that_cannot_be_run_is_found(look: Callable[..., Found]) -> None:
    found, _, _ = look(kind=Crashing)
    assert found is not None
    assert len(found.example.images) == 3
    assert found.measure.message == "image_features is missing"


def like_the_longest_edge_case(row: np.ndarray) -> bool:
    """Hold for an edge case that is almost never drawn."""
    return bool(row[76] == 49407 and row[1] == _EDGE_CASE[0])


def test_examples_run_in_batches_and_only_shrinking_singly(
    look: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEARCHED", 8 * MOST_ROWS)
    monkeypatch.setattr(module, "_TOGETHER", 2)
    _, candidate, _ = look(text=where(like_the_longest_edge_case), examples=EDGE_CASES)
    assert candidate.rows[:8] == [MOST_ROWS] * 8


def test_if_nothing_smaller_fails_the_batch_of_the_check_is_given(
    look: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEARCHED", 8)
    monkeypatch.setattr(module, "_TOGETHER", 2)
    found, _, all_of_it = look(text=where(like_the_longest_edge_case), examples=EDGE_CASES)
    assert found is not None
    assert not found.shrunk
    assert found.measure.margin > 1
    (number,) = [
        n
        for n, batch in enumerate(all_of_it.batches)
        if any(map(like_the_longest_edge_case, batch.tokens))
    ]
    assert len(found.example.images) == len(all_of_it.batches[number].pixels)
    assert len(found.example.prompts) == len(all_of_it.batches[number].tokens)


@pytest.fixture(autouse=True, scope="module")
def _edge_case() -> Iterator[None]:
    (batch, *_) = [
        b
        for b in draw(Wanted(EDGE_CASES, False, 0, ""), inputs_of(SMALL)).batches
        if b.tokens[:, 76].any()
    ]
    row = batch.tokens[batch.tokens[:, 76] > 0][0]
    _EDGE_CASE.append(int(row[1]))
    yield
    _EDGE_CASE.clear()


_EDGE_CASE: list[int] = []


def test_when_the_time_is_up_the_smallest_so_far_is_given(
    look: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    found, candidate, _ = look(text=where(lambda row: int(row.argmax()) > 20))
    assert found is not None
    assert found.shrunk
    # One that failed in a batch, and then again as it will be kept. None that passed in one.
    assert candidate.rows.count(1) <= 4


def test_the_worst_input_has_the_largest_share_of_its_limit() -> None:
    one = Measure("image_features", 30.0, 10.0, 0.1, "one")
    other = Measure("logits_per_image", 40.0, 20.0, 0.2, "other")
    assert worst([other, one]) is one


def test_a_case_is_measured_by_rows_like_the_gate(model: eager.CLIP) -> None:
    drawn = draw(Wanted(EDGE_CASES, False, 0, "x.pt"), inputs_of(SMALL))
    reference = Reference(model, SMALL, CPU)
    trial = Trial.of(reference, drawn.batches, "float32", Stopwatch())
    candidate = Candidate(model, nowhere, where(lambda _: True), None)
    batch = drawn.batches[2]
    case = Case(
        candidate=candidate.outputs(batch.pixels, batch.tokens),
        reference=trial.reference[2],
        exact=trial.exact[2],
    )
    ruler = Ruler([case], LIMITS["float32"], trial.scale)
    probe = Probe(candidate, reference.standing(), ruler, Allclose())
    measures = [m for m in probe.measure(batch) if m.output == "text_features"]
    distance = max(
        ruler.distances([case]), key=lambda d: d.ratio if d.output == "text_features" else 0
    )
    assert max(m.ratio for m in measures) == pytest.approx(distance.ratio, rel=1e-6)
    assert probe.margins(case)["prompt"] == pytest.approx(distance.ratio / 8, rel=1e-6)
