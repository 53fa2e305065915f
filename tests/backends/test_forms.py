"""The same numbers in other forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clipcheck.backends.forms import FORMS, call_in_form

PIXELS = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(12, dtype=torch.int32).reshape(2, 6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("given", [PIXELS, IDS], ids=["pixels", "ids"])
def test_a_form_has_the_same_numbers_and_shares_no_memory(form: str, given: Tensor) -> None:
    made = FORMS[form](given)
    half = "16" in form and given is PIXELS
    torch.testing.assert_close(
        made.detach().double(), given.double(), atol=0.05 if half else 0, rtol=0.01 if half else 0
    )
    assert made.untyped_storage().data_ptr() != given.untyped_storage().data_ptr()


def test_each_form_matches_its_name() -> None:
    assert FORMS["as int64"](IDS).dtype == torch.int64
    assert not FORMS["strided"](PIXELS).is_contiguous()
    assert FORMS["channels last"](PIXELS).is_contiguous(memory_format=torch.channels_last)
    assert FORMS["with gradients"](PIXELS).requires_grad
    assert FORMS["as float16"](PIXELS).dtype == torch.float16


def test_only_the_gradient_form_requires_gradients() -> None:
    seen = {}
    for form in FORMS:
        call_in_form(lambda x, form=form: seen.setdefault(form, torch.is_grad_enabled()) or x,
                     form, [PIXELS])  # fmt: skip
    assert [form for form, enabled in seen.items() if enabled] == ["with gradients"]


def test_a_sound_method_has_no_faults() -> None:
    found, wrong = call_in_form(lambda x: (x * 2, x + 1), "strided", [PIXELS], [PIXELS + 1])
    assert wrong == ""
    assert isinstance(found, tuple)
    assert torch.equal(found[0], PIXELS * 2)


def test_a_method_that_changes_its_input_is_reported() -> None:
    given = PIXELS.clone()
    _, wrong = call_in_form(lambda x: x.mul_(2), "strided", [given])
    assert wrong == "changes what it is given"
    assert torch.equal(given, PIXELS)


def test_a_method_that_reuses_its_output_buffer_is_reported() -> None:
    buffer = torch.zeros_like(PIXELS)
    found, wrong = call_in_form(
        lambda x: {"features": buffer.copy_(x)}, "strided", [PIXELS], [PIXELS + 1]
    )
    assert wrong == "writes over what it gave before"
    assert isinstance(found, dict)
    assert torch.equal(found["features"], PIXELS)


def test_nan_equals_nan() -> None:
    nothing = torch.full((2, 2), float("nan"))
    _, wrong = call_in_form(lambda x: x, "strided", [nothing])
    assert wrong == ""
