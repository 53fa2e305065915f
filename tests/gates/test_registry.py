from __future__ import annotations

from clipcheck.gates.registry import GATES, gates_in
from clipcheck.gates.tolerances import LIMITS


def test_each_gate_is_told_in_sentences_of_its_own() -> None:
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
