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
def test_a_form_has_the_same_numbers_and_no_memory_of_what_it_is_made_of(
    form: str, given: Tensor
) -> None:
    made = FORMS[form](given)
    half = "16" in form and given is PIXELS
    torch.testing.assert_close(
        made.detach().double(), given.double(), atol=0.05 if half else 0, rtol=0.01 if half else 0
    )
    assert made.untyped_storage().data_ptr() != given.untyped_storage().data_ptr()


def test_each_form_is_what_it_is_called() -> None:
    assert FORMS["as int64"](IDS).dtype == torch.int64
    assert not FORMS["strided"](PIXELS).is_contiguous()
    assert FORMS["channels last"](PIXELS).is_contiguous(memory_format=torch.channels_last)
    assert FORMS["with gradients"](PIXELS).requires_grad
    assert FORMS["as float16"](PIXELS).dtype == torch.float16


def test_gradients_are_on_in_the_one_form_that_has_them() -> None:
    seen = {}
    for form in FORMS:
        call_in_form(lambda x, form=form: seen.setdefault(form, torch.is_grad_enabled()) or x,
                     form, [PIXELS])  # fmt: skip
    assert [form for form, enabled in seen.items() if enabled] == ["with gradients"]


def test_what_is_right_is_given_and_nothing_is_wrong() -> None:
    found, wrong = call_in_form(lambda x: (x * 2, x + 1), "strided", [PIXELS], [PIXELS + 1])
    assert wrong == ""
    assert isinstance(found, tuple)
    assert torch.equal(found[0], PIXELS * 2)


def test_a_method_that_changes_its_input_is_told_of() -> None:
    given = PIXELS.clone()
    _, wrong = call_in_form(lambda x: x.mul_(2), "strided", [given])
    assert wrong == "changes what it is given"
    assert torch.equal(given, PIXELS)


def test_a_method_that_gives_one_buffer_each_time_is_told_of_and_the_first_is_kept() -> None:
    buffer = torch.zeros_like(PIXELS)
    found, wrong = call_in_form(
        lambda x: {"features": buffer.copy_(x)}, "strided", [PIXELS], [PIXELS + 1]
    )
    assert wrong == "writes over what it gave before"
    assert isinstance(found, dict)
    assert torch.equal(found["features"], PIXELS)


def test_numbers_that_are_none_are_the_same() -> None:
    nothing = torch.full((2, 2), float("nan"))
    _, wrong = call_in_form(lambda x: x, "strided", [nothing])
    assert wrong == ""
