from __future__ import annotations

import re
from dataclasses import fields

import pytest
from packaging.specifiers import SpecifierSet

from clipcheck.backends.known import Known, everything, matching
from clipcheck.backends.registry import BACKENDS
from clipcheck.gates.tolerances import LIMITS

VERSIONS = {
    "https://github.com/pytorch/pytorch/issues/174467": ("2.10.0", "2.11.0"),
    "https://github.com/pytorch/pytorch/issues/167910": ("2.9.1", "2.10.0"),
    "https://github.com/microsoft/onnxruntime/issues/32421": ("1.29.0", "1.32.0"),
    "https://github.com/microsoft/onnxruntime/issues/27504": ("1.24.1", "1.22.0"),
    "https://github.com/microsoft/onnxruntime/issues/32386": ("1.24.2", "1.23.2"),
    "https://github.com/microsoft/onnxruntime/issues/32186": ("1.29.0", "1.26.0"),
    "https://github.com/openai/CLIP/issues/446": ("70.0.0", "69.5.1"),
    "https://github.com/openai/CLIP/issues/528": ("81.0.0", "80.9.0"),
}
"""By link, a version that the thread says is ill, and one that is well."""


def case(known: Known, **changes: object) -> list[Known]:
    """What is matched where that failure shows, but for some changes."""
    ill, _ = VERSIONS[known.link]
    arguments = {
        "backend": known.backends[0],
        "device": (known.devices or ("cpu",))[0],
        "dtype": (known.dtypes or ("float32",))[0],
        "text": known.example,
        "versions": dict.fromkeys(known.packages, ill),
        "vision": (known.vision or ("ViT",))[0],
    }
    return matching(**{**arguments, **changes})  # type: ignore[arg-type]


def each_known() -> pytest.MarkDecorator:
    ids = [known.link.partition("github.com/")[2] for known in everything()]
    return pytest.mark.parametrize("known", everything(), ids=ids)


@each_known()
def test_an_entry_is_whole(known: Known) -> None:
    assert re.fullmatch(r"https://github\.com/[\w-]+/[\w-]+/(issues|pull)/\d+", known.link)
    assert set(known.backends) <= set(BACKENDS)
    assert known.backends
    assert known.packages
    assert set(known.devices) <= {"cpu", "cuda", "mps", "xpu"}
    assert set(known.dtypes) <= LIMITS.keys()
    assert set(known.vision) <= {"ViT", "ResNet"}
    assert str(SpecifierSet(known.versions))
    assert known.title
    assert known.remedy.endswith(".")
    assert not known.title.endswith(".")
    assert all(isinstance(getattr(known, field.name), str | tuple) for field in fields(known))


def test_every_entry_has_a_version_that_is_ill_and_one_that_is_well() -> None:
    assert {known.link for known in everything()} == VERSIONS.keys()


@each_known()
def test_its_own_failure_is_matched_and_nothing_else(known: Known) -> None:
    assert case(known) == [known]


@each_known()
def test_a_failure_that_it_is_not_about_is_not_matched(known: Known) -> None:
    _, well = VERSIONS[known.link]
    others = {
        "backend": "eager",
        "text": "integrity: no weights were compared",
        "versions": dict.fromkeys(known.packages, well),
    }
    if known.devices:
        others["device"] = "xpu"
    if known.dtypes:
        others["dtype"] = "float64"
    if known.vision:
        others["vision"] = ""
    for name, value in others.items():
        assert case(known, **{name: value}) == []
    assert case(known, versions={}) == []
    assert case(known, versions=dict.fromkeys(known.packages, "unknown")) == []


def known_of(number: int) -> Known:
    return next(known for known in everything() if known.link.endswith(f"/{number}"))


def test_a_build_of_a_version_for_a_card_is_that_version() -> None:
    assert case(known_of(174467), versions={"torch": "2.10.0+cu128"})
    assert not case(known_of(174467), versions={"torch": "2.1.0+cu128"})


def test_a_candidate_for_a_release_is_one_of_it() -> None:
    assert case(known_of(174467), versions={"torch": "2.10.0rc2"})


def test_one_of_its_packages_is_enough() -> None:
    assert case(known_of(32421), versions={"onnxruntime-gpu": "1.24.1"})
    assert case(known_of(32421), versions={"onnxruntime": "1.24.1"})


def test_of_a_device_the_kind_counts() -> None:
    known = known_of(27504)
    assert case(known, device="cuda:1") == [known]


def test_a_gate_is_found_in_any_line_and_only_at_its_beginning() -> None:
    known = known_of(174467)
    assert case(known, text="repeatability: a\nprecision: image features are off") == [known]
    assert case(known, text="repeatability: no fidelity: at all") == []


def test_a_kernel_of_another_name_is_another_failure() -> None:
    both = {"text": known_of(32186).example, "versions": {"onnxruntime": "1.29.0"}}
    assert case(known_of(32386)) == [known_of(32386)]
    assert case(known_of(32386), **both) == [known_of(32186)]


def test_it_is_told_in_a_line() -> None:
    assert str(known_of(174467)) == (
        "known: AOTInductor's package of a ResNet computes something else "
        "(torch ==2.10.*, https://github.com/pytorch/pytorch/issues/174467)"
    )
