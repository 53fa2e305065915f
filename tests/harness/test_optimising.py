"""A program that fails only when its library optimises it is reported so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

import clipcheck
from clipcheck.gates.optimised import Optimised
from clipcheck.gates.result import GateResult
from clipcheck.harness.localising import localize
from clipcheck.harness.optimising import on_all
from clipcheck.harness.phases import Stopwatch
from clipcheck.report import localisation, text
from clipcheck.results.document import read, render
from clipcheck.results.judgement import Judgement
from tests.backends import optimised as programs
from tests.backends.test_optimiser import needs_log

Pair = tuple[Path, Path, Path]
Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return programs.write_pair(tmp_path_factory.mktemp("pair"))


def edited(pair: Pair, path: Path, edit: Edit) -> Path:
    program = onnx.load(pair[2])
    edit(program)
    onnx.save(program, path)
    return path


def check(pair: Pair, path: Path, backend: str = "onnxruntime") -> clipcheck.Result:
    reference, config, _ = pair
    return clipcheck.check(
        path, reference=reference, architecture=config, backend=backend, examples=4, device="cpu"
    )


def judged(pair: Pair, path: Path) -> Judgement:
    (found,) = check(pair, path).judgements
    return found


def cause(found: Judgement) -> Optimised:
    assert not found.passed
    assert found.optimised_problem is None
    assert found.optimised is not None
    return found.optimised


@pytest.mark.thorough
@needs_log
def test_an_approximation_by_the_optimiser_is_named_with_its_pass_and_place(
    pair: Pair, tmp_path: Path
) -> None:
    path = edited(pair, tmp_path / "erf.onnx", programs.with_gelu_by_erf)
    result = check(pair, path, programs.APPROXIMATING)
    (found,) = result.judgements
    assert found.isolation, "it runs in the sandbox"
    told = cause(found)
    assert (told.level, told.below, told.passes) == ("extended", "basic", ("GeluApproximation",))
    assert told.rewrites is not None
    assert (told.rewrites.total, told.rewrites.alike) == (2, 2)
    first = told.rewrites.first
    assert first is not None
    assert first.made == ("FastGelu",)
    assert first.scope.endswith("resblocks.0.mlp.gelu")
    assert found.alternative is None, "it computes the architecture that it should"
    document = render(result)
    (record,) = read(document).results
    assert record.optimised == told
    assert json.loads(document)["results"][0]["optimised"]["passes"] == ["GeluApproximation"]
    lines = " ".join(text.render(result).split())
    assert "without GeluApproximation it passes there, too" in lines
    # With that line, it passes.
    key, name = told.line.split('"')[1::2]
    assert check(pair, path, f"{programs.APPROXIMATING}+{key}={name}")


@needs_log
@pytest.mark.thorough
def test_a_program_that_does_not_run_optimised_is_named_with_what_does_not_run(
    pair: Pair, tmp_path: Path
) -> None:
    path = edited(pair, tmp_path / "model.onnx", programs.with_bias_by_layer_norm)
    told = cause(judged(pair, path))
    assert told.rewrites is not None
    first = told.rewrites.first
    assert first is not None
    assert (first.made, first.error) == (("LayerNormalization",), None)
    assert first.replaced[:3] == ("ReduceMean", "Sub", "Pow")


@pytest.mark.thorough
def test_what_fails_without_optimisation_as_well_is_not_blamed_on_it(
    pair: Pair, tmp_path: Path
) -> None:
    def approximate(program: onnx.ModelProto) -> None:
        for node in program.graph.node:
            if node.op_type == "Gelu":
                del node.attribute[:]
                node.attribute.append(onnx.helper.make_attribute("approximate", "tanh"))

    found = judged(pair, edited(pair, tmp_path / "tanh.onnx", approximate))
    assert not found.passed
    assert found.optimised is None
    assert found.optimised_problem is None
    assert "optimiser" in found.seconds


@pytest.mark.thorough
def test_a_sound_program_is_not_run_with_less_optimisation(pair: Pair) -> None:
    found = judged(pair, pair[2])
    assert found.passed
    assert "optimiser" not in found.seconds


@needs_log
@pytest.mark.thorough
def test_localize_names_what_only_the_optimiser_changes(pair: Pair, tmp_path: Path) -> None:
    path = edited(pair, tmp_path / "erf.onnx", programs.with_gelu_by_erf)
    reference, config, _ = pair
    found = localize(
        path, reference=reference, architecture=config, backend=programs.APPROXIMATING, device="cpu"
    )
    assert not found.passed
    assert found.optimised is not None
    assert found.optimised.passes == ("GeluApproximation",)
    lines = localisation.report(found).plain.splitlines()
    assert "DEPARTS only when optimised." in lines
    _, _, command = "".join("".join(lines).split()).replace("\\", "").partition("Next:")
    assert f"--backend{programs.APPROXIMATING}" in command
    written = json.loads(localisation.render_json(found))
    assert written["optimised"]["level"] == "extended"


@pytest.mark.parametrize("passed", [True, False])
def test_without_a_failing_input_the_failed_gates_judge_it_again(passed: bool) -> None:
    seen: list[int] = []

    def judge(_: Stopwatch, *, seed: int) -> Any:
        seen.append(seed)
        gates = [
            GateResult(name="top1", passed=True, message=""),
            GateResult(name="modules", passed=passed, message=""),
        ]
        return SimpleNamespace(gates=gates)

    assert on_all(judge, 7).call() is not passed
    assert seen == [7]
