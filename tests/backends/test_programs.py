"""Programs by themselves: at which batch sizes they run, and the weights that they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipcheck.backends.calling import Array
from clipcheck.backends.opened import Opened
from clipcheck.backends.programs import ProgramBackend, WeightsCompared, is_rounded
from clipcheck.backends.signature import Declared, Raw, blank
from clipcheck.errors import CheckpointError, RunError
from clipcheck.gates.integrity import Evidence
from clipcheck.gates.result import OUTPUTS
from tests.samples import MINUTE

DECLARED = [Declared("image", None, "float32"), Declared("text", None, "int64")]


def backend_of(
    run: Callable[[Sequence[Array]], Raw], declared: Sequence[Declared] = DECLARED, **how: Any
) -> ProgramBackend:
    return ProgramBackend(
        "export",
        Opened(declared, run, lambda _: None),
        architecture=MINUTE,
        path=Path(__file__),
        evidence=lambda _: Evidence(None),
        **how,
    )


def running_where(takes: Callable[[int, int], bool]) -> ProgramBackend:
    def run(arrays: Sequence[Array]) -> Raw:
        if not takes(*map(len, arrays)):
            raise ValueError("a size is wrong")
        return [(name, np.zeros(1)) for name in OUTPUTS]

    return backend_of(run)


def test_a_program_of_some_sizes_says_which_they_are() -> None:
    told = (
        "export: the program does not run with 2 and 1 images and texts; of the sizes that were "
        "tried it runs with 1 and 1, 2 and 2, 3 and 3, 4 and 4, 8 and 8"
    )
    backend = running_where(lambda images, texts: images == texts)
    with pytest.raises(CheckpointError) as caught:
        backend.outputs(*blank(MINUTE, 2, 1))
    assert caught.value.problem == told
    assert "dynamic_shapes=" in caught.value.remedy


def test_a_program_of_one_size_is_refused_unless_it_was_made_here_where_running_it_tells() -> None:
    side = MINUTE.image_resolution
    fixed = [
        Declared("image", (2, 3, side, side), "float32"),
        Declared("text", (3, MINUTE.context_length), "int64"),
    ]
    with pytest.raises(CheckpointError, match="exactly 2 images and 3 texts"):
        backend_of(lambda _: [], fixed)
    assert backend_of(lambda _: [], fixed, made_here=True).name == "export"


@pytest.mark.parametrize("takes", [lambda *_: False, lambda images, _: images != 5])
def test_what_fails_at_all_sizes_or_at_one_that_is_odd_is_no_matter_of_sizes(
    takes: Callable[[int, int], bool],
) -> None:
    with pytest.raises(RunError, match=r"running the program failed \(a size is wrong"):
        running_where(takes).outputs(*blank(MINUTE, 5, 5))


@pytest.mark.parametrize(("asked", "given"), [("float16", "float16"), ("float32", "float32")])
def test_outputs_that_are_cast_in_the_end_are_rounded_back(asked: str, given: str) -> None:
    raw = [(name, np.ones(1, dtype=np.float32)) for name in OUTPUTS]
    found = backend_of(lambda _: raw, dtype=asked).outputs(*blank(MINUTE, 1, 1))
    assert {str(array.dtype) for array in found.values()} == {given}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_weight_that_is_rounded_is_neither_compared_nor_differing(dtype: torch.dtype) -> None:
    weights = {"a": torch.tensor([0.1, 2e-8, -7e3]), "b": torch.tensor([1.5])}
    compared = WeightsCompared(weights)
    compared.receive("a", weights["a"].to(dtype))
    compared.receive("b", weights["b"])
    assert compared.evidence() == Evidence(1, differing={})


def test_what_a_converter_raises_is_rounded_and_what_is_off_is_not() -> None:
    tiny = torch.tensor([1e-8, -1e-8, 0.5])
    raised = torch.tensor([1e-7, -1e-7, 0.5]).half()
    assert is_rounded(raised, tiny)
    assert not is_rounded(torch.tensor([1e-8, -1e-8, 0.5005]).half(), tiny)
    assert not is_rounded(tiny, tiny)


def test_outputs_of_which_nothing_has_the_shape_are_absent_unless_the_program_was_made_here() -> (
    None
):
    def run(arrays: Sequence[Array]) -> Raw:
        images, texts = map(len, arrays)
        return [(None, np.zeros((images, texts))), (None, np.zeros((images, 64)))] * 2

    backend = backend_of(run)
    assert backend.absent == set()
    backend.outputs(*blank(MINUTE, 2, 3))
    # Of features of images there are two: which is meant is not told, and one is missing.
    assert backend.absent == {"text_features", "logits_per_text"}
    whole = backend_of(run, made_here=True)
    whole.outputs(*blank(MINUTE, 2, 3))
    assert whole.absent == set()
