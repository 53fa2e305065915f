"""What a library's optimiser does to a program is found by leaving out its levels and passes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from clipcheck.backends import optimiser
from clipcheck.backends.onnxruntime import ONNXRuntime
from clipcheck.backends.opened import Opened
from clipcheck.backends.optimiser import Cause, Optimiser, Setting, find_cause
from clipcheck.errors import RunError
from clipcheck.gates.optimised import Rewrites

needs_log = pytest.mark.skipif(
    not hasattr(onnxruntime, "set_default_logger_callback"),
    reason="this onnxruntime does not pass on its log, so no pass can be named",
)


@dataclass
class Fake:
    """A program and its optimiser.

    Attributes:
        passes: by level, those that it adds.
        harm: tells whether it fails with these passes.
    """

    passes: dict[str, Sequence[str]]
    harm: Callable[[Collection[str]], bool]
    unopened: Collection[str] = ()
    used: list[Setting | None] = field(default_factory=lambda: [None])

    def running(self, setting: Setting) -> list[str]:
        levels = list(self.passes)[: list(self.passes).index(setting.level) + 1]
        every = [name for level in levels for name in self.passes[level]]
        return [name for name in every if name not in setting.without]

    def use(self, setting: Setting | None) -> None:
        self.used.append(setting)
        if setting is not None and setting.level in self.unopened:
            raise RunError("it cannot be opened", remedy="")

    def fails(self) -> bool:
        setting = self.used[-1]
        assert setting is not None
        return self.harm(self.running(setting))

    def cause(self) -> Cause | None:
        found = find_cause(
            Optimiser(list(self.passes), self.use, self.running, lambda *_: Rewrites(0, None, 0)),
            self.fails,
        )
        assert self.used[-1] is None, "it must run with its own setting in the end"
        return found


LEVELS = {"none": (), "basic": ("a", "b"), "extended": ("c", "d", "e"), "all": ("f",)}


def test_one_pass_is_found_with_its_level() -> None:
    found = Fake(LEVELS, lambda passes: "d" in passes).cause()
    assert found == Cause("extended", "basic", ("d",))
    assert found.sound == Setting("extended", ("d",))


def test_what_fails_without_optimisation_as_well_is_not_blamed_on_it() -> None:
    assert Fake(LEVELS, lambda _: True).cause() is None


def test_what_does_not_fail_again_is_not_blamed_on_it() -> None:
    assert Fake(LEVELS, lambda _: False).cause() is None


def test_of_passes_that_each_do_harm_all_are_found() -> None:
    found = Fake(LEVELS, lambda passes: not {"a", "d"}.isdisjoint(passes)).cause()
    assert found == Cause("basic", "none", ("a",))
    several = Fake(LEVELS, lambda passes: not {"c", "e"}.isdisjoint(passes)).cause()
    assert several == Cause("extended", "basic", ("c", "e"))


def test_of_passes_that_do_harm_together_one_is_found() -> None:
    found = Fake(LEVELS, lambda passes: {"a", "d"} <= set(passes)).cause()
    assert found is not None
    assert found.passes in (("a",), ("d",))


def test_a_pass_that_another_one_replaces_when_it_is_left_out_is_found_with_it() -> None:
    class Replacing(Fake):
        def running(self, setting: Setting) -> list[str]:
            found = super().running(setting)
            return [name for name in found if name != "d" or "c" not in found]

    found = Replacing(LEVELS, lambda passes: not {"c", "d"}.isdisjoint(passes)).cause()
    assert found == Cause("extended", "basic", ("c", "d"))


def test_a_level_at_which_it_cannot_be_opened_fails() -> None:
    found = Fake(LEVELS, lambda _: False, unopened=["extended", "all"]).cause()
    assert found == Cause("extended", "basic", reason="without any of its passes it fails as well")
    assert found.sound == Setting("basic")


def test_a_search_without_time_names_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimiser, "SECONDS", -1.0)
    found = Fake(LEVELS, lambda passes: "d" in passes).cause()
    assert found == Cause("extended", "basic", reason="the time for the search was over")


def program(path: Path, nodes: Sequence[onnx.NodeProto], **weights: object) -> Path:
    """Write a program that computes ``y`` of ``x`` [N, 5, 8]."""
    float32 = onnx.TensorProto.FLOAT
    tensors = [
        numpy_helper.from_array(np.asarray(value, np.float32), n) for n, value in weights.items()
    ]
    given = [helper.make_tensor_value_info("x", float32, ["N", 5, 8])]
    graph = helper.make_graph(nodes, "g", given, [onnx.ValueInfoProto(name="y")], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(made), path)
    return path


X = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)


def gelu_by_erf(path: Path) -> Path:
    def node(kind: str, given: Sequence[str], made: str) -> onnx.NodeProto:
        return helper.make_node(kind, given, [made], name=f"/act/{made}")

    return program(
        path,
        [
            node("Div", ["x", "sqrt2"], "a"),
            node("Erf", ["a"], "b"),
            node("Add", ["b", "one"], "c"),
            node("Mul", ["x", "c"], "d"),
            node("Mul", ["d", "half"], "e"),
            helper.make_node("MatMul", ["e", "eye"], ["y"], name="/fc/MatMul"),
        ],
        sqrt2=2**0.5,
        one=1,
        half=0.5,
        eye=np.eye(8),
    )


def run(opened: Opened) -> np.ndarray:
    ((_, found),) = opened.run([X])
    return np.asarray(found)


@needs_log
def test_a_fusion_of_onnx_runtime_is_found_with_what_it_replaced(tmp_path: Path) -> None:
    path = gelu_by_erf(tmp_path / "gelu.onnx")
    config = {"config": "optimization.enable_gelu_approximation=1"}
    opened = ONNXRuntime.open_here(path, "cpu", config)
    exact = run(ONNXRuntime.open_here(path, "cpu", {"optimization": "disable"}))
    controlled = opened.optimiser
    assert controlled is not None
    assert controlled.levels == ("disable", "basic", "extended", "layout", "all")
    cause = find_cause(controlled, lambda: bool(np.abs(run(opened) - exact).max() > 1e-4))
    assert cause == Cause("extended", "basic", ("GeluApproximation",))
    assert np.abs(run(opened) - exact).max() > 1e-4, "it runs as before the search"
    found = controlled.rewrites(cause.sound, Setting(cause.level), [X])
    first = found.first
    assert (found.total, found.alike) == (1, 1)
    assert first is not None
    assert (first.made, first.tensor, first.scope) == (("FastGelu",), "e", "act")
    assert first.replaced == ("Div", "Erf", "Add", "Mul", "Mul")
    assert first.names == ("/act/a", "/act/b", "/act/c", "/act/d", "/act/e")
    assert first.error is not None
    assert 1e-5 < first.error < 1e-2


@needs_log
def test_only_the_part_that_is_off_is_named_of_those_that_a_level_replaced(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "zero"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
        helper.make_node("Clip", ["b", "low", "high"], ["c"], name="third"),
        helper.make_node("Add", ["one", "one"], ["two"], name="constant"),
        helper.make_node("Mul", ["c", "two"], ["y"], name="last"),
    ]
    path = program(
        tmp_path / "sound.onnx", nodes, zero=np.zeros(8), low=-1, high=0.5, one=np.ones(8)
    )
    controlled = ONNXRuntime.open_here(path, "cpu", {}).optimiser
    assert controlled is not None
    found = controlled.rewrites(Setting("disable"), Setting("basic"), [X])
    assert found.total >= 2
    assert found.first is None, "all that was replaced computes the same"


@needs_log
def test_an_error_of_opening_names_the_pass_that_breaks_the_program(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["cast"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Div", ["one", "one"], ["unit"]),
        helper.make_node("Mul", ["cast", "unit"], ["y"]),
    ]
    path = program(tmp_path / "cast.onnx", nodes, one=1)
    try:
        onnxruntime.InferenceSession(path)
    except Exception:
        pass
    else:
        pytest.skip("this onnxruntime opens it (microsoft/onnxruntime#32416)")
    with pytest.raises(RunError, match="Without graph optimisation it opens: the pass ") as caught:
        ONNXRuntime.open_here(path, "cpu", {})
    assert "options.add_session_config_entry(" in caught.value.remedy
    name = caught.value.remedy.split('"')[-2]
    left_out = {"config": f"optimization.disable_specified_optimizers={name}"}
    np.testing.assert_array_equal(run(ONNXRuntime.open_here(path, "cpu", left_out)), X)


def test_a_program_that_is_not_optimised_has_no_optimiser(tmp_path: Path) -> None:
    path = gelu_by_erf(tmp_path / "gelu.onnx")
    assert ONNXRuntime.open_here(path, "cpu", {"optimization": "disable"}).optimiser is None
    basic = ONNXRuntime.open_here(path, "cpu", {"optimization": "basic"}).optimiser
    assert basic is not None
    assert basic.levels == ("disable", "basic")
