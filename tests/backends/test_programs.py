"""Programs alone: the batch sizes that they run, and the weights that they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipcheck.backends.calling import Array
from clipcheck.backends.held import WeightsCompared, is_rounded
from clipcheck.backends.opened import Opened
from clipcheck.backends.programs import ProgramBackend
from clipcheck.backends.signature import Declared, Raw, blank
from clipcheck.errors import RunError
from clipcheck.families.registry import sizes_of
from clipcheck.gates.integrity import Evidence
from clipcheck.gates.result import OUTPUTS
from clipcheck.results import batches
from tests.backends.kept import batch as batch_of_rows
from tests.samples import MINUTE

DECLARED = [Declared("image", None, "float32"), Declared("text", None, "int64")]


def backend_of(
    run: Callable[[Sequence[Array]], Raw], declared: Sequence[Declared] = DECLARED, **how: Any
) -> ProgramBackend:
    return ProgramBackend(
        "export",
        Opened(declared=declared, run=run, weights=lambda _: None),
        sizes=sizes_of(MINUTE),
        path=Path(__file__),
        evidence=lambda *_: Evidence(weights=None),
        **how,
    )


def model(arrays: Sequence[Array]) -> Raw:
    """Return features that distinguish rows, and their products."""
    image, text = (np.float32(each.reshape(len(each), -1))[:, :8] for each in arrays)
    features = [np.tile(each, (1, 8)) for each in (image, text)]
    logits = features[0] @ features[1].T
    return list(zip(OUTPUTS, (*features, logits, logits.T), strict=True))


def running_where(takes: Callable[[int, int], bool]) -> ProgramBackend:
    def run(arrays: Sequence[Array]) -> Raw:
        if not takes(*map(len, arrays)):
            raise ValueError("a size is wrong")
        return model(arrays)

    return backend_of(run)


def fixed(images: int | None, texts: int | None) -> list[Declared]:
    side = MINUTE.image_resolution
    return [
        Declared("image", (images, 3, side, side), "float32"),
        Declared("text", (texts, MINUTE.context_length), "int64"),
    ]


@pytest.mark.parametrize("batch", [(2, 3), (1, 1), (None, 3), (4, None)])
def test_rows_are_split_into_the_fixed_batch_size_of_a_program(
    batch: tuple[int | None, int | None],
) -> None:
    given: list[tuple[int, int]] = []

    def run(arrays: Sequence[Array]) -> Raw:
        given.append((len(arrays[0]), len(arrays[1])))
        return model(arrays)

    backend = backend_of(run, fixed(*batch))
    inputs = batch_of_rows(MINUTE, 5, 7)
    found = backend.outputs(*inputs)
    assert all(
        wanted in (None, each) for sizes in given for each, wanted in zip(sizes, batch, strict=True)
    )
    wanted = dict(model([inputs[0], inputs[1]]))
    assert list(found) == list(OUTPUTS)
    for name, array in found.items():
        np.testing.assert_allclose(array, wanted[name], rtol=0, atol=1e-2, err_msg=name)
    np.testing.assert_array_equal(backend.encode_image(inputs[0]), found["image_features"])
    assert backend.batches == (batch,)


@pytest.mark.parametrize(
    ("takes", "told"),
    [
        (lambda *size: size == (4, 4), "runs batches of 4 images and 4 texts only"),
        (lambda *size: size == (1, 2), "runs batches of 1 image and 2 texts only"),
        (lambda images, _: images == 2, "runs batches of 2 images only"),
        (
            lambda images, texts: images == texts < 4,
            "does not run any number of images and texts; of those that were tried it runs "
            "1 image and 1 text, 2 images and 2 texts, 3 images and 3 texts",
        ),
    ],
)
def test_undeclared_batch_sizes_are_found_by_trying(
    takes: Callable[[int, int], bool], told: str
) -> None:
    backend = running_where(takes)
    assert len(backend.outputs(*batch_of_rows(MINUTE, 5, 7))["logits_per_text"]) == 7
    assert batches.told(backend.batches) == told


def test_our_own_program_with_a_fixed_batch_gets_no_split_batches() -> None:
    backend = backend_of(model, fixed(2, 3), made_here=True)
    assert len(backend.outputs(*batch_of_rows(MINUTE, 5, 7))["image_features"]) == 5
    assert backend.batches == ()


@pytest.mark.parametrize("takes", [lambda *_: False, lambda images, _: images != 5])
def test_a_failure_at_every_size_is_not_reported_as_a_fixed_batch(
    takes: Callable[[int, int], bool],
) -> None:
    with pytest.raises(RunError, match=r"running the program failed \(a size is wrong"):
        running_where(takes).outputs(*blank(MINUTE, 5, 5))


@pytest.mark.parametrize(("asked", "given"), [("float16", "float16"), ("float32", "float32")])
def test_outputs_cast_at_the_end_are_rounded_back(asked: str, given: str) -> None:
    raw = [(name, np.ones(1, dtype=np.float32)) for name in OUTPUTS]
    found = backend_of(lambda _: raw, dtype=asked).outputs(*blank(MINUTE, 1, 1))
    assert {str(array.dtype) for array in found.values()} == {given}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_weight_that_is_rounded_is_neither_compared_nor_differing(dtype: torch.dtype) -> None:
    weights = {"a": torch.tensor([0.1, 2e-8, -7e3]), "b": torch.tensor([1.5])}
    compared = WeightsCompared(weights)
    compared.receive("a", weights["a"].to(dtype))
    compared.receive("b", weights["b"])
    assert compared.compared() == 1
    assert not compared.differing()
    assert not compared.lacking()


def test_tiny_weights_raised_by_a_converter_count_as_rounded_and_wrong_ones_do_not() -> None:
    tiny = torch.tensor([1e-8, -1e-8, 0.5])
    raised = torch.tensor([1e-7, -1e-7, 0.5]).half()
    assert is_rounded(raised, tiny)
    assert is_rounded(raised, tiny.half())
    assert not is_rounded(torch.tensor([1e-8, -1e-8, 0.5005]).half(), tiny)
    assert not is_rounded(tiny, tiny)


def test_missing_outputs_are_allowed_only_in_programs_of_others() -> None:
    def run(arrays: Sequence[Array]) -> Raw:
        return [(None, each) for _, each in model(arrays)[1:3]]

    backend = backend_of(run)
    assert backend.absent == set()
    backend.outputs(*blank(MINUTE, 2, 3))
    assert backend.absent == {"image_features", "logits_per_text"}
    whole = backend_of(run, made_here=True)
    whole.outputs(*blank(MINUTE, 2, 3))
    assert whole.absent == set()
