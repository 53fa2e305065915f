from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipcheck.errors import ResultsError
from clipcheck.gates.registry import UNMEASURED
from clipcheck.gates.result import GateResult
from clipcheck.results import history
from clipcheck.results.document import render
from clipcheck.results.history import (
    Compared,
    Difference,
    Run,
    compare,
    read_results,
)
from clipcheck.results.judgement import Judgement, LeftOut, Result
from tests.report import (
    ENVIRONMENT,
    PASSED,
    failed,
    failing_result,
    several_backends,
    unjudged,
)

FAILED = replace(failed("model.pt"), localisation=None)
UNJUDGED = replace(unjudged("model.pt"), dtype=None)


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Run]:
    """Write judgements as a run, and read them back."""

    def written(*judgements: Judgement) -> Run:
        path = tmp_path / f"{len([*tmp_path.iterdir()])}.json"
        path.write_text(render(Result(judgements, ENVIRONMENT)), encoding="utf-8")
        return read_results(path)

    return written


RunOf = Callable[..., Run]


def gated(*gates: GateResult, **others: Any) -> Judgement:
    return replace(PASSED, gates=gates, **others)


def outcomes(difference: Difference) -> list[tuple[str, str]]:
    return [(each.title, each.outcome) for each in difference.compared]


def only(difference: Difference) -> Compared:
    (compared,) = difference.compared
    return compared


def test_what_a_check_wrote_is_read(run_of: RunOf) -> None:
    run = run_of(*failing_result().judgements)
    assert run.environment == ENVIRONMENT
    passing, failing, missing = run.entries
    assert (passing.state, failing.state, missing.state) == ("passed", "failed", "unjudged")
    assert passing.title == "release/model.pt, jit on cpu in float32"
    assert (passing.sha256, passing.examples, passing.seed) == ("ab" * 32, 8, 0)
    assert [(gate.name, gate.margin) for gate in passing.gates] == [
        ("integrity", 0.0), ("fidelity", 0.37)
    ]  # fmt: skip
    assert missing.error is not None


def test_a_margin_that_json_cannot_write_is_beyond_any_limit(run_of: RunOf) -> None:
    run = run_of(gated(GateResult(name="fidelity", passed=False, message="NaN", margin=math.inf)))
    assert run.entries[0].gates[0].margin == math.inf


@pytest.mark.parametrize(
    ("before", "after", "outcome", "worse"),
    [
        (PASSED, PASSED, "passes as before", False),
        (PASSED, FAILED, "new failure", True),
        (PASSED, UNJUDGED, "newly unjudged", True),
        (FAILED, PASSED, "fixed", False),
        (FAILED, FAILED, "still failing", False),
        (FAILED, UNJUDGED, "newly unjudged", True),
        (UNJUDGED, PASSED, "fixed", False),
        (UNJUDGED, FAILED, "new failure", True),
        (UNJUDGED, UNJUDGED, "still unjudged", False),
    ],
)
def test_changes_of_a_checkpoint_are_classified(
    run_of: RunOf, before: Judgement, after: Judgement, outcome: str, worse: bool
) -> None:
    difference = compare(run_of(before), run_of(after))
    assert only(difference).outcome == outcome
    assert difference.worse is worse


def test_one_more_gate_that_fails_is_a_new_failure(run_of: RunOf) -> None:
    allclose = GateResult(name="allclose", passed=True, message="agree", margin=0.1)
    broken = replace(allclose, passed=False, margin=4.0)
    old = run_of(replace(FAILED, gates=(*FAILED.gates, allclose)))
    new = run_of(replace(FAILED, gates=(*FAILED.gates, broken)))
    assert only(compare(old, new)).outcome == "new failure"
    assert only(compare(new, old)).outcome == "still failing"
    assert [(gate.name, gate.change) for gate in only(compare(new, old)).gates] == [
        ("allclose", "fixed")
    ]


def test_what_is_only_in_one_run_is_reported_and_what_fails_there_is_new(run_of: RunOf) -> None:
    other = replace(PASSED, checkpoint="other.pt", sha256="cd" * 32)
    small, large = run_of(PASSED), run_of(PASSED, other)
    assert outcomes(compare(small, large))[1] == (
        "other.pt, jit on cpu in float32", "only in new"
    )  # fmt: skip
    assert outcomes(compare(large, small))[1][1] == "only in old"
    assert not compare(small, large).worse
    assert not compare(large, small).worse
    for bad in (failed("other.pt"), unjudged("other.pt")):
        assert compare(small, run_of(PASSED, replace(bad, sha256=None))).worse


