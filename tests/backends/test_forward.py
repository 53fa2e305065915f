from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from clipcheck.backends.forward import ByName, Sizes, UntoldError, order_of, outputs_of
from clipcheck.errors import RunError
from clipcheck.families.base import DualEncoder
from clipcheck.gates.result import FEATURES, LOGITS, OUTPUTS
from clipcheck.models.facts import Facts

RAW_IMAGES, RAW_TEXTS = torch.arange(8.0).reshape(2, 4), torch.arange(12.0).flip(0).reshape(3, 4)
IMAGES, TEXTS = (torch.nn.functional.normalize(each, dim=1) for each in (RAW_IMAGES, RAW_TEXTS))
SCALE = torch.tensor(100.0)
LOGITS_PER_IMAGE = 100 * IMAGES @ TEXTS.T
LOGITS_PER_TEXT = LOGITS_PER_IMAGE.T
SIZES = Sizes(2, 3, 4)
SQUARE = Sizes(3, 3, 4)


@pytest.mark.parametrize(
    "given",
    [
        (LOGITS_PER_IMAGE, LOGITS_PER_TEXT),
        (LOGITS_PER_TEXT, LOGITS_PER_IMAGE),
        {"logits_per_text": LOGITS_PER_TEXT, "logits_per_image": LOGITS_PER_IMAGE},
        (IMAGES, TEXTS, SCALE),
        [IMAGES, TEXTS, SCALE.reshape(1)],
        {"text_features": TEXTS, "image_features": IMAGES, "logit_scale": SCALE},
        {
            "logits_per_text": LOGITS_PER_TEXT,
            "logits_per_image": LOGITS_PER_IMAGE,
            "image_embeds": 1,
        },
    ],
    ids=["pair", "turned", "named", "features", "shape-1", "named-features", "transformers"],
)
def test_logits_are_returned_or_computed_from_features(given: Any) -> None:
    found = outputs_of(given, SIZES)
    assert list(found) == list(LOGITS)
    torch.testing.assert_close(found["logits_per_image"], LOGITS_PER_IMAGE)
    torch.testing.assert_close(found["logits_per_text"], LOGITS_PER_TEXT)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (LOGITS_PER_IMAGE, ["logits_per_image"]),
        ((LOGITS_PER_IMAGE,), ["logits_per_image"]),
        (LOGITS_PER_TEXT, ["logits_per_text"]),
        ({"logits_per_text": LOGITS_PER_TEXT}, ["logits_per_text"]),
        (RAW_IMAGES, ["image_features"]),
        ((RAW_IMAGES, RAW_TEXTS), ["image_features", "text_features"]),
        ((RAW_TEXTS, RAW_IMAGES), ["image_features", "text_features"]),
        ({"text_features": RAW_TEXTS}, ["text_features"]),
        ((LOGITS_PER_IMAGE, LOGITS_PER_TEXT, RAW_TEXTS, RAW_IMAGES), list(OUTPUTS)),
        # Normalised ones are another thing than the reference's.
        ((LOGITS_PER_IMAGE, LOGITS_PER_TEXT, TEXTS, RAW_IMAGES), ["image_features", *LOGITS]),
    ],
)
def test_outputs_may_be_incomplete(given: Any, names: list[str]) -> None:
    found = outputs_of(given, SIZES)
    assert list(found) == names
    for name, tensor in found.items():
        assert tuple(tensor.shape) == SIZES.shapes[name]


def test_an_earlier_call_decides_if_shapes_are_ambiguous() -> None:
    logits = torch.rand(3, 3)
    assert order_of(LOGITS_PER_TEXT, SIZES) == ("logits_per_text",)
    assert order_of(logits, SQUARE) == ()
    assert list(outputs_of(logits, SQUARE)) == ["logits_per_image"]
    assert list(outputs_of(logits, SQUARE, ("logits_per_text",))) == ["logits_per_text"]
    # Of features the width tells.
    assert list(outputs_of((RAW_TEXTS, RAW_TEXTS), SQUARE)) == ["image_features", "text_features"]


