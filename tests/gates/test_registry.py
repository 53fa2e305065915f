from __future__ import annotations

import pytest

from clipcheck.errors import UsageError
from clipcheck.gates.registry import GATES, NAMES, aside, gates_in, gates_named
from clipcheck.gates.result import GateResult
from clipcheck.gates.tolerances import LIMITS


def test_each_gate_is_described_in_sentences_of_its_own() -> None:
    for gate in GATES:
        for text in (gate.title, gate.passes_when, gate.explanation, gate.remedy):
            assert text.endswith(".")
            assert "  " not in text
    assert len({gate.explanation for gate in GATES}) == len(GATES)


def test_a_file_by_itself_is_judged_by_these() -> None:
    half = ("integrity", "allclose", "precision", "top1", "repeatability")
    single = ("integrity", "allclose", "fidelity", "modules", "top1", "repeatability")
    found = {dtype: gates_in(dtype, modules=True) for dtype in LIMITS}
    assert found == {"float32": single, "float16": half, "bfloat16": half}
    assert gates_in("float32", modules=False) == tuple(g for g in single if g != "modules")


def test_logits_and_a_reference_have_gates_of_their_own() -> None:
    assert gates_in("float32", modules=False, reference=True, logits=False) == (
        "weights", "integrity", "fidelity", "repeatability"
    )  # fmt: skip


def test_a_budget_has_a_gate_of_its_own_and_others_judge_nothing_beside_it() -> None:
    gates = gates_in("float32", modules=True, budget=True)
    assert set(gates) - set(gates_in("float32", modules=True)) == {"budget"}
    failed = {
        name: GateResult(name=name, passed=False, message="off", margin=2.0) for name in gates
    }
    judging = [name for name in gates if not aside(failed[name]).passed]
    assert judging == ["integrity", "budget", "repeatability"]
    assert aside(failed["fidelity"]).message == "cannot fail with a budget; off"
    assert [aside(failed[name]).margin for name in gates] == [2.0] * len(gates)


def test_gates_are_all_those_selected_or_all_but_those_ignored_in_their_order() -> None:
    assert gates_named([], []) == NAMES
    assert gates_named(["top1", "allclose"], []) == ("allclose", "top1")
    assert gates_named(["top1", "allclose"], ["top1"]) == ("allclose",)
    assert "modules" not in gates_named([], ["modules"])


@pytest.mark.parametrize("given", [(["fidelty"], []), ([], ["fidelty"])])
def test_an_unknown_gate_is_answered_with_the_nearest(
    given: tuple[list[str], list[str]],
) -> None:
    with pytest.raises(UsageError, match=r"found 'fidelty'\. The nearest name is 'fidelity'; all"):
        gates_named(*given)


def test_selecting_no_gate_is_refused() -> None:
    with pytest.raises(UsageError, match="expected at least one gate"):
        gates_named(["top1"], ["top1"])
