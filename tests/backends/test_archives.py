"""Archives as other people make them: what they are judged by, and what is told of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import clipcheck
from clipcheck import torchscript_support
from clipcheck.judgement import Judgement
from clipcheck.report import patched
from tests.models import inputs
from tests.oracles import reference_clip
from tests.samples import MINUTE, minute_weights

METHODS = ("encode_image", "encode_text", "forward")


def reference() -> Any:
    """The reference package's model, in half as the released files are."""
    return reference_clip().model.build_model(minute_weights()).eval().requires_grad_(False)


def traced(model: nn.Module, path: Path, methods: tuple[str, ...] = METHODS) -> Path:
    image, text = inputs(MINUTE)
    arguments = {"encode_image": (image,), "encode_text": (text,), "forward": (image, text)}
    chosen = {name: arguments[name] for name in methods}
    with torchscript_support.silenced(), torch.no_grad():
        # Shapes that become constants: the tracer warns of each.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.jit.save(torch.jit.trace_module(model, chosen, check_trace=False), path)
    return path


def checked(path: Path, dtype: str = "float32") -> Judgement:
    """The judgement of a short check in this process."""
    (judgement,) = clipcheck.check(path, dtype=dtype, examples=2, isolation="none").judgements
    return judgement


def failed(judgement: Judgement) -> set[str]:
    assert judgement.error is None, judgement.error
    return {gate.name for gate in judgement.gates if not gate.passed}


# --------------------------------------------------------------------------- the dtype of the code


class WrittenOut(nn.LayerNorm):
    """A LayerNorm in float32, of which each step is written down."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        mean = y.mean(-1, keepdim=True)
        variance = (y - mean).square().mean(-1, keepdim=True)
        y = (y - mean) / torch.sqrt(variance + self.eps)
        return (y * self.weight.float() + self.bias.float()).type(x.dtype)


def written_out(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.__class__ = WrittenOut
    return model


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
def test_an_archive_traced_under_autocast_is_judged_in_what_it_computes_in(
    tmp_path: Path, lower: torch.dtype
) -> None:
    with torch.autocast("cpu", dtype=lower):
        path = traced(reference().float(), tmp_path / "autocast.pt")
    judged = checked(path)
    assert {"fidelity", "modules"} <= failed(judged)
    name = str(lower).removeprefix("torch.")
    assert judged.patched is not None
    count = judged.patched.kept[name]
    assert patched.suspicion(judged.patched) == (
        f"its code casts to {name} in {count} places, though its weights are float32: if it was "
        "traced under autocast, trace it again without"
    )
    assert count > 20
    assert checked(traced(reference().float(), tmp_path / "sound.pt")).passed


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_normalisations_written_out_in_float32_do_not_outvote_the_half_weights(
    tmp_path: Path, dtype: str
) -> None:
    path = traced(written_out(reference()), tmp_path / "half.pt")
    judged = checked(path, dtype)
    assert failed(judged) == set()
    assert judged.patched is not None
    casts, kept = judged.patched.casts, judged.patched.kept
    assert set(kept) == {"float32"}
    if dtype != "float16":
        assert 0 < casts["float16"] < kept["float32"]
