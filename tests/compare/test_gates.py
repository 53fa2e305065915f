from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from clipcheck.compare.gates import (
    OUTPUTS,
    Evidence,
    GateResult,
    Outputs,
    contract,
    integrity,
    worst,
)
from clipcheck.compare.tolerances import Contract

SOUND = Evidence(
    candidate_is_script=True,
    reference_is_script=False,
    weights=305,
    differing={},
    buffers={"input_resolution": (224, 224), "context_length": (None, 77)},
)


def outputs(rows: int = 3, prompts: int = 2) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((rows, prompts)).astype(np.float32)
    return {
        "image_features": generator.standard_normal((rows, 4)).astype(np.float32),
        "text_features": generator.standard_normal((prompts, 4)).astype(np.float32),
        "logits_per_image": logits,
        "logits_per_text": logits.T.copy(),
    }


def test_integrity_passes_for_two_kinds_with_the_same_weights_and_all_outputs() -> None:
    found = integrity(outputs(), outputs(), SOUND)
    assert found.passed
    assert found.name == "integrity"
    assert found.message == (
        "305 weights the same bit for bit in both readings of the file; "
        "all 4 outputs there, finite, of the same shape and dtype"
    )
    assert found.figures == {"weights": {"compared": 305, "differing": 0}}


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        (replace(SOUND, reference_is_script=True), "both sides are TorchScript modules"),
        (replace(SOUND, candidate_is_script=False), "both sides are eager models"),
        (
            replace(SOUND, candidate_is_script=False, reference_is_script=True),
            "the candidate is an eager model",
        ),
        (replace(SOUND, weights=0), "no weights were compared"),
        (
            replace(SOUND, differing={"visual.proj": "has other bits"}),
            "visual.proj: has other bits",
        ),
        (
            replace(SOUND, differing={f"w{i}": "differs" for i in range(5)}),
            "2 more weights differ",
        ),
        (
            replace(SOUND, buffers={"input_resolution": (288, 224)}),
            "input_resolution is 288, and the weights imply 224",
        ),
    ],
)
def test_integrity_fails_when_it_is_no_comparison(evidence: Evidence, message: str) -> None:
    found = integrity(outputs(), outputs(), evidence)
    assert not found.passed
    assert message in found.message


def test_integrity_names_the_first_three_weights_and_counts_the_others() -> None:
    evidence = replace(SOUND, differing={f"w{i}": "differs" for i in range(5)})
    assert integrity(outputs(), outputs(), evidence).message == (
        "w0: differs; w1: differs; w2: differs; 2 more weights differ"
    )


def without(name: str) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda outputs: outputs.__delitem__(name)


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict], None]:
    return lambda outputs: outputs.update({name: change(outputs[name])})


def with_nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[1, 0] = np.nan
    return array


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("side", ["candidate", "reference"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, "is missing from the {side}"),
        (lambda name: changed(name, lambda a: a[:1]), "has shape"),
        (lambda name: changed(name, lambda a: a.astype(np.float16)), "has dtype"),
        (lambda name: changed(name, with_nan), "of the {side} is not finite in row 1"),
    ],
    ids=["missing", "shape", "dtype", "nan"],
)
def test_integrity_fails_for_every_output_that_is_not_as_it_should_be(
    name: str, side: str, change: Callable, message: str
) -> None:
    sides = {"candidate": outputs(), "reference": outputs()}
    change(name)(sides[side])
    found = integrity(sides["candidate"], sides["reference"], SOUND)
    assert not found.passed
    assert name in found.message
    assert message.format(side=side) in found.message


def test_integrity_fails_for_empty_outputs_although_they_are_equal() -> None:
    empty = {name: array[:0] for name, array in outputs().items()}
    found = integrity(empty, empty, SOUND)
    assert not found.passed
    assert "logits_per_image is empty" in found.message


def judged(candidate: Outputs, reference: Outputs, limits: Contract | None = None) -> GateResult:
    return contract(candidate, reference, limits or Contract(), {"image": 16, "prompt": 17})


def test_contract_passes_for_equal_logits_and_tells_the_greatest_difference() -> None:
    found = judged(outputs(), outputs())
    assert found.passed
    assert found.message == (
        "probabilities agree within atol 0.01 and rtol 0.1; greatest difference 0"
    )


