"""The gate ``integrity``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from clipcheck.gates.integrity import Evidence, integrity
from clipcheck.gates.result import MEANT, OUTPUTS, Case
from tests.gates import NOT_FINITE, Named, exact_outputs, spoilt

SOUND = Evidence(
    weights=305,
    buffers={"input_resolution": (224, 224), "context_length": (None, 77)},
    unused={"encode_image": [], "forward": []},
)


def outputs() -> Named:
    return {name: values.astype(np.float32) for name, values in exact_outputs().items()}


def case_of(candidate: Named, reference: Named) -> Case:
    rows = {"image": ("noise", "black", "white"), "prompt": ("empty", "77 tokens")}
    return Case(
        candidate=candidate,
        reference=reference,
        exact=exact_outputs(),
        rows=rows,
        first_rows={"image": 16, "prompt": 4},
    )


def sound_case() -> Case:
    return case_of(outputs(), outputs())


def test_two_kinds_with_the_same_weights_and_all_outputs_pass() -> None:
    found = integrity([sound_case(), sound_case()], SOUND)
    assert found.passed
    assert found.name == "integrity"
    assert found.margin == 0.0
    assert found.message == (
        "305 weights bit for bit those of the file; "
        "all 4 outputs present, finite, and of the right shape and dtype"
    )
    assert found.figures == {
        "weights": {"compared": 305, "differing": 0, "unused": 0, "changed": 0},
        "runs": {"batches": 2, "failed": 0},
    }


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        (
            replace(SOUND, doubts=["nothing was compared: both sides are eager models"]),
            "nothing was compared: both sides are eager models",
        ),
        (replace(SOUND, weights=0), "no weights were compared"),
        (replace(SOUND, unlike=["one", "two", "three", "four"]), "one; two; three"),
        (
            replace(SOUND, differing={"visual.proj": "has other bits"}),
            "visual.proj: has other bits",
        ),
        (
            replace(SOUND, differing={f"w{i}": "differs" for i in range(5)}),
            "w0: differs; w1: differs; w2: differs; 2 more weights differ",
        ),
        (
            replace(SOUND, buffers={"input_resolution": (288, 224)}),
            "input_resolution is 288, and the weights imply 224",
        ),
        (
            replace(SOUND, unused={"encode_text": [], "forward": ["a", "b", "c", "d"]}),
            "4 weights have no effect on forward: a, b, c and 1 more",
        ),
        (
            replace(SOUND, unused={"encode_text": ["ln_final.bias"]}),
            "1 weight has no effect on encode_text: ln_final.bias",
        ),
        (
            replace(SOUND, changed=["visual.bn1.running_mean", "visual.bn1.running_var"]),
            "running the model changed 2 weights: visual.bn1.running_mean, visual.bn1.running_var",
        ),
        (
            replace(SOUND, failures=["jit: forward failed (sizes), in a batch of 1", "another"]),
            "jit: forward failed (sizes), in a batch of 1",
        ),
    ],
)
def test_comparing_a_model_with_itself_fails_and_says_why(evidence: Evidence, message: str) -> None:
    found = integrity([sound_case()], evidence)
    assert not found.passed
    assert found.message == message
    assert found.margin == np.inf


def test_a_single_output_is_reported_in_the_singular() -> None:
    absent = frozenset(OUTPUTS) - {"image_features"}
    found = integrity([replace(sound_case(), absent=absent)], replace(SOUND, weights=None))
    assert found.message == "the one output present, finite, and of the right shape and dtype"


def test_nothing_is_reported_for_weights_that_cannot_be_identified() -> None:
    found = integrity([sound_case()], replace(SOUND, weights=None))
    assert found.passed
    assert found.message == "all 4 outputs present, finite, and of the right shape and dtype"
    assert found.figures["weights"]["compared"] == 0


def test_unused_weights_are_counted_once_for_all_methods() -> None:
    unused = {"encode_text": ["a", "b"], "forward": ["b", "c"]}
    found = integrity([sound_case()], replace(SOUND, unused=unused, changed=["d"]))
    assert found.figures["weights"] == {"compared": 305, "differing": 0, "unused": 3, "changed": 1}


def test_no_cases_fail() -> None:
    found = integrity([], SOUND)
    assert not found.passed
    assert found.message == "nothing was run"
    assert found.figures["runs"] == {"batches": 0, "failed": 0}


def test_all_problems_are_reported_together() -> None:
    evidence = replace(SOUND, weights=0, changed=["w"], buffers={"vocab_size": (1, 2)})
    found = integrity([case_of({}, outputs())], evidence)
    assert found.message == (
        "no weights were compared; running the model changed 1 weight: w; "
        "vocab_size is 1, and the weights imply 2; image_features is missing from the candidate; "
        "text_features is missing from the candidate; logits_per_image is missing from the "
        "candidate"
    )


def test_an_error_is_reported_instead_of_the_outputs_it_left_missing() -> None:
    evidence = replace(SOUND, failures=["jit: forward failed (sizes)", "and again"])
    found = integrity([case_of({}, outputs())], evidence)
    assert not found.passed
    assert found.message == "jit: forward failed (sizes)"
    assert found.figures["runs"] == {"batches": 1, "failed": 2}


Change = Callable[[np.ndarray], np.ndarray | None]


NOT_FINITE_IN = "{name} of the {side} is not finite in {row}"


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("side", ["candidate", "reference"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: None, "{name} is missing from the {side}"),
        (lambda a: a[:1], "{name} has shape "),
        (lambda a: a[:, :1], "{name} has shape "),
        (lambda a: a.astype(np.float16), "{name} has dtype "),
        (lambda a: spoilt(a, np.nan), NOT_FINITE_IN),
        (lambda a: spoilt(a, np.inf), NOT_FINITE_IN),
        (lambda a: spoilt(a, -np.inf), NOT_FINITE_IN),
    ],
    ids=["missing", "rows", "columns", "dtype", "nan", "inf", "-inf"],
)
def test_every_output_that_is_not_as_it_should_be_fails(
    name: str, side: str, change: Change, message: str
) -> None:
    sides = {"candidate": outputs(), "reference": outputs()}
    array = change(sides[side].pop(name))
    if array is not None:
        sides[side][name] = array
    row = "image 17 (black)" if OUTPUTS[name][0] == "image" else "prompt 5 (77 tokens)"
    expected = message.format(name=name, side=side, row=row)
    if message == NOT_FINITE_IN and side == "reference":
        expected = f"the eager model itself is not finite: {MEANT[name]} of {row}"
    for cases in ([case_of(**sides), sound_case()], [sound_case(), case_of(**sides)]):
        found = integrity(cases, SOUND)
        assert not found.passed
        assert found.message.startswith(expected)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_values_not_finite_on_both_sides_are_reported_for_the_eager_model(value: float) -> None:
    name = "text_features"
    both = {**outputs(), name: spoilt(outputs()[name], value)}
    found = integrity([case_of(both, both)], SOUND)
    assert not found.passed
    assert found.message == (
        "the eager model itself is not finite: text features of prompt 5 (77 tokens)"
    )


def test_an_output_that_both_lack_is_missing_from_both() -> None:
    lacking = {name: array for name, array in outputs().items() if name != "logits_per_text"}
    found = integrity([case_of(lacking, lacking)], SOUND)
    assert not found.passed
    assert found.message == "logits_per_text is missing from the candidate and the reference"


def test_the_message_has_the_found_and_the_expected_shapes_and_dtypes() -> None:
    name = "image_features"
    candidate = {**outputs(), name: np.zeros((3, 4), dtype=np.float16)}
    found = integrity([case_of(candidate, outputs())], SOUND)
    assert found.message == (
        "image_features has shape (3, 4) in place of (3, 8); "
        "image_features has dtype float16 in place of float32"
    )


def test_empty_outputs_fail_although_they_are_equal() -> None:
    empty = {name: array[:0] for name, array in outputs().items()}
    found = integrity([case_of(empty, empty)], SOUND)
    assert not found.passed
    assert "image_features is empty" in found.message


def test_the_first_three_of_many_wrong_outputs_are_reported() -> None:
    found = integrity([case_of({}, outputs()), case_of({}, outputs())], SOUND)
    assert found.message.count("missing") == 3
