from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clipcheck.gates.result import LOGITS, OUTPUTS, Case, GateResult, unusable
from tests.gates import measured

ROWS = {
    "image": ("noise", "black", "white"),
    "prompt": ("3 tokens", "77 tokens"),
}


def test_a_place_is_named_by_its_rows_or_its_component() -> None:
    case = replace(measured(), rows=ROWS, first_rows={"image": 0, "prompt": 0})
    assert case.where("logits_per_image", [1, 0]) == "image 1 (black), prompt 0 (3 tokens)"
    assert case.where("logits_per_text", [1, 0]) == "prompt 1 (77 tokens), image 0 (noise)"
    assert case.where("image_features", [2, 7]) == "image 2 (white), component 7"
    assert case.where("text_features", [1]) == "prompt 1 (77 tokens)"


def test_rows_are_counted_through_all_batches() -> None:
    case = replace(measured(), rows=ROWS, first_rows={"image": 16, "prompt": 4})
    assert case.where("logits_per_image", [2, 1]) == "image 18 (white), prompt 5 (77 tokens)"
    assert case.where("image_features", [1, 3]) == "image 17 (black), component 3"


def test_rows_without_a_description_have_only_a_number() -> None:
    assert measured().where("logits_per_text", [1, 2]) == "prompt 1, image 2"


def test_every_output_has_rows_of_images_or_of_prompts() -> None:
    assert list(OUTPUTS) == [
        "image_features",
        "text_features",
        "logits_per_image",
        "logits_per_text",
    ]
    assert {first for first, _ in OUTPUTS.values()} == {"image", "prompt"}
    assert set(LOGITS) < set(OUTPUTS)


def test_a_result_measures_nothing_unless_it_says_so() -> None:
    found = GateResult(name="integrity", passed=True, message="fine")
    assert found.figures == {}
    assert found.margin == 0.0


def changed(case: Case, side: str, name: str, array: np.ndarray | None) -> Case:
    outputs = dict(getattr(case, side))
    if array is None:
        del outputs[name]
    else:
        outputs[name] = array
    return replace(case, **{side: outputs})


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("side", ["candidate", "reference"])
@pytest.mark.parametrize("number", [0, 1])
def test_an_output_that_is_missing_or_of_another_shape_cannot_be_compared(
    name: str, side: str, number: int
) -> None:
    sound = [measured(), measured()]
    assert unusable(sound) == ""
    for array, problem in ((None, "is missing"), (np.zeros((1, 1)), "has different shapes")):
        cases = list(sound)
        cases[number] = changed(cases[number], side, name, array)
        assert unusable(cases) == f"{name} {problem}, so nothing can be compared"


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("shape", [(0, 2), (3, 0)])
def test_an_output_without_elements_cannot_be_compared(name: str, shape: tuple[int, int]) -> None:
    case = changed(measured(), "candidate", name, np.zeros(shape))
    case = changed(case, "reference", name, np.zeros(shape))
    assert unusable([case]) == f"{name} is empty, so nothing can be compared"


def test_no_cases_cannot_be_compared() -> None:
    assert unusable([]) == "nothing was run, so nothing can be compared"


def test_only_the_outputs_that_a_gate_looks_at_have_to_be_there() -> None:
    case = changed(measured(), "candidate", "image_features", None)
    assert unusable([case], LOGITS) == ""
    case = changed(measured(), "candidate", "logits_per_text", None)
    assert unusable([case], LOGITS) != ""
