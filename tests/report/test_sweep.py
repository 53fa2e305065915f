from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

from rich.cells import cell_len

from clipcheck.gates.result import GateResult
from clipcheck.report import evidence
from clipcheck.report import sweep as report
from clipcheck.results.history import read_results
from clipcheck.results.judgement import Result
from clipcheck.sweep.catalogue import Entry
from clipcheck.sweep.found import Found, Performed
from clipcheck.sweep.jobs import Job, Source
from clipcheck.sweep.ledger import Ledger
from clipcheck.sweep.run import Swept, run
from tests.report import failed, saved_in
from tests.results.test_document import require_valid
from tests.sweep.samples import Stage, changed, failing, files, passing, planned


def swept(folder: Path, entries: list[Entry] | None = None) -> Swept:
    """Return four checkpoints: one passes, one fails, one could not be judged, one is missing."""

    def judge(job: Job) -> Performed:
        if job.label == "model-01.pt":
            told = failing(job)
            figures = {"logits": {"rmse": math.nan}}
            gates = [
                GateResult(
                    name="integrity", passed=False, message="NaN", figures=figures, margin=math.inf
                )
            ]
            gates += told.units[""].results[0].gates
            return changed(told, "", gates=tuple(gates))
        if job.label == "model-02.pt":
            return changed(failing(job), "", error="no archive. Give one.", gates=())
        if job.label == "model-03.pt":
            return Performed(failed="the network is gone")
        return passing(job)

    with Ledger(folder / "ledger") as ledger:
        plan = planned(entries or files(folder / "files", 4), ledger)
        return run(plan, Stage(judge, 2), ledger)


def test_there_is_a_line_for_each_with_its_verdict_worst_gate_and_cost(tmp_path: Path) -> None:
    lines = report.render(swept(tmp_path)).splitlines()
    assert [line.split() for line in lines[:5]] == [
        ["checkpoint", "verdict", "worst", "gate", "seconds", "fetched", "memory"],
        ["model-00.pt", "consistent", "fidelity", "25%", "1.5", "-", "1.0", "GB"],
        ["model-01.pt", "INCONSISTENT", "integrity", "1.5", "-", "1.0", "GB"],
        ["model-02.pt", "not", "judged", "1.5", "-", "1.0", "GB"],
        ["model-03.pt", "not", "judged", "-", "-", "-"],
    ]


def test_quiet_says_in_a_line_why_each_did_not_pass(tmp_path: Path) -> None:
    assert report.brief(swept(tmp_path)).plain.splitlines()[:-2] == [
        "model-01.pt: FAIL  integrity: NaN. Also: fidelity.",
        "model-02.pt: not judged: no archive. Give one.",
        "model-03.pt: not judged: the network is gone",
    ]


def test_quiet_names_the_way_where_there_are_several(tmp_path: Path) -> None:
    entries = files(tmp_path / "files", 2)
    entries[1] = replace(entries[1], dtypes=("float32", "float16"))
    lines = report.brief(swept(tmp_path, entries)).plain.splitlines()
    assert lines[:2] == [
        f"model-01.pt jit cpu {dtype}: FAIL  integrity: NaN. Also: fidelity."
        for dtype in ("float32", "float16")
    ]


def test_a_checkpoint_that_did_not_pass_has_a_reason_and_a_remedy(tmp_path: Path) -> None:
    text = report.render(swept(tmp_path))
    assert "FAIL  fidelity: far" in text
    assert "not judged: no archive. Give one." in text
    assert "not judged: the network is gone" in text
    assert "INCONSISTENT: 1 of 4 checkpoints differs between JIT and eager, 2 could not be" in text
    assert "Worst: model-01.pt: integrity." in " ".join(text.split())
    assert "3 judged in" in text
    assert "1 could not be judged for reasons that may be temporary" in text
    assert "clipcheck check" in text


def test_no_line_is_wider_than_a_terminal_whatever_the_names(tmp_path: Path) -> None:
    entries = files(tmp_path / "files", 4)
    entries[0] = replace(entries[0], label="犬" * 60 + "\x1b[2J.pt", dtypes=("float32", "float16"))
    text = report.render(swept(tmp_path, entries))
    assert "\x1b" not in text
    assert "float16" in text
    assert max(cell_len(line) for line in text.splitlines() if "clipcheck check" not in line) <= 80


