from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from clipcheck.backends.modules import ModuleBackend
from clipcheck.errors import RunError
from clipcheck.gates.result import OUTPUTS

CPU = torch.device("cpu")
PIXELS = np.ones((2, 3, 4, 4), dtype=np.float32)
TOKENS = np.ones((3, 5), dtype=np.int32)


class Model(torch.nn.Module):
    """Returns tensors that show which method they come from."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return torch.full((len(image), 7), 1.0, dtype=self.dtype)

    def encode_text(self, text: torch.Tensor) -> torch.Tensor:
        return torch.full((len(text), 7), 2.0, dtype=self.dtype)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.full((len(image), len(text)), 3.0, dtype=self.dtype)
        return logits, logits.t() + 1


def test_all_four_outputs_come_back_by_name() -> None:
    found = ModuleBackend("eager", Model(), CPU).outputs(PIXELS, TOKENS)
    assert found.keys() == OUTPUTS.keys()
    shapes = {name: array.shape for name, array in found.items()}
    assert shapes == {
        "image_features": (2, 7),
        "text_features": (3, 7),
        "logits_per_image": (2, 3),
        "logits_per_text": (3, 2),
    }
    assert [float(array.flat[0]) for array in found.values()] == [1.0, 2.0, 3.0, 4.0]


def test_a_method_that_overwrites_its_inputs_does_not_change_the_callers_arrays() -> None:
    class Writing(Model):
        def encode_image(self, image: torch.Tensor) -> torch.Tensor:
            return super().encode_image(image.mul_(2))

        def encode_text(self, text: torch.Tensor) -> torch.Tensor:
            return super().encode_text(text.mul_(2))

    pixels, tokens = PIXELS.copy(), TOKENS.copy()
    ModuleBackend("eager", Writing(), CPU).outputs(pixels, tokens)
    assert np.array_equal(pixels, PIXELS)
    assert np.array_equal(tokens, TOKENS)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, np.float32),
        (torch.float16, np.float16),
        (torch.float64, np.float64),
        (torch.bfloat16, np.float32),
    ],
)
def test_outputs_keep_their_dtype_where_numpy_has_it(
    dtype: torch.dtype, expected: type[np.floating]
) -> None:
    found = ModuleBackend("eager", Model(dtype), CPU).outputs(PIXELS, TOKENS)
    assert {array.dtype for array in found.values()} == {np.dtype(expected)}


def test_no_gradients_are_recorded() -> None:
    model = Model()
    seen: list[bool] = []
    forward = model.forward

    def watched(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(torch.is_inference_mode_enabled())
        return forward(*inputs)

    model.forward = watched  # type: ignore[method-assign]
    ModuleBackend("eager", model, CPU).outputs(PIXELS, TOKENS)
    assert seen == [True]


def raising(*_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("The following operation failed:\nTraceback\n  sizes do not fit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m, "encode_text", raising), "encode_text failed (sizes do not fit)"),
        (lambda m: setattr(m, "encode_text", None), "has no method encode_text"),
        (lambda m: setattr(m, "forward", lambda i, t: i), "forward gave Tensor"),
        (lambda m: setattr(m, "forward", lambda i, t: (i,)), "expected two tensors"),
    ],
)
def test_a_model_that_cannot_be_run_is_an_error_that_names_the_backend(
    change: Callable[[Model], None], message: str
) -> None:
    model = Model()
    change(model)
    with pytest.raises(RunError) as caught:
        ModuleBackend("jit", model, CPU).outputs(PIXELS, TOKENS)
    assert str(caught.value).startswith("jit: ")
    assert message in str(caught.value)
