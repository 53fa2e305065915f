from __future__ import annotations

import pytest
import torch

from clipcheck.families import eager
from clipcheck.gates.result import OUTPUTS
from clipcheck.models.whole import PREFIX, Whole
from clipcheck.writers.synthesize import synthesize
from tests.models import TINY, inputs, outputs, small


@pytest.mark.parametrize("name", TINY)
def test_the_outputs_are_those_of_the_three_methods(name: str) -> None:
    architecture = small(name)
    weights = {key: tensor.float() for key, tensor in synthesize(architecture).items()}
    model = eager.build(architecture, weights)
    pixels, tokens = inputs(architecture)
    with torch.inference_mode():
        found = Whole(model)(pixels, tokens)
    assert list(found) == list(OUTPUTS)
    for output, value in outputs(model, pixels, tokens).items():
        assert torch.equal(found[output], value), output


def test_each_tower_runs_once() -> None:
    architecture = small("tiny-vit")
    model = eager.build(
        architecture, {key: tensor.float() for key, tensor in synthesize(architecture).items()}
    )
    calls = []
    for name, tower in (("image", model.visual), ("text", model.transformer)):
        tower.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.inference_mode():
        Whole(model)(*inputs(architecture))
    assert calls == ["image", "text"]


def test_it_shares_the_models_weights_and_keeps_their_keys() -> None:
    architecture = small("tiny-vit")
    model = eager.build(architecture, synthesize(architecture))
    whole = Whole(model)
    assert not whole.training
    held = whole.state_dict()
    assert list(held) == [f"{PREFIX}{key}" for key in model.state_dict()]
    for key, tensor in model.state_dict().items():
        assert held[f"{PREFIX}{key}"].data_ptr() == tensor.data_ptr()