def test_the_message_names_output_rows_values_and_what_is_allowed_and_why() -> None:
    reference = outputs()
    reference["logits_per_image"] = np.log(np.array([[0.6, 0.4]] * 3))
    candidate = {**reference, "logits_per_image": np.log(np.array([[0.6, 0.4]] * 2 + [[0.9, 0.1]]))}
    found = judged(candidate, reference)
    assert not found.passed
    assert found.message == (
        "softmax(logits_per_image) differs in 2 of 6 probabilities; worst at image 18, prompt 18: "
        "candidate 0.1, reference 0.4, 0.3 apart; up to 0.05 allowed "
        "(atol 0.01 + rtol 0.1 x reference)"
    )
    assert found.figures["logits_per_image"]["mismatched"] == 2
    assert found.figures["logits_per_image"]["max_abs"] == pytest.approx(0.3)
    assert found.figures["logits_per_text"]["mismatched"] == 0


@pytest.mark.parametrize("name", ["logits_per_image", "logits_per_text"])
def test_contract_is_numpys_allclose_on_both_probabilities(name: str) -> None:
    reference = outputs()
    # On two equal probabilities: what moves one of them by 0.0599 is allowed, 0.0601 is not.
    even = np.zeros_like(reference[name])
    for shift, passes in ((0.0599, True), (0.0601, False)):
        moved = even.copy()
        share = 1 / moved.shape[1]
        allowed = 0.01 + 0.1 * share
        moved[0, 0] = _logit_for(share + shift / 0.06 * allowed, moved.shape[1])
        found = judged({**reference, name: moved}, {**reference, name: even})
        assert found.passed is passes


def _logit_for(probability: float, choices: int) -> float:
    """The logit that gets this probability beside ``choices - 1`` zeros."""
    return float(np.log(probability * (choices - 1) / (1 - probability)))


def test_the_limits_are_adjustable() -> None:
    reference = outputs()
    candidate = {name: array + 0.1 * np.arange(array.shape[1]) for name, array in reference.items()}
    assert not judged(candidate, reference, Contract(0.0, 0.0)).passed
    assert judged(candidate, reference, Contract(1.0, 0.0)).passed
    assert judged(candidate, reference, Contract(0.0, 10.0)).passed


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ({}, "logits_per_image is missing"),
        (
            {**outputs(), "logits_per_text": np.zeros((1, 1))},
            "logits_per_text has different shapes",
        ),
        ({name: array[:0] for name, array in outputs().items()}, "different shapes"),
    ],
)
def test_contract_fails_when_there_is_nothing_to_compare(
    candidate: dict[str, np.ndarray], message: str
) -> None:
    found = judged(candidate, outputs())
    assert not found.passed
    assert message in found.message


def test_contract_fails_for_two_empty_sides() -> None:
    empty = {name: array[:0] for name, array in outputs().items()}
    found = judged(empty, empty)
    assert not found.passed
    assert "is empty" in found.message


def test_contract_fails_for_nan_on_both_sides() -> None:
    both = {**outputs(), "logits_per_image": with_nan(outputs()["logits_per_image"])}
    assert not judged(both, both).passed


def result(passed: bool, max_abs: float, mismatched: int) -> GateResult:
    figures = {"logits_per_image": {"max_abs": max_abs, "mismatched": mismatched, "elements": 10}}
    return GateResult("contract", passed, f"{max_abs}", figures)


def test_the_worst_of_several_batches_speaks_for_all_when_they_pass() -> None:
    found = worst([result(True, 0.1, 0), result(True, 0.3, 0), result(True, 0.2, 0)])
    assert found.passed
    assert found.message == "0.3"
    assert found.figures == {"logits_per_image": {"max_abs": 0.3, "mismatched": 0, "elements": 30}}


def test_one_batch_that_fails_fails_all_and_speaks() -> None:
    found = worst([result(True, 0.9, 0), result(False, 0.3, 2), result(False, 0.4, 3)])
    assert not found.passed
    assert found.message == "0.3"
    assert found.figures["logits_per_image"]["mismatched"] == 5


def test_merging_leaves_the_figures_of_each_batch_alone() -> None:
    first = result(True, 0.1, 0)
    worst([first, result(True, 0.3, 4)])
    assert first.figures["logits_per_image"]["max_abs"] == 0.1