def test_a_checkpoint_is_known_by_the_name_of_its_file_in_any_folder(run_of: RunOf) -> None:
    moved = replace(FAILED, checkpoint=r"D:\elsewhere\model.pt", sha256="cd" * 32)
    assert outcomes(compare(run_of(PASSED), run_of(moved))) == [
        (r"D:\elsewhere\model.pt, jit on cpu in float32", "new failure")
    ]


def test_of_several_files_of_one_name_the_path_decides_and_then_the_contents(
    run_of: RunOf,
) -> None:
    def at(folder: str, contents: str) -> Judgement:
        return replace(PASSED, checkpoint=f"{folder}/model.pt", sha256=contents * 32)

    old = run_of(at("a", "aa"), at("b", "bb"), at("c", "cc"))
    new = run_of(at("d", "cc"), at("b", "aa"), at("e", "ee"))
    found = [
        (each.old and each.old.checkpoint, each.new and each.new.checkpoint)
        for each in compare(old, new).compared
    ]
    assert found == [
        ("c/model.pt", "d/model.pt"),
        ("b/model.pt", "b/model.pt"),
        (None, "e/model.pt"),
        ("a/model.pt", None),
    ]


def test_a_file_that_was_renamed_is_known_by_what_is_in_it(run_of: RunOf) -> None:
    renamed = replace(PASSED, checkpoint="new-name.pt")
    assert only(compare(run_of(PASSED), run_of(renamed))).outcome == "passes as before"


def test_seeded_weights_are_known_where_their_worker_died(run_of: RunOf) -> None:
    seeded = replace(PASSED, checkpoint="tiny-vit (seeded weights)")
    died = replace(UNJUDGED, checkpoint="tiny-vit", dtype="float32")
    assert only(compare(run_of(seeded), run_of(died))).outcome == "newly unjudged"


def test_dtypes_devices_and_backends_are_distinguished(run_of: RunOf) -> None:
    half = replace(FAILED, checkpoint=PASSED.checkpoint, dtype="float16")
    old, new = run_of(PASSED, half), run_of(half, PASSED)
    assert [outcome for _, outcome in outcomes(compare(old, new))] == [
        "still failing", "passes as before"
    ]  # fmt: skip
    for other in ({"device": "cuda:0"}, {"backend": "export"}):
        difference = compare(
            run_of(PASSED), run_of(PASSED, replace(half, dtype="float32", **other))
        )
        assert [each.outcome for each in difference.compared] == [
            "passes as before", "new failure"
        ]  # fmt: skip


def test_a_checkpoint_that_was_not_opened_matches_every_dtype(run_of: RunOf) -> None:
    half = replace(PASSED, dtype="float16")
    both, neither = run_of(PASSED, half), run_of(UNJUDGED)
    assert outcomes(compare(both, neither)) == [
        ("release/model.pt, jit on cpu in float32", "newly unjudged"),
        ("release/model.pt, jit on cpu in float16", "newly unjudged"),
    ]
    assert outcomes(compare(neither, both)) == [
        ("release/model.pt, jit on cpu in float32", "fixed"),
        ("release/model.pt, jit on cpu in float16", "fixed"),
    ]


def test_runs_that_have_nothing_in_common_cannot_be_compared(run_of: RunOf) -> None:
    other = replace(PASSED, checkpoint="other.pt", sha256="cd" * 32)
    with pytest.raises(ResultsError, match="Compare two runs of the same checkpoints"):
        compare(run_of(PASSED), run_of(other))


def test_versions_that_changed_came_or_went_are_reported(run_of: RunOf) -> None:
    old = replace(run_of(PASSED), environment={"torch": "2.9.1", "numpy": "1", "cpus": "2"})
    new = replace(run_of(PASSED), environment={"torch": "2.14.1", "cpus": "2", "pillow": "3"})
    assert compare(old, new).versions == [
        ("torch", "2.9.1", "2.14.1"), ("numpy", "1", None), ("pillow", None, "3")
    ]  # fmt: skip


def test_another_file_seed_or_number_of_examples_is_reported(run_of: RunOf) -> None:
    other = replace(PASSED, sha256="cd" * 32, seed=3, examples=9)
    assert only(compare(run_of(PASSED), run_of(other))).conditions == [
        ("SHA-256", "ab" * 32, "cd" * 32), ("seed", "0", "3"), ("examples", "8", "9")
    ]  # fmt: skip
    assert only(compare(run_of(PASSED), run_of(UNJUDGED))).conditions == []


