from __future__ import annotations

import re
from dataclasses import fields

import pytest
from packaging.specifiers import SpecifierSet

from clipcheck.backends.known import Known, Pattern, everything, matching
from clipcheck.backends.names import BACKENDS
from clipcheck.gates.tolerances import LIMITS

VERSIONS = {
    "https://github.com/pytorch/pytorch/issues/174467": ("2.10.0", "2.11.0"),
    "https://github.com/pytorch/pytorch/issues/167910": ("2.9.1", "2.10.0"),
    "https://github.com/microsoft/onnxruntime/issues/32421": ("1.29.0", "1.32.0"),
    "https://github.com/microsoft/onnxruntime/issues/27504": ("1.24.1", "1.22.0"),
    "https://github.com/microsoft/onnxruntime/issues/32386": ("1.24.2", "1.23.2"),
    "https://github.com/microsoft/onnxruntime/issues/32186": ("1.29.0", "1.26.0"),
    "https://github.com/mlfoundations/open_clip/issues/915": ("3.3.0", "2.32.0"),
    "https://github.com/openai/CLIP/issues/446": ("70.0.0", "69.5.1"),
    "https://github.com/openai/CLIP/issues/528": ("81.0.0", "80.9.0"),
}
"""By link, a version that the thread says is ill, and one that is well."""


def case(pattern: Pattern, **changes: object) -> list[Known]:
    """Return the known failures that match where this one occurs, apart from the changes."""
    ill, _ = VERSIONS[pattern.known.link]
    arguments = {
        "backend": pattern.backends[0],
        "device": (pattern.devices or ("cpu",))[0],
        "dtype": (pattern.dtypes or ("float32",))[0],
        "text": pattern.example,
        "versions": dict.fromkeys(pattern.known.packages, ill),
        "vision": (pattern.vision or ("ViT",))[0],
    }
    return matching(**{**arguments, **changes})  # type: ignore[arg-type]


def each_pattern() -> pytest.MarkDecorator:
    ids = [each.known.link.partition("github.com/")[2] for each in everything()]
    return pytest.mark.parametrize("pattern", everything(), ids=ids)


@each_pattern()
def test_an_entry_is_complete(pattern: Pattern) -> None:
    known = pattern.known
    assert re.fullmatch(r"https://github\.com/[\w-]+/[\w-]+/(issues|pull)/\d+", known.link)
    assert known.packages
    assert set(pattern.backends) <= set(BACKENDS)
    assert pattern.backends
    assert set(pattern.devices) <= {"cpu", "cuda", "mps", "xpu"}
    assert set(pattern.dtypes) <= LIMITS.keys()
    assert set(pattern.vision) <= {"ViT", "ResNet"}
    assert str(SpecifierSet(known.versions))
    assert known.title
    assert known.remedy.endswith(".")
    assert not known.title.endswith(".")
    for each in (known, pattern):
        values = [getattr(each, field.name) for field in fields(each)]
        assert all(isinstance(value, str | tuple | Known) for value in values)


def test_every_entry_has_an_affected_and_an_unaffected_version() -> None:
    assert {each.known.link for each in everything()} == VERSIONS.keys()


@each_pattern()
def test_its_own_failure_is_matched_and_nothing_else(pattern: Pattern) -> None:
    assert case(pattern) == [pattern.known]


@each_pattern()
def test_other_failures_are_not_matched(pattern: Pattern) -> None:
    _, well = VERSIONS[pattern.known.link]
    others = {
        "backend": "eager",
        "text": "integrity: no weights were compared",
        "versions": dict.fromkeys(pattern.known.packages, well),
    }
    if pattern.devices:
        others["device"] = "xpu"
    if pattern.dtypes:
        others["dtype"] = "float64"
    if pattern.vision:
        others["vision"] = ""
    for name, value in others.items():
        assert case(pattern, **{name: value}) == []
    assert case(pattern, versions={}) == []
    assert case(pattern, versions=dict.fromkeys(pattern.known.packages, "unknown")) == []


def pattern_of(number: int) -> Pattern:
    return next(each for each in everything() if each.known.link.endswith(f"/{number}"))


def test_a_local_version_counts_as_its_version() -> None:
    assert case(pattern_of(174467), versions={"torch": "2.10.0+cu128"})
    assert not case(pattern_of(174467), versions={"torch": "2.1.0+cu128"})


def test_a_release_candidate_counts_as_its_release() -> None:
    assert case(pattern_of(174467), versions={"torch": "2.10.0rc2"})


def test_one_affected_package_is_enough() -> None:
    assert case(pattern_of(32421), versions={"onnxruntime-gpu": "1.24.1"})
    assert case(pattern_of(32421), versions={"onnxruntime": "1.24.1"})


def test_only_the_kind_of_device_counts() -> None:
    pattern = pattern_of(27504)
    assert case(pattern, device="cuda:1") == [pattern.known]


def test_a_gate_is_found_in_any_line_and_only_at_its_beginning() -> None:
    pattern = pattern_of(174467)
    text = "repeatability: a\nprecision: image features are off"
    assert case(pattern, text=text) == [pattern.known]
    assert case(pattern, text="repeatability: no fidelity: at all") == []


def test_a_kernel_of_another_name_is_another_failure() -> None:
    both = {"text": pattern_of(32186).example, "versions": {"onnxruntime": "1.29.0"}}
    assert case(pattern_of(32386)) == [pattern_of(32386).known]
    assert case(pattern_of(32386), **both) == [pattern_of(32186).known]


def test_a_known_failure_is_described_in_one_line() -> None:
    assert str(pattern_of(174467).known) == (
        "known: AOTInductor's package of a ResNet computes something else "
        "(torch ==2.10.*, https://github.com/pytorch/pytorch/issues/174467)"
    )
