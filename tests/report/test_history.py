from __future__ import annotations

import json
import math
from dataclasses import replace

from clipcheck.gates.result import GateResult
from clipcheck.report.history import render, render_json
from clipcheck.results.history import Run, compare
from clipcheck.results.judgement import Record

SOUND = Record(
    checkpoint="model.pt",
    sha256="ab" * 32,
    backend="jit",
    device="cpu",
    dtype="float32",
    error=None,
    examples=30,
    seed=0,
    gates=(
        GateResult(name="fidelity", passed=True, message="near", margin=0.2),
        GateResult(name="modules", passed=True, message="near", margin=0.1),
    ),
)
BROKEN = replace(
    SOUND,
    gates=(
        GateResult(name="fidelity", passed=False, message="12 times further", margin=12.3),
        GateResult(name="modules", passed=True, message="near", margin=0.8),
    ),
)
GONE = replace(SOUND, checkpoint="gone.pt", sha256=None, error="it is not there", gates=())


def run(*entries: Record, torch: str = "2.9.1") -> Run:
    return Run(f"{torch}.json", {"torch": torch, "python": "3.11"}, entries)


def test_a_comparison_reads_as_follows() -> None:
    lost = replace(SOUND, checkpoint="gone.pt", sha256="cd" * 32)
    same = replace(SOUND, checkpoint="same.pt", sha256="ef" * 32)
    fixed = replace(BROKEN, checkpoint="fixed.pt", sha256="01" * 32)
    old = run(same, SOUND, lost, fixed)
    new = run(
        same,
        replace(SOUND, checkpoint="fixed.pt", sha256="23" * 32),
        BROKEN,
        GONE,
        replace(BROKEN, checkpoint="more.pt", sha256="45" * 32),
        torch="2.14.1",
    )
    assert render(compare(old, new)).splitlines() == [
        "versions and machine",
        "  torch 2.9.1 -> 2.14.1",
        "",
        "new failure: model.pt, jit on cpu in float32",
        "  fidelity: passed 20 % of the limit -> FAILED 12x the limit",
        "    12 times further",
        "  modules: nearer to its limit: passed 10 % of the limit -> passed 80 % of the limit",
        "",
        "new failure: more.pt, jit on cpu in float32",
        "  fidelity: FAILED 12x the limit",
        "    12 times further",
        "",
        "newly unjudged: gone.pt, jit on cpu in float32",
        "  it is not there",
        "",
        "fixed: fixed.pt, jit on cpu in float32",
        "  SHA-256 changed: 0101010101010101 -> 2323232323232323",
        "  fidelity: FAILED 12x the limit -> passed 20 % of the limit",
        "  modules: further from its limit: passed 80 % of the limit -> passed 10 % of the limit",
        "",
        "WORSE: 2 new failures, 1 newly unjudged, 1 fixed, 1 passes as before, margins shrank "
        "in 1.",
    ]


def test_an_unchanged_pass_is_shown_only_if_something_else_changed() -> None:
    assert render(compare(run(SOUND), run(SOUND))) == "NOT WORSE: 1 passes as before."
    assert render(compare(run(SOUND), run(replace(SOUND, seed=3)))).splitlines() == [
        "passes as before: model.pt, jit on cpu in float32",
        "  seed changed: 0 -> 3",
        "",
        "NOT WORSE: 1 passes as before.",
    ]
    drawn = [run(replace(SOUND, inputs=letter * 32)) for letter in "ab"]
    told = f"\n  inputs changed: {'a' * 16} -> {'b' * 16}\n"
    assert told in render(compare(*drawn))


def test_new_and_missing_gates_are_named() -> None:
    other = replace(SOUND, gates=(SOUND.gates[0], replace(BROKEN.gates[0], name="precision")))
    text = render(compare(run(SOUND), run(other)))
    assert "\n  modules: no longer judged\n" in text
    assert "\n  precision: not judged before\n  precision: FAILED 12x the limit\n" in text


def test_names_from_a_file_cannot_steer_a_terminal() -> None:
    odd = replace(GONE, checkpoint="\x1b[2J", dtype=None, error="\x1b]0;x\x07")
    gate = GateResult(name="\x1b[1m", passed=False, message="\x1b[3m", margin=2.0)
    odd_gates = replace(BROKEN, gates=(gate,))
    entries = (odd_gates, odd, replace(odd, device="\x1b"))
    old, new = (Run("\x1b", {"\x1b": f"\x1b{number}"}, entries) for number in range(2))
    text = render(compare(replace(old, entries=(SOUND,)), new))
    assert "\x1b" not in text


def test_the_document_says_the_same() -> None:
    old = run(SOUND, replace(GONE, checkpoint="only-old.pt"))
    new = run(replace(BROKEN, checkpoint="b/model.pt", seed=3), torch="2.14.1")
    document = json.loads(render_json(compare(old, new)))
    first, second = document.pop("results")
    assert document == {
        "schema": 1,
        "worse": True,
        "old": "2.9.1.json",
        "new": "2.14.1.json",
        "versions": [{"name": "torch", "old": "2.9.1", "new": "2.14.1"}],
    }
    assert first == {
        "checkpoint": "b/model.pt",
        "backend": "jit",
        "device": "cpu",
        "dtype": "float32",
        "outcome": "new failure",
        "old": {"checkpoint": "model.pt", "state": "passed", "error": None},
        "new": {"checkpoint": "b/model.pt", "state": "failed", "error": None},
        "conditions": [{"name": "seed", "old": "0", "new": "3"}],
        "gates": [
            {
                "name": "fidelity",
                "change": "failed",
                "old": {"passed": True, "judged": True, "margin": 0.2},
                "new": {"passed": False, "judged": True, "margin": 12.3},
            },
            {
                "name": "modules",
                "change": "shrunk",
                "old": {"passed": True, "judged": True, "margin": 0.1},
                "new": {"passed": True, "judged": True, "margin": 0.8},
            },
        ],
    }
    assert (second["checkpoint"], second["outcome"]) == ("only-old.pt", "only in old")
    assert second["new"] is None


def test_the_document_has_the_dtype_of_whichever_run_knows_it() -> None:
    unopened = replace(GONE, checkpoint="model.pt", dtype=None)
    for pair in ((SOUND, unopened), (unopened, SOUND)):
        (entry,) = json.loads(render_json(compare(*map(run, pair))))["results"]
        assert entry["dtype"] == "float32"


def test_a_margin_beyond_any_limit_is_null() -> None:
    lost = replace(
        BROKEN, gates=(GateResult(name="fidelity", passed=False, message="NaN", margin=math.inf),)
    )
    text = render_json(compare(run(SOUND), run(lost)))
    assert json.loads(text)["results"][0]["gates"][0]["new"]["margin"] is None
