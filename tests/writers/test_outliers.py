from __future__ import annotations

import pytest
import torch

from clipcheck.families.eager import build
from clipcheck.writers.synthesize import architecture_named, synthesize
from tests.models import TINY, inputs

TRANSFORMERS = ("visual.transformer", "transformer")


@pytest.mark.parametrize("name", TINY)
def test_a_few_channels_of_every_residual_stream_hold_hundreds(name: str) -> None:
    architecture = architecture_named(name)
    drawn = synthesize(architecture, 0, "outliers")
    model = build(architecture, {k: t.float() for k, t in drawn.items()})
    largest: dict[str, torch.Tensor] = {}

    def note(key: str) -> None:
        def hook(_: object, __: object, output: torch.Tensor) -> None:
            channels = output.movedim(1 if output.dim() == 4 else -1, 0).flatten(1)
            largest[key] = channels.abs().amax(dim=1)

        modules[key].register_forward_hook(hook)

    modules = dict(model.named_modules())
    streams = [k for k in modules if k.rpartition(".")[0].endswith(("resblocks", "layer4"))]
    for key in streams:
        note(key)
    with torch.inference_mode():
        per_image, _ = model(*inputs(architecture))
    assert per_image.isfinite().all()
    for key in streams:
        ordered = largest[key].sort().values
        assert 100 < ordered[-1] < 2000, key
        assert ordered[-2] > 5 * ordered[len(ordered) // 2], key


def test_gains_and_weights_lie_near_both_ends_of_their_ranges() -> None:
    drawn = synthesize(architecture_named("tiny-vit"), 0, "outliers")
    gains = torch.cat([t for k, t in drawn.items() if k.endswith(("ln_1.weight", "ln_2.weight"))])
    assert gains.min() == pytest.approx(0.01)
    assert 15 < gains.max() < 20
    half = torch.cat([t.flatten().abs() for k, t in drawn.items() if "mlp" in k and t.dim() == 2])
    assert half.dtype == torch.float16
    smallest = half[half > 0].min()
    assert smallest < torch.finfo(torch.float16).tiny
    assert half.max() > 10000


def test_some_batch_norm_channels_are_all_but_dead() -> None:
    drawn = synthesize(architecture_named("tiny-resnet"), 0, "outliers")
    variances = torch.cat([t for k, t in drawn.items() if k.endswith("running_var")])
    assert 1e-13 < variances.min() < 1e-8
    assert (variances == 1e-3).sum() >= 8
