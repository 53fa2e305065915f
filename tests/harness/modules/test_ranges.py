"""Modules of an archive called alone, on numbers that never reach them in the model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clipcheck.audit.faults import fault_named
from clipcheck.backends.archives import Inside
from clipcheck.checkpoints.checkpoint import Checkpoint
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.families.model_inputs import inputs_of
from clipcheck.gates.modules import Coverage, ModuleError, modules, ratio
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness.modules.judge import judge_modules
from clipcheck.harness.modules.ranges import SCORE, _scores
from clipcheck.inputs.batches import for_modules
from clipcheck.models.loader import load_checkpoint_both
from clipcheck.system import torchscript_support
from clipcheck.writers.archive import Alter, write_archive
from clipcheck.writers.synthesize import synthesize
from tests.samples import MINUTE, MINUTE_RESNET
from tests.thorough import parametrize

CPU = torch.device("cpu")
FLOAT = LIMITS["float32"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with torchscript_support.silenced():
        yield
    torchscript_support.forget_classes()


def opened(folder: Path, alter: Alter | None = None, architecture: Any = MINUTE) -> Checkpoint:
    path = folder / "model.pt"
    write_archive(architecture, synthesize(architecture), path, alter=alter)
    return open_checkpoint(path)


def judged(checkpoint: Checkpoint) -> Coverage:
    both = load_checkpoint_both(checkpoint, CPU)
    batch = for_modules(inputs_of(checkpoint.architecture), 0)
    return judge_modules(Inside(both.archive), both.eager_model, batch, CPU)


def worst(coverage: Coverage) -> ModuleError:
    return max(coverage.ranges, key=lambda error: ratio(error, FLOAT))


@parametrize("architecture", [MINUTE, MINUTE_RESNET], ids=["vit", "resnet"])
def test_every_module_of_a_sound_archive_is_called_alone_and_passes(
    tmp_path: Path, architecture: Any
) -> None:
    found = judged(opened(tmp_path, architecture=architecture))
    alone = {error.module for error in found.ranges}
    judged_ones = {error.module for error in found.errors}
    assert alone == judged_ones - {"token_embedding"} | {"forward"}
    assert ratio(worst(found), FLOAT) < 2.5
    assert found.reached["attention score"] == pytest.approx(SCORE, rel=0.01)
    assert found.reached["activation"] >= 1000
    assert found.reached["logit"] == pytest.approx(100, rel=1e-3)
    result = modules(found, FLOAT)
    assert result.passed
    assert f", {len(alone)} on extreme inputs as well: worst error " in result.message


@parametrize(
    ("fault", "module", "given"),
    [
        ("logits-clamped-at-90", "forward", "logits from -98.1 to 100"),
        ("scores-clamped-at-50", "transformer.resblocks.0.attn", "input of sharp attention"),
        ("activation-clipped-at-20", "transformer.resblocks.0.mlp.gelu", "one channel of 1000"),
    ],
)
def test_a_limit_that_no_drawn_input_reaches_is_found_and_named(
    tmp_path: Path, fault: str, module: str, given: str
) -> None:
    found = judged(opened(tmp_path, fault_named(fault).plant))
    assert all(ratio(error, FLOAT) <= FLOAT.module for error in found.errors)
    off = {error.module: error for error in found.ranges if ratio(error, FLOAT) > FLOAT.module}
    assert off[module].given == given
    result = modules(found, FLOAT)
    assert not result.passed
    assert result.message.startswith(f"{module} (")
    assert f"x, limit 10x), on {given}" in result.message


@pytest.mark.thorough
@pytest.mark.parametrize("norm", ["visual.ln_pre", "visual.transformer.resblocks.0.ln_1"])
def test_an_epsilon_beside_a_large_variance_shows_in_nearly_constant_numbers(
    tmp_path: Path, norm: str
) -> None:
    """The variance in front of the norm is made so large that no ordinary input shows it. The norm
    is named, and not the block that it is in."""
    weights = synthesize(MINUTE)
    weights["visual.positional_embedding"] *= 1e4
    weights["visual.ln_pre.weight"] *= 1e4
    path = tmp_path / "model.pt"
    write_archive(MINUTE, weights, path, alter=partial(_with_epsilon, norm))
    found = judged(open_checkpoint(path))
    assert all(ratio(error, FLOAT) <= FLOAT.module for error in found.errors)
    assert worst(found).module == norm
    assert worst(found).given == "nearly constant numbers"
    assert modules(found, FLOAT).message.startswith(f"{norm} (forward): error ")


def _with_epsilon(norm: str, model: Any) -> None:
    model.get_submodule(norm).eps = 1e-6


def test_weights_are_back_in_their_place_and_nothing_has_changed(tmp_path: Path) -> None:
    both = load_checkpoint_both(opened(tmp_path), CPU)
    runner = Inside(both.archive)
    before = {key: held.data_ptr() for key, held in both.archive.weights()}
    judge_modules(runner, both.eager_model, for_modules(inputs_of(MINUTE), 0), CPU)
    assert {key: held.data_ptr() for key, held in both.archive.weights()} == before
    assert runner.changed() == []


def test_scores_are_those_of_attention_at_every_scale() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2)
    nn.init.normal_(attention.in_proj_bias)
    x = torch.randn(5, 8)
    for scale in (0.5, 3.0):
        query, key, _ = nn.functional.linear(
            scale * x, attention.in_proj_weight, attention.in_proj_bias
        ).chunk(3, dim=-1)
        of_heads = [(y.unflatten(-1, (2, 4)).transpose(0, 1)) for y in (query, key)]
        expected = of_heads[0] @ of_heads[1].transpose(1, 2) / 2
        square, linear, constant = _scores(attention, x)
        assert torch.allclose(scale**2 * square + scale * linear + constant, expected, atol=1e-5)
