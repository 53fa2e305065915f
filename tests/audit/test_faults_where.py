"""Where faults are said to be planted: in modules that models have."""

from __future__ import annotations

import pytest
import torch

from clipcheck.audit.faults import CLEAN, FAULTS, fault_named
from clipcheck.audit.faults.where import FORWARD, spots
from clipcheck.errors import UsageError
from clipcheck.writers.legacy import Multimodal
from clipcheck.writers.synthesize import architecture_named
from tests.models import TINY
from tests.thorough import thorough


def test_every_fault_has_a_place_and_no_clean_variant_has_one() -> None:
    assert all(fault.places is not None for fault in FAULTS)
    assert all(variant.places is None for variant in CLEAN)


@pytest.mark.parametrize("name", [*TINY, thorough("ViT-B/32"), thorough("RN50")])
def test_every_fault_that_can_be_planted_has_a_spot_that_the_model_has(name: str) -> None:
    architecture = architecture_named(name)
    with torch.device("meta"):
        model = Multimodal(architecture)
    known = {n for n, _ in model.named_modules()} | model.state_dict().keys() | {FORWARD}
    for fault in FAULTS:
        if fault.applies_to(architecture):
            found = spots(fault.places or (), architecture)
            assert found or fault.hidden, fault.name
            assert {spot.name for spot in found} <= known


def test_the_middle_block_depends_on_the_depth_of_the_model() -> None:
    places = fault_named("int8-weight-in-one-layer").places or ()
    (tiny,) = spots(places, architecture_named("tiny-vit"))
    (full,) = spots(places, architecture_named("ViT-B/32"))
    assert tiny.name == "transformer.resblocks.0.mlp.c_proj"
    assert full.name == "transformer.resblocks.5.mlp.c_proj"


def test_a_fault_is_found_by_its_name() -> None:
    assert fault_named("causal-mask-missing").family == "attention"


def test_an_unknown_fault_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"found 'gelu'.*gelu-for-quickgelu"):
        fault_named("gelu")
    with pytest.raises(UsageError, match=r"found 'casual-mask-missing'.*causal-mask-missing"):
        fault_named("casual-mask-missing")
    with pytest.raises(UsageError, match=r"found 'zzz'.*clipcheck audit"):
        fault_named("zzz")