def test_other_inputs_are_reported_if_both_runs_know_theirs(run_of: RunOf) -> None:
    one, other = (replace(PASSED, inputs=letter * 32) for letter in "ab")
    assert only(compare(run_of(one), run_of(one))).conditions == []
    assert only(compare(run_of(one), run_of(other))).conditions == [
        ("inputs", "a" * 32, "b" * 32)
    ]  # fmt: skip
    assert only(compare(run_of(one), run_of(PASSED))).conditions == []


def test_gates_that_appear_or_disappear_are_reported(run_of: RunOf) -> None:
    one, other = (
        gated(GateResult(name=name, passed=True, message="m")) for name in ("modules", "precision")
    )
    assert [(g.name, g.change) for g in only(compare(run_of(one), run_of(other))).gates] == [
        ("modules", "disappeared"), ("precision", "appeared")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (0.2, 0.49, None),
        (0.0, 0.0, None),
        (0.0, 0.19, "shrunk"),
        (0.2, 0.6, "shrunk"),
        (0.6, 0.2, "grown"),
        (20.0, 200.0, "shrunk"),
        (20.0, math.inf, "shrunk"),
        (math.inf, math.inf, None),
    ],
)
def test_a_margin_moves_where_it_does_by_more_than_its_noise(
    run_of: RunOf, before: float, after: float, change: str | None
) -> None:
    old, new = (
        run_of(gated(GateResult(name="fidelity", passed=margin <= 1, message="m", margin=margin)))
        for margin in (before, after)
    )
    difference = compare(old, new)
    assert [gate.change for gate in only(difference).gates] == [change] * (change is not None)
    assert not difference.worse


def test_a_gate_that_was_not_measured_has_the_noise_of_the_widest(run_of: RunOf) -> None:
    def at(margin: float) -> Run:
        return run_of(gated(GateResult(name="new-gate", passed=True, message="m", margin=margin)))

    assert only(compare(at(0.2), at(0.2 * UNMEASURED * 0.99))).gates == []
    assert only(compare(at(0.2), at(0.2 * UNMEASURED * 1.01))).gates != []


def entry(document: Any) -> Any:
    return document["results"][0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: d.update(schema=2), "it has schema 2; this clipcheck reads schema 1"),
        (lambda d: d.update(schema=True), "schema is true or false in place of an integer"),
        (lambda d: d.pop("schema"), "the field schema is missing"),
        (lambda d: d.pop("results"), "the field results is missing"),
        (lambda d: d.update(results=[]), "it has no results"),
        (lambda d: d.update(results={}), "results is an object in place of a list"),
        (lambda d: d.update(results=[3]), r"results\[0\] is an integer in place of an object"),
        (lambda d: d.update(environment=[]), "environment is a list in place of an object"),
        (
            lambda d: d["environment"].update(torch=2),
            r"environment\[...\] is an integer in place of a text",
        ),
        (
            lambda d: entry(d).update(passed=1),
            r"results\[0\].passed is an integer in place of true or false",
        ),
        (
            lambda d: entry(d).update(passed=False),
            r"results\[0\] is wrong: passed is false, but its gates say otherwise",
        ),
        (
            lambda d: entry(d).update(seed=1.5),
            r"results\[0\].seed is a number in place of an integer",
        ),
        (
            lambda d: entry(d).update(dtype=1),
            r"results\[0\].dtype is an integer in place of a text or null",
        ),
        (lambda d: entry(d).pop("seed"), r"the field results\[0\].seed is missing"),
        (
            lambda d: entry(d)["gates"][1].pop("margin"),
            r"the field results\[0\].gates\[1\].margin is missing",
        ),
        (
            lambda d: entry(d)["gates"][1].update(margin="0.5"),
            r"results\[0\].gates\[1\].margin is a text in place of a number",
        ),
        (
            lambda d: entry(d)["gates"][1].update(margin=-1),
            r"results\[0\], fidelity: a margin is at least 0, found -1",
        ),
        (
            lambda d: entry(d)["gates"][1].update(margin=math.nan),
            "NaN is no number that JSON has",
        ),
        (
            lambda d: d["results"].append(entry(d)),
            "two results for release/model.pt, jit on cpu in float32",
        ),
    ],
)
def test_a_field_that_is_not_as_it_should_be_is_named(
    tmp_path: Path, spoil: Callable[[Any], object], message: str
) -> None:
    document = json.loads(render(failing_result()))
    spoil(document)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ResultsError, match=message) as caught:
        read_results(path)
    assert str(caught.value).startswith(f"{path}: expected the results of a check, but ")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (render(failing_result()).encode()[:900], "it is no JSON, or cut off"),
        (b"", "it is no JSON, or cut off"),
        (b"PK\x03\x04\xaa\xff", "it is no JSON, or cut off"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"a":' * 100_000, "it is nested too deeply"),
        (b"[1, 2]", "it is a list in place of an object"),
        (b'{"schema": 1, "schema": 1}', "the field 'schema' is there twice"),
        (b'{"schema": ' + b"1" * 5000 + b"}", "it has schema inf; this clipcheck reads schema 1"),
    ],
)
def test_a_file_that_is_something_else_is_refused(
    tmp_path: Path, contents: bytes, message: str
) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(contents)
    with pytest.raises(ResultsError, match=message):
        read_results(path)


