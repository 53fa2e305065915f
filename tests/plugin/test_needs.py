from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

from clipcheck.gates.registry import NAMES
from clipcheck.plugin.needs import gates_needed
from clipcheck.plugin.sharing import Case

CASE = Case("a.pt", "jit", "cpu", "float32")


def item(module: str, *fixtures: str, **parameters: str) -> Any:
    case = {f"clip_{name}": value for name, value in vars(CASE).items()}
    function = ModuleType("test")
    vars(function)["__module__"] = module
    return SimpleNamespace(
        fixturenames=fixtures,
        callspec=SimpleNamespace(params={**case, **parameters}),
        function=function,
    )


def test_the_suites_own_tests_need_the_gate_that_they_look_at() -> None:
    tests = [item("suite", "clip_judgement", clip_gate=name) for name in ("fidelity", "top1")]
    assert gates_needed(tests, "suite") == {CASE: {"fidelity", "top1"}}


def test_other_tests_may_look_at_all_gates() -> None:
    tests = [item("suite", "clip_judgement", clip_gate="top1"), item("mine", "clip_judgement")]
    assert gates_needed(tests, "suite") == {CASE: set(NAMES)}


def test_a_test_without_a_judgement_needs_no_gate() -> None:
    other = SimpleNamespace(fixturenames=["clip_judgement"])  # as a doctest, without parameters
    tests: list[Any] = [item("mine", "clip_reference"), other]
    assert gates_needed(tests, "suite") == {}
