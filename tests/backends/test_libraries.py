"""How the weights that a library's model holds are compared with the file's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clipcheck.backends.libraries import evidence_of
from clipcheck.checkpoints.architecture import BUFFERS
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from tests.samples import MINUTE, Weights, minute_weights

CONV = "visual.conv1.weight"
SCALE = "logit_scale"


def checkpoint(weights: Weights | None = None) -> Checkpoint:
    tensors = minute_weights() if weights is None else weights
    return Checkpoint(path=Path("weights"), format=Format.STATE_DICT, model=MINUTE, tensors=tensors)


def held(dtype: torch.dtype = torch.float32) -> Weights:
    return {
        key: t.to(dtype if t.dtype == torch.float16 else torch.float32)
        for key, t in minute_weights().items()
        if key not in BUFFERS
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("all_of_it", [False, True], ids=["mixed", "pure"])
def test_weights_cast_to_the_dtype_equal_those_of_the_file(dtype: str, all_of_it: bool) -> None:
    wanted = getattr(torch, dtype)
    weights = {key: t.to(wanted) for key, t in held().items()} if all_of_it else held(wanted)
    found = evidence_of(checkpoint(), weights, dtype, ["a doubt"])
    assert (found.weights, list(found.doubts)) == (len(weights), ["a doubt"])
    assert dict(found.differing) == {}


DIFFERENT: dict[str, tuple[str, Callable[[Weights], Any], str]] = {
    "a value": (SCALE, lambda w: w[SCALE].add_(1e-6), "the model has other bits than the file"),
    "the sign of a zero": (
        CONV,
        lambda w: w[CONV].view(-1)[0].neg_(),
        "the model has other bits than the file",
    ),
    "a missing weight": (SCALE, lambda w: w.pop(SCALE), "the model does not have it"),
    "a shape": (
        CONV,
        lambda w: w.update({CONV: w[CONV][:1]}),
        "the model has the shape [1, 3, 8, 8], the file [64, 3, 8, 8]",
    ),
    "a dtype": (SCALE, lambda w: w.update({SCALE: w[SCALE].half()}), "the model has it in float16"),
    "a weight that the file lacks": ("visual.proj", lambda w: None, "the file does not have it"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_weight_that_differs_is_named_with_the_difference(case: str) -> None:
    key, change, reason = DIFFERENT[case]
    file = minute_weights()
    if case == "a weight that the file lacks":
        del file[key]
    if case == "the sign of a zero":
        file[CONV].view(-1)[0] = 0.0
    weights = held()
    if case == "the sign of a zero":
        weights[CONV].view(-1)[0] = 0.0
    change(weights)
    assert dict(evidence_of(checkpoint(file), weights, "float32").differing) == {key: reason}


def test_a_rounded_weight_is_distinguished_from_a_wrong_one() -> None:
    file = {key: t.float() * 1.0001 for key, t in minute_weights().items()}
    weights = {key: t.half().float() for key, t in file.items() if key not in BUFFERS}
    found = evidence_of(checkpoint(file), weights, "float32").differing
    assert set(found.values()) == {"the library rounded it from float32 to float16"}
    assert CONV in found


def test_a_logit_scale_may_have_a_dimension_on_either_side() -> None:
    for file, model in (((1,), ()), ((), (1,))):
        stored, weights = minute_weights(), held()
        stored[SCALE] = stored[SCALE].reshape(file)
        weights[SCALE] = weights[SCALE].reshape(model)
        assert dict(evidence_of(checkpoint(stored), weights, "float32").differing) == {}


def test_a_dtype_other_than_requested_gets_a_warning() -> None:
    found = evidence_of(checkpoint(), held(), "float16")
    assert list(found.doubts) == ["it computes in float32 in place of float16"]
