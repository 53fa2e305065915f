"""Modules inside of libraries' models, and of the eager model compiled block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clipcheck.backends import compile as compiling
from clipcheck.backends.base import Backend
from clipcheck.backends.compile import Compile
from clipcheck.backends.inside_modules import InsideModules
from clipcheck.backends.open_clip import OpenClip
from clipcheck.backends.source import Source
from clipcheck.backends.transformers import Transformers
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.families.model_inputs import inputs_of
from clipcheck.gates.localisation import Place
from clipcheck.gates.modules import modules
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness.localising import first_departures
from clipcheck.harness.modules.walk import judge_program
from clipcheck.harness.phases import Stopwatch
from clipcheck.inputs.batches import for_modules
from tests.backends.kept import CPU, minute, source
from tests.samples import MINUTE_RESNET
from tests.thorough import parametrize

LIMIT = LIMITS["float32"]


def made(built: Path, backend: type[Backend], kind: str = "vit") -> Source:
    more = [MINUTE_RESNET] if kind == "resnet" else []
    return source(minute(built, Format.SAFETENSORS, *more), built, backend)


def places(program: Backend, given: Source) -> list[Place]:
    return [*first_departures(given, Stopwatch(), shown=program.runner).found]


def library_of(program: Backend) -> Any:
    assert isinstance(program.runner, InsideModules)
    return program.runner._methods._model  # type: ignore[attr-defined]


@parametrize(
    ("backend", "kind"),
    [(OpenClip, "vit"), (Transformers, "vit"), (OpenClip, "resnet")],
    quick=2,
)
def test_every_module_of_a_librarys_model_is_judged(
    backend: type[Backend], kind: str, built: Path
) -> None:
    given = made(built, backend, kind)
    batch = for_modules(inputs_of(given.checkpoint.model), 0)
    with backend.build(given) as program:
        coverage = judge_program(program.runner, given.clip, batch, CPU, LIMIT)
        found = modules(coverage, LIMIT)
        assert found.passed, found.message
        assert not coverage.skipped
        assert {error.module for error in coverage.ranges}


@pytest.mark.parametrize(
    ("backend", "theirs"),
    [
        (OpenClip, "visual.transformer.resblocks.0.ln_2"),
        (Transformers, "vision_model.encoder.layers.0.layer_norm2"),
    ],
)
def test_an_epsilon_in_a_librarys_model_is_named(
    backend: type[Backend], theirs: str, built: Path
) -> None:
    given = made(built, backend)
    with backend.build(given) as program:
        library_of(program).get_submodule(theirs).eps = 9e-6
        (place,) = places(program, given)
    assert place.module == "visual.transformer.resblocks.0.ln_2"


@pytest.mark.thorough
def test_a_block_that_is_compiled_wrong_is_named(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = torch.compile
    damages = False

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        for node in graph.graph.nodes:
            if damages and "sigmoid" in str(node.target):
                node.target = {"sigmoid": "tanh"}.get(node.target, torch.tanh)
        graph.recompile()
        return graph.forward

    def faulty(function: Any, **how: Any) -> Any:
        return compiled(function, backend=backend, fullgraph=how["fullgraph"])

    monkeypatch.setattr(torch, "compile", faulty)
    monkeypatch.setattr(compiling.Compile, "_prepare", lambda *_: None)
    given = made(built, Compile)
    batch = for_modules(inputs_of(given.checkpoint.model), 0)
    with Compile.build(given) as program:
        coverage = judge_program(program.runner, given.clip, batch, CPU, LIMIT)
        assert modules(coverage, LIMIT).passed
        assert not coverage.skipped
        assert "visual.conv1" in {error.module for error in coverage.errors}
        assert "transformer.resblocks.0.mlp.c_fc" in coverage.covered
    damages = True
    with Compile.build(given) as program:
        image, text, *_ = places(program, given)
    assert image.module == "visual.transformer.resblocks.0"
    assert text.module == "transformer.resblocks.0"