def test_the_document_is_one_of_schema_1_that_can_be_compared(tmp_path: Path) -> None:
    document = report.render_json(swept(tmp_path))
    require_valid(json.loads(document))
    (tmp_path / "results.json").write_text(document)
    entries = read_results(tmp_path / "results.json").entries
    assert [entry.state for entry in entries] == ["passed", "failed", "unjudged", "unjudged"]
    known = json.loads(document)
    assert known["passed"] is False
    assert known["results"][0]["cost"]["worker"] == "worker 0"
    assert known["results"][3]["problem"] == "the network is gone"
    assert known["sweep"]["workers"] == 2


def test_a_sweep_is_converted_to_a_result(tmp_path: Path) -> None:
    result = report.result(swept(tmp_path))
    assert [judgement.passed for judgement in result.judgements] == [True, False, False, False]
    assert result.judgements[1].gates[0].margin == float("inf")
    assert result.judgements[2].error == "no archive. Give one."
    assert result.exit_code == 2


def test_what_is_left_out_is_reported_once_for_each_reason(tmp_path: Path) -> None:
    entries = files(tmp_path / "files", 1)
    none = Source("url", "")
    entries += [
        Entry(label=f"model/{n}", source=none, unfit="it is another model") for n in range(3)
    ]
    done = swept(tmp_path, entries)
    assert "3 left out: it is another model" in report.render(done)
    assert report.result(done).exit_code == 0
    assert len(json.loads(report.render_json(done))["left_out"]) == 3


def test_a_checkpoint_asked_for_by_name_and_among_all_is_listed_once(tmp_path: Path) -> None:
    (entry,) = files(tmp_path / "files", 1)
    done = swept(tmp_path, [replace(entry, backends=("jit",)), replace(entry, backends=("all",))])
    names = [row.unit.backend for row in done.rows]
    assert names == ["jit", "all"]
    rows = [
        replace(row, found=Found((replace(row.found.results[0], backend="jit"),)))
        for row in done.rows
    ]
    done = replace(done, rows=rows)
    assert len(report.result(done).judgements) == 1


def test_a_sweep_of_nothing_is_not_judged(tmp_path: Path) -> None:
    done = swept(
        tmp_path, [Entry(label="model/0", source=Source("url", ""), unfit="it is another model")]
    )
    assert report.result(done).exit_code == 2
    assert "NOT JUDGED" in report.render(done)


def test_a_plan_shows_the_order_the_bytes_and_the_time(tmp_path: Path) -> None:
    entries = files(tmp_path / "files", 2)
    known = Source("url", "https://example.org/model.pt", size=3_000_000_000)
    entries += [
        Entry(label="known", source=known),
        Entry(label="guess", source=replace(known, place="x", estimated=True)),
    ]
    entries += [Entry(label="unknown", source=Source("url", "https://example.org/other.pt"))]
    with Ledger(tmp_path / "ledger") as ledger:
        run(planned(entries[:1], ledger), Stage(passing), ledger)
        text = report.plan_text(planned(entries, ledger), workers=2, threads=2)
        nothing = report.plan_text(planned(entries[:1], ledger), workers=2, threads=2)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["guess", "known", "model-01.pt", "unknown"]
    assert "~3.0 GB" in lines[1]
    assert " 3.0 GB" in lines[2]
    assert " - " in lines[3]
    assert lines[4].split()[2:] == ["unknown", "default"]
    assert "5 runs to judge, of which the ledger already has 1." in text
    assert "6.0 GB to fetch." in text
    told = " ".join(text.split())
    assert re.search(
        r"About \S+ \w+ with 2 workers of 2 threads each; \S+ \w+ with 8, \S+ \w+ with 64\. Meas",
        told,
    )
    assert "About" not in nothing


def test_a_page_a_text_and_json_are_kept(tmp_path: Path) -> None:
    done = swept(tmp_path)
    old = evidence.keep_inputs(Result((saved_in(None, failed()),), {}), tmp_path / "failing-inputs")
    assert Path(str(old.judgements[0].saved)).is_dir()
    evidence.keep_sweep(done, tmp_path)
    assert not (tmp_path / "failing-inputs").exists()
    assert (tmp_path / "report.txt").read_text() == report.render(done) + "\n"
    assert (tmp_path / "results.json").read_text() == report.render_json(done)
    page = (tmp_path / "report.html").read_text()
    assert all(f"model-0{number}.pt" in page for number in range(4))