def test_a_missing_file_a_folder_and_a_file_that_is_too_large_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ResultsError, match="cannot be read"):
        read_results(tmp_path / "gone.json")
    with pytest.raises(ResultsError, match="cannot be read"):
        read_results(tmp_path)
    path = tmp_path / "results.json"
    path.write_text(render(failing_result()), encoding="utf-8")
    monkeypatch.setattr(history, "MOST_BYTES", path.stat().st_size)
    read_results(path)
    monkeypatch.setattr(history, "MOST_BYTES", path.stat().st_size - 1)
    with pytest.raises(ResultsError, match="it has more than"):
        read_results(path)


def test_a_file_redirected_by_powershell_is_read(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(render(failing_result()), encoding="utf-16")
    assert len(read_results(path).entries) == 3


def test_the_sample_of_schema_1_is_read() -> None:
    sample = Path(__file__).parent / "data" / "results-1.json"
    assert [each.state for each in read_results(sample).entries] == ["passed", "failed", "unjudged"]


def test_backends_of_one_checkpoint_are_matched_each_with_its_own(tmp_path: Path) -> None:
    before, after = several_backends(), several_backends()
    jit, slow, broken, shy = after.judgements
    fixed = replace(slow, gates=jit.gates, failing=None, failing_example=None)
    after = replace(after, judgements=(shy, broken, fixed, failed(jit.checkpoint)))
    paths = tmp_path / "old.json", tmp_path / "new.json"
    for path, each in zip(paths, (before, after), strict=True):
        path.write_text(render(each), encoding="utf-8")
    difference = compare(*map(read_results, paths))
    where = "on cpu in float32"
    assert outcomes(difference) == [
        (f"release/model.pt, clip {where}", "passes as before"),
        (f"release/model.pt, onnxruntime {where}", "still unjudged"),
        (f"release/model.pt, transformers:attention=eager {where}", "fixed"),
        (f"release/model.pt, jit {where}", "new failure"),
    ]


def test_a_backend_that_is_now_left_out_is_reported_and_is_not_worse(tmp_path: Path) -> None:
    old, new = several_backends(), several_backends()
    *others, shy = new.judgements
    gone = LeftOut(shy.checkpoint, shy.backend, shy.device, "float32", "it is not installed")
    new = replace(new, judgements=tuple(others), left_out=(*new.left_out, gone))
    paths = tmp_path / "old.json", tmp_path / "new.json"
    for path, each in zip(paths, (old, new), strict=True):
        path.write_text(render(each), encoding="utf-8")
    difference = compare(*map(read_results, paths))
    assert outcomes(difference)[-1] == ("release/model.pt, clip on cpu in float32", "only in old")
    assert not difference.worse


def test_results_written_before_other_backends_existed_are_compared_with_new_ones(
    tmp_path: Path,
) -> None:
    sample = Path(__file__).parent / "data" / "results-1.json"
    document = json.loads(sample.read_text(encoding="utf-8"))
    assert "left_out" not in document
    first = document["results"][0]
    assert "known" not in first
    now = json.loads(render(several_backends()))
    for each in now["results"]:
        each["checkpoint"] = first["checkpoint"]
    path = tmp_path / "new.json"
    path.write_text(json.dumps(now), encoding="utf-8")
    found = compare(read_results(sample), read_results(path)).compared
    assert [each.outcome for each in found if each.old and each.new] == ["passes as before"]
    assert [each.new.backend for each in found if not each.old and each.new] == [
        "transformers:attention=eager", "onnxruntime", "clip"
    ]  # fmt: skip


def test_many_checkpoints_take_no_longer_each(run_of: RunOf) -> None:
    many = run_of(*(replace(PASSED, checkpoint=f"{n}.pt") for n in range(3000)))
    began = time.perf_counter()
    found = compare(many, many)
    assert len(found.compared) == 3000
    # 0.1 s where nothing else runs; it took a minute when each looked through all again.
    assert time.perf_counter() - began < 5