def test_outputs_of_wrong_shape_are_judged_as_logits_and_fail() -> None:
    for given in ((LOGITS_PER_IMAGE, LOGITS_PER_IMAGE), (torch.rand(7), torch.rand(2))):
        assert order_of(given, SIZES) == ()
        assert list(outputs_of(given, SIZES)) == list(LOGITS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((IMAGES, TEXTS, IMAGES), r"a tuple of a tensor of shape \[2, 4\], a tensor of shape"),
        ((IMAGES, TEXTS[:, :2], SCALE), r"\[3, 2\]"),
        ((IMAGES, TEXTS), "forward gave normalised features and no scale, expected logits per"),
        ({"image_features": IMAGES, "text_features": TEXTS}, "normalised features and no scale"),
        (
            LOGITS_PER_IMAGE.softmax(-1),
            "forward gave probabilities, which do not tell the logits",
        ),
        ({"logits_per_text": LOGITS_PER_TEXT.softmax(-1)}, "gave probabilities"),
        ((LOGITS_PER_IMAGE, 3), "a tuple of .*, int, expected"),
        ((), "a tuple of nothing"),
        ({}, "a dict of nothing"),
        (None, "forward gave NoneType, expected logits per image and per text"),
        ("text", "forward gave str"),
    ],
)
def test_anything_else_is_described(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        outputs_of(given, SIZES)


# --------------------------------------------------------------------------- archives


class Fake:
    """An archive whose methods return the given outputs."""

    def __init__(self, takes: int = 2, **used: Sequence[str]) -> None:
        keys = {method: frozenset(each) for method, each in used.items()}
        names = tuple(f"x{number}" for number in range(takes))
        self.facts = Facts(scripted=True, used=keys, forward_takes=names)
        self.gives: dict[str, object] = {}
        self.calls: list[tuple[str, int]] = []

    def call(self, method: str, *inputs: Tensor) -> object:
        self.calls.append((method, len(inputs)))
        self.given = inputs
        return self.gives[method]

    def call_with(self, _: object, method: str, *inputs: Tensor) -> object:
        return self.call(method, *inputs)

    def call_in_form(
        self, _: str, method: str, inputs: Sequence[Tensor], after: Sequence[Tensor]
    ) -> tuple[object, str]:
        self.calls.append((method, len(after)))
        return self.call(method, *inputs), "wrong"

    def listen(self, method: str, inputs: Sequence[Tensor], *_: object) -> object:
        return self.call(method, *inputs)


PIXELS, TOKENS = torch.zeros(2, 3, 8, 8), torch.zeros(3, 5)


def by_name(runner: Any) -> ByName:
    return ByName(runner, 4, DualEncoder(8, 5))


def test_a_logit_bias_is_added_to_logits_computed_from_features() -> None:
    given = (IMAGES, TEXTS, SCALE, torch.tensor(-10.0))
    named = dict(zip((*FEATURES, "logit_scale", "logit_bias"), given, strict=True))
    plain = outputs_of(given[:3], SIZES)
    for found in (outputs_of(given, SIZES), outputs_of(named, SIZES)):
        assert all(torch.equal(found[name], plain[name] - 10) for name in LOGITS)


def test_inputs_are_passed_by_the_argument_names_of_forward() -> None:
    archive = Fake(2, forward=["visual.proj", "text_projection"])
    archive.facts = replace(archive.facts, forward_takes=("text", "image"))
    archive.gives["forward"] = (LOGITS_PER_IMAGE, LOGITS_PER_TEXT)
    found = by_name(archive)
    found.call("forward", PIXELS, TOKENS)
    assert [list(each.shape) for each in archive.given] == [[3, 5], [2, 3, 8, 8]]


def test_outputs_of_the_towers_of_transformers_are_ignored() -> None:
    hidden = torch.zeros(3, 5, 4)
    given = (LOGITS_PER_IMAGE, LOGITS_PER_TEXT, (hidden, hidden[:, 0]), (hidden,))
    assert list(outputs_of(given, SIZES)) == [*LOGITS]
    assert list(outputs_of((hidden, RAW_TEXTS), SIZES, ("text_features",))) == ["text_features"]


def test_a_forward_that_is_an_encoder_is_called_that() -> None:
    for key, encoder, rows, features in (
        ("visual.proj", "encode_image", PIXELS, RAW_IMAGES),
        ("text_projection", "encode_text", TOKENS, RAW_TEXTS),
    ):
        archive = Fake(1, forward=[key])
        archive.gives["forward"] = features
        found = by_name(archive)
        assert found.facts.used == {encoder: {key}}
        assert found.facts.methods == (encoder,)
        assert found.call(encoder, rows) is features
        assert found.call_with({}, encoder, rows) is features
        assert found.listen(encoder, [rows], (), lambda *_: None) is features
        assert found.call_in_form("strided", encoder, [rows], [rows]) == (features, "wrong")
        assert archive.calls == [("forward", 1)] * 5


def test_a_forward_beside_an_encoder_gets_the_inputs_that_it_takes() -> None:
    archive = Fake(1, forward=["text_projection"], encode_text=["text_projection"])
    archive.gives = {"forward": RAW_TEXTS, "encode_text": "its own"}
    found = by_name(archive)
    assert found.facts.methods == ("encode_text", "forward")
    assert found.call("encode_text", TOKENS) == "its own"
    given = found.call("forward", PIXELS, TOKENS)
    assert isinstance(given, dict)
    assert list(given) == ["text_features"]
    assert found.gives == ("text_features",)
    assert archive.calls == [("encode_text", 1), ("forward", 1)]


def test_the_first_call_decides_the_kind_of_outputs() -> None:
    archive = Fake(forward=["visual.proj", "text_projection"])
    found = by_name(archive)
    archive.gives["forward"] = LOGITS_PER_TEXT
    found.call("forward", PIXELS, TOKENS)
    archive.gives["forward"] = square = torch.rand(3, 3)
    given: Any = found.call("forward", PIXELS[[0, 0, 0]], TOKENS)
    assert given["logits_per_text"] is square
    archive.gives["forward"] = "text"
    with pytest.raises(RunError) as caught:
        found.call("forward", PIXELS, TOKENS)
    # It is known what it gives, so that this is a failure.
    assert not isinstance(caught.value, UntoldError)
    assert (found.gives, found.untold) == (("logits_per_text",), "")


@pytest.mark.parametrize(
    ("takes", "keys", "problem"),
    [
        (2, ["visual.proj", "x"], "jit: forward gave str, expected logits per image and per text"),
        (3, ["visual.proj", "x"], "jit: forward takes 3 tensors, expected pixels and ids"),
        (1, ["visual.proj", "x"], "jit: forward takes 1 tensor, and is no encoder, expected"),
        (1, [], "jit: forward takes 1 tensor, and is no encoder, expected pixels and ids"),
    ],
)
def test_an_unrecognised_forward_is_not_used(takes: int, keys: list[str], problem: str) -> None:
    archive = Fake(takes, forward=keys, encode_image=["visual.proj"])
    archive.gives["forward"] = "text"
    found = by_name(archive)
    with pytest.raises(UntoldError, match=problem):
        found.call("forward", PIXELS, TOKENS)
    assert found.untold.startswith(problem)
    assert found.facts.methods == ("encode_image",)


def test_other_attributes_of_an_archive_are_unchanged() -> None:
    archive = Fake(forward=["x"], other=["y"])
    known = replace(archive.facts, input_resolution=8, context_length=5)
    archive.facts = known
    assert by_name(archive).facts == replace(known, used={"forward": {"x"}})
