"""Modules and connections together compute the eager model."""

from __future__ import annotations

import pytest
import torch

from clipcheck.checkpoints.architecture import Architecture
from clipcheck.families import eager
from clipcheck.families.connections import (
    IMAGE_FEATURES,
    PIXELS,
    TEXT_FEATURES,
    TOKENS,
    End,
    connections,
)
from clipcheck.harness.modules.twins import Twins
from clipcheck.writers.synthesize import synthesize
from tests.models import small

SMALL = {"vit": small("tiny-vit"), "resnet": small("tiny-resnet")}


def built(a: Architecture) -> eager.CLIP:
    weights = {key: tensor.float() for key, tensor in synthesize(a).items()}
    return eager.build(a, weights)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_modules_and_connections_alone_compute_what_the_model_does(kind: str) -> None:
    a = SMALL[kind]
    model = built(a)
    pixels = torch.randn(2, 3, a.image_resolution, a.image_resolution)
    tokens = torch.randint(1, a.vocab_size, (3, a.context_length))
    made_of = {connection.target: connection for connection in connections(model)}

    def value(end: End) -> torch.Tensor:
        if end in (PIXELS, TOKENS):
            return pixels if end == PIXELS else tokens
        if end.side == "out" and end not in made_of:
            given = value(End(end.name, "in"))
            module = model.get_submodule(end.name)
            if end.name.endswith(".attn"):
                # Attention alone has the layout [L, N, D]; between modules rows are first.
                mask = None if "visual" in end.name else eager.causal_mask(given)
                x = given.transpose(0, 1)
                result: torch.Tensor = module(x, x, x, attn_mask=mask)[0].transpose(0, 1)
                return result
            return module(given)
        connection = made_of[end]
        return connection.compute(*(value(source) for source in connection.sources))

    with torch.inference_mode():
        image, text = value(IMAGE_FEATURES), value(TEXT_FEATURES)
    with torch.inference_mode():
        torch.testing.assert_close(image, model.encode_image(pixels), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(text, model.encode_text(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_the_inputs_of_every_module_come_from_a_connection(kind: str) -> None:
    model = built(SMALL[kind])
    targets = [connection.target for connection in connections(model)]
    assert len(set(targets)) == len(targets)
    modules = Twins(model, 1, 1, torch.device("cpu")).blocks
    assert {End(name, "in") for name in modules} <= set(targets)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_connection_is_named_after_something_that_the_model_has(kind: str) -> None:
    model = built(SMALL[kind])
    known = {name for name, _ in model.named_modules()} | model.state_dict().keys()
    assert {connection.name for connection in connections(model)} <= known
