from __future__ import annotations

import subprocess
import sys

import pytest

from clipcheck.gates.registry import GATES, NAMES, Gate
from conftest import Run


@pytest.mark.parametrize("gate", GATES, ids=NAMES)
def test_explain_describes_a_gate(run: Run, gate: Gate) -> None:
    done = run("explain", gate.name)
    assert (done.code, done.err) == (0, "")
    told = " ".join(done.out.split())
    for text in (gate.title, gate.passes_when, gate.explanation, gate.remedy):
        assert " ".join(text.split()) in told
    assert max(len(line) for line in done.out.splitlines()) <= 80


def test_without_a_name_all_are_listed_in_their_order(run: Run) -> None:
    lines = run("explain").out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)


def test_an_unknown_gate_is_answered_with_the_nearest(run: Run) -> None:
    done = run("explain", "fidelty")
    assert done.code == 2
    assert done.err.startswith(
        "clipcheck: expected a gate, found 'fidelty'. The nearest name is 'fidelity'; all of them: "
        "weights, integrity, "
    )


def test_explain_imports_neither_torch_nor_numpy() -> None:
    """Neither torch nor numpy is needed to read a text."""
    code = (
        "import sys; from clipcheck.cli.app import app; app(['explain', 'top1'], "
        "standalone_mode=False); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
