"""Modules inside of programs, and faults that only these show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from clipcheck.backends.base import Backend
from clipcheck.backends.export import Export
from clipcheck.backends.inside import InsideProgram
from clipcheck.backends.onnx_sessions import Sessions
from clipcheck.backends.onnxruntime import ONNXRuntime
from clipcheck.backends.optimiser import Setting
from clipcheck.backends.source import Source
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.families.model_inputs import inputs_of
from clipcheck.gates.localisation import Place
from clipcheck.gates.modules import modules
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness.localising import first_departures
from clipcheck.harness.modules.walk import judge_program, walk
from clipcheck.harness.phases import Stopwatch
from clipcheck.inputs.batches import for_modules
from tests.backends.kept import CPU, Kept, minute, source
from tests.samples import MINUTE_RESNET
from tests.thorough import thorough

LIMIT = LIMITS["float32"]
Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="session")
def vit(built: Path) -> Source:
    return source(minute(built, Format.ARCHIVE), built, ONNXRuntime)


def inside(program: Backend) -> InsideProgram:
    assert isinstance(program.runner, InsideProgram)
    return program.runner


def departures(program: Backend, made: Source) -> list[Place]:
    batch = for_modules(inputs_of(made.checkpoint.model), 0)
    return [*walk(inside(program), made.clip, batch, CPU, LIMIT, "a batch").found]


def edited(made: Source, path: Path, edit: Edit) -> Backend:
    ONNXRuntime.build(made).close()
    program = onnx.load(cast(Kept, made.artefacts).path)
    edit(program)
    onnx.save(program, path)
    return ONNXRuntime.open_program(replace(made.file(path), dtype=None, made_here=False))


def epsilon(scope: str, value: float) -> Edit:
    def edit(program: onnx.ModelProto) -> None:
        (found,) = [
            node
            for node in program.graph.node
            if node.op_type == "LayerNormalization" and any(scope in name for name in node.input)
        ]
        kept = [each for each in found.attribute if each.name != "epsilon"]
        del found.attribute[:]
        found.attribute.extend([*kept, onnx.helper.make_attribute("epsilon", value)])

    return edit


def without_bias(key: str) -> Edit:
    def edit(program: onnx.ModelProto) -> None:
        (found,) = [each for each in program.graph.initializer if each.name.endswith(key)]
        zeros = np.zeros_like(numpy_helper.to_array(found))
        found.CopyFrom(numpy_helper.from_array(zeros, found.name))

    return edit


@pytest.mark.parametrize("backend", [ONNXRuntime, Export])
@pytest.mark.parametrize("kind", ["vit", thorough("resnet")])
def test_every_module_of_a_sound_program_is_judged(
    backend: type[Backend], kind: str, built: Path
) -> None:
    given = minute(built, Format.ARCHIVE, *([MINUTE_RESNET] if kind == "resnet" else []))
    made = source(given, built, backend)
    batch = for_modules(inputs_of(made.checkpoint.model), 0)
    with backend.build(made) as program:
        shown = inside(program)
        coverage = judge_program(shown, made.clip, batch, CPU, LIMIT)
        found = modules(coverage, LIMIT)
        assert found.passed, found.message
        assert not coverage.skipped
        block = "visual.layer1.0" if kind == "resnet" else "visual.transformer.resblocks.0"
        assert {error.module for error in coverage.ranges} >= {block, "ln_final", "forward"}
        assert shown.note == ""
        assert not departures(program, made)


def test_a_program_runs_once_for_both_towers_and_does_not_load_its_weights_again(
    vit: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods: list[str] = []
    sizes: list[int] = []
    listen, open_session = InsideProgram.listen, Sessions.open

    def counted(self: InsideProgram, method: str, *given: Any) -> object:
        methods.append(method)
        return listen(self, method, *given)

    def measured(self: Sessions, program: bytes, setting: Setting) -> Any:
        sizes.append(len(program))
        return open_session(self, program, setting)

    monkeypatch.setattr(InsideProgram, "listen", counted)
    with ONNXRuntime.build(vit) as program:
        monkeypatch.setattr(Sessions, "open", measured)
        assert not departures(program, vit)
        assert methods == ["forward"]
        assert len(sizes) == 1
        assert sizes[0] < (program.size or 0) / 4


def test_an_epsilon_that_only_extreme_inputs_show_is_named(vit: Source, tmp_path: Path) -> None:
    edit = epsilon("visual.transformer.resblocks.0.ln_2", 9e-6)
    with edited(vit, tmp_path / "altered.onnx", edit) as program:
        assert not departures(program, vit)
        found = first_departures(vit, Stopwatch(), shown=inside(program))
    assert [place.module for place in found.found] == ["visual.transformer.resblocks.0.ln_2"]


@pytest.mark.parametrize(
    ("edit", "module", "part"),
    [
        (
            epsilon("visual.transformer.resblocks.0.ln_2", 1e-4),
            "visual.transformer.resblocks.0.ln_2",
            "",
        ),
        (without_bias("visual.transformer.resblocks.0.mlp.c_fc.bias"), "c_fc", ""),
        (
            without_bias("model.visual.positional_embedding"),
            "positional_embedding",
            "class token and positions",
        ),
    ],
    ids=["epsilon", "bias", "positions"],
)
def test_an_altered_program_departs_in_the_altered_module(
    edit: Edit, module: str, part: str, vit: Source, tmp_path: Path
) -> None:
    with edited(vit, tmp_path / "altered.onnx", edit) as program:
        place = departures(program, vit)[0]
        assert str(place.module).endswith(module)
        assert place.part == part
        batch = for_modules(inputs_of(vit.checkpoint.model), 0)
        assert not modules(
            judge_program(inside(program), vit.clip, batch, CPU, LIMIT), LIMIT
        ).passed
