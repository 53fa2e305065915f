from __future__ import annotations

from dataclasses import replace

import pytest

from clipcheck.checkpoints.architecture import ARCHITECTURES, Activation
from clipcheck.checkpoints.dimensions import dimensions
from tests.samples import MINUTE


def test_each_known_architecture_has_its_own() -> None:
    found = [tuple(dimensions(each).items()) for each in ARCHITECTURES.values()]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", ["embed_dim", "image_resolution", "text_width", "text_layers"])
def test_another_dimension_is_another(name: str) -> None:
    other = replace(MINUTE, **{name: getattr(MINUTE, name) * 2})
    assert dimensions(other) != dimensions(MINUTE)


def test_how_it_computes_is_no_dimension() -> None:
    told = MINUTE.with_blocks(activation=Activation.GELU, head_width=32, epsilon=1e-6)
    assert dimensions(told) == dimensions(MINUTE)
    assert dimensions(MINUTE.with_blocks(mlp_ratio=2.0)) != dimensions(MINUTE)
