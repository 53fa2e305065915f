from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clipcheck.sweep.catalogue import Entry
from clipcheck.sweep.found import Performed
from clipcheck.sweep.jobs import Job, Source
from clipcheck.sweep.ledger import Ledger
from clipcheck.sweep.run import LOSSES, Swept, run
from clipcheck.system.processes import Outcome
from tests.sweep.samples import (
    Stage,
    changed,
    failing,
    files,
    passing,
    planned,
    rows,
)

Judge = Callable[[Job], Performed | Outcome]


def swept(
    folder: Path, entries: list[Entry], judge: Judge, count: int = 1, disk: int | None = None
) -> tuple[Swept, Stage]:
    """Sweep with the ledger of a folder."""
    stage = Stage(judge, count)
    with Ledger(folder / "ledger") as ledger:
        plan = planned(entries, ledger, folder / "scratch")
        return run(plan, stage, ledger, disk=disk), stage


def states(done: Swept) -> list[str]:
    return [row.state for row in done.rows]


def fates(folder: Path) -> list[str]:
    return [fate for (fate,) in rows(folder / "ledger", "SELECT fate FROM attempts")]


def verdicts(folder: Path) -> int:
    ((count,),) = rows(folder / "ledger", "SELECT count(*) FROM verdicts")
    return int(count)


def died(job: Job) -> Outcome:
    return Outcome(job.number, "died", "worker 0", reason="it was ended by SIGKILL")


def lost(job: Job) -> Outcome:
    return Outcome(job.number, "lost", "worker 0", reason="the node is gone")


def test_each_checkpoint_is_judged_once_and_reported_in_the_order_of_the_catalogue(
    tmp_path: Path,
) -> None:
    entries = files(tmp_path / "files", 5)
    done, stage = swept(tmp_path, entries, passing, count=2)
    assert [row.unit.entry for row in done.rows] == entries
    assert states(done) == ["consistent"] * 5
    assert sorted(job.label for job in stage.begun) == [entry.label for entry in entries]
    assert stage.most == 2
    assert verdicts(tmp_path) == 5


def test_a_judged_checkpoint_is_not_judged_again(tmp_path: Path) -> None:
    entries = files(tmp_path / "files", 3)
    first, _ = swept(tmp_path, entries[:2], failing)
    second, stage = swept(tmp_path, entries, passing)
    assert [job.label for job in stage.begun] == [entries[2].label]
    assert states(second) == ["INCONSISTENT", "INCONSISTENT", "consistent"]
    assert [row.kept for row in second.rows] == [True, True, False]
    assert [row.found for row in second.rows[:2]] == [row.found for row in first.rows]


def test_a_file_that_has_changed_is_judged_again(tmp_path: Path) -> None:
    (entry,) = files(tmp_path / "files", 1)
    swept(tmp_path, [entry], failing)
    Path(entry.source.place).write_bytes(b"fixed")
    done, stage = swept(tmp_path, [entry], passing)
    assert len(stage.begun) == 1
    assert states(done) == ["consistent"]


def test_a_moved_file_is_not_judged_again_and_is_listed_by_its_new_name(
    tmp_path: Path,
) -> None:
    (entry,) = files(tmp_path / "files", 1)
    swept(tmp_path, [entry], passing)
    moved = tmp_path / "moved.pt"
    Path(entry.source.place).rename(moved)
    done, stage = swept(
        tmp_path, [Entry(label="moved.pt", source=Source("path", str(moved)))], failing
    )
    assert stage.begun == []
    (row,) = done.rows
    assert row.found.results[0].checkpoint == "moved.pt"
    assert row.found.results[0].path == str(moved)


def test_a_file_that_is_there_twice_is_judged_once(tmp_path: Path) -> None:
    one, other = files(tmp_path / "files", 2)
    Path(other.source.place).write_bytes(Path(one.source.place).read_bytes())
    done, stage = swept(tmp_path, [one, other], failing)
    assert len(stage.begun) == 1
    assert states(done) == ["INCONSISTENT"] * 2
    assert [row.found.results[0].checkpoint for row in done.rows] == [one.label, other.label]


@pytest.mark.parametrize("version", ["torch", "clipcheck", "onnxruntime"])
def test_another_version_of_what_computes_is_judged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    (entry,) = files(tmp_path / "files", 1)
    entry = replace(entry, backends=("jit", "onnxruntime"))
    swept(tmp_path, [entry], passing)
    from clipcheck.sweep import identity

    known = identity.environment()
    own = identity._version
    monkeypatch.setattr(identity, "environment", lambda: known | {version: "0.0"})
    monkeypatch.setattr(identity, "_version", lambda name: "0.0" if name == version else own(name))
    _, stage = swept(tmp_path, [entry], passing)
    backends = [job.backends for job in stage.begun]
    # What the archive itself finds does not depend on ONNX Runtime.
    assert backends == (
        [("onnxruntime",)] if version == "onnxruntime" else [("jit", "onnxruntime")]
    )


def test_backends_of_one_file_are_one_job_and_a_new_one_is_judged_alone(tmp_path: Path) -> None:
    (entry,) = files(tmp_path / "files", 1)
    both = replace(entry, backends=("jit", "trace"))
    _, stage = swept(tmp_path, [both], passing)
    assert [job.backends for job in stage.begun] == [("jit", "trace")]
    more = replace(entry, backends=("jit", "trace", "script"))
    done, stage = swept(tmp_path, [more], passing)
    assert [job.backends for job in stage.begun] == [("script",)]
    assert [row.found.results[0].backend for row in done.rows] == ["jit", "trace", "script"]


def test_a_reference_that_has_changed_is_compared_with_again(tmp_path: Path) -> None:
    entry, other = files(tmp_path / "files", 2)
    entry = replace(entry, reference=other.source.place)
    swept(tmp_path, [entry], passing)
    _, stage = swept(tmp_path, [entry], passing)
    assert stage.begun == []
    Path(other.source.place).write_bytes(b"trained further")
    _, stage = swept(tmp_path, [entry], passing)
    assert len(stage.begun) == 1


def test_the_longest_is_begun_first(tmp_path: Path) -> None:
    entries = files(tmp_path / "files", 3)
    for entry, size in zip(entries, (10**6, 3 * 10**9, 10**3), strict=True):
        with Path(entry.source.place).open("r+b") as file:
            os.truncate(file.fileno(), size) if size < 10**9 else None
    entries[1] = replace(entries[1], backends=("compile",))
    _, stage = swept(tmp_path, entries, passing)
    assert [job.label for job in stage.begun] == ["model-01.pt", "model-00.pt", "model-02.pt"]


# ------------------------------------------------------------------ what goes wrong


def test_a_worker_that_died_once_is_no_verdict(tmp_path: Path) -> None:
    entries = files(tmp_path / "files", 2)
    deaths: list[int] = []

    def judge(job: Job) -> Performed | Outcome:
        if job.label == "model-00.pt" and not deaths:
            deaths.append(1)
            return died(job)
        return passing(job)

    done, stage = swept(tmp_path, entries, judge)
    assert states(done) == ["consistent"] * 2
    assert len(stage.begun) == 3
    assert done.summary.again == 1
    assert sorted(fates(tmp_path)) == ["died", "done", "done"]


def test_a_checkpoint_that_ends_its_worker_twice_could_not_be_judged(tmp_path: Path) -> None:
    entries = files(tmp_path / "files", 2)

    def judge(job: Job) -> Performed | Outcome:
        return died(job) if job.label == "model-00.pt" else passing(job)

    done, stage = swept(tmp_path, entries, judge)
    assert states(done) == ["not judged", "consistent"]
    assert "ended by SIGKILL" in str(done.rows[0].found.results[0].error)
    assert len(stage.begun) == 3
    assert verdicts(tmp_path) == 2
    _, stage = swept(tmp_path, entries, judge)
    assert stage.begun == []


def test_workers_that_died_are_counted_over_sweeps(tmp_path: Path) -> None:
    (entry,) = files(tmp_path / "files", 1)

    def interrupted(job: Job) -> Outcome:
        if rows(tmp_path / "ledger", "SELECT 1 FROM attempts WHERE fate = 'died'"):
            raise KeyboardInterrupt
        return died(job)

    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path, [entry], interrupted)
    done, stage = swept(tmp_path, [entry], died)
    assert len(stage.begun) == 1
    assert states(done) == ["not judged"]


def test_a_lost_node_does_not_count_against_a_checkpoint(tmp_path: Path) -> None:
    (entry,) = files(tmp_path / "files", 1)
    losses: list[int] = []

    def judge(job: Job) -> Performed | Outcome:
        losses.append(1)
        return lost(job) if len(losses) < LOSSES else passing(job)

    done, _ = swept(tmp_path, [entry], judge)
    assert states(done) == ["consistent"]
    assert fates(tmp_path) == ["lost"] * (LOSSES - 1) + ["done"]


def test_a_job_whose_nodes_are_always_lost_is_left_to_the_next_sweep(tmp_path: Path) -> None:
    (entry,) = files(tmp_path / "files", 1)
    done, stage = swept(tmp_path, [entry], lost)
    assert len(stage.begun) == LOSSES
    assert states(done) == ["not judged"]
    assert verdicts(tmp_path) == 0
    done, _ = swept(tmp_path, [entry], passing)
    assert states(done) == ["consistent"]


def test_errors_of_the_environment_are_retried_by_the_next_sweep(tmp_path: Path) -> None:
    entries = files(tmp_path / "files", 2)

    def judge(job: Job) -> Performed:
        return Performed(failed="no room") if job.label == "model-00.pt" else passing(job)

    done, _ = swept(tmp_path, entries, judge)
    assert states(done) == ["not judged", "consistent"]
    assert done.rows[0].problem == "no room"
    assert str(done.rows[0].found.results[0].error) == "no room"
    done, stage = swept(tmp_path, entries, passing)
    assert [job.label for job in stage.begun] == ["model-00.pt"]
    assert states(done) == ["consistent"] * 2


def test_a_backend_that_is_missing_here_leaves_the_others_their_verdicts(tmp_path: Path) -> None:
    (entry,) = files(tmp_path / "files", 1)
    entry = replace(entry, backends=("jit", "compile"))

    def judge(job: Job) -> Performed:
        told = passing(job)
        missing = {"error": "no compiler", "error_type": "UnavailableError"}
        return changed(told, "compile", **missing)

    swept(tmp_path, [entry], judge)
    _, stage = swept(tmp_path, [entry], passing)
    assert [job.backends for job in stage.begun] == [("compile",)]


def test_code_that_ends_its_sandbox_process_is_retried_once_and_others_stay(tmp_path: Path) -> None:
    (entry,) = files(tmp_path / "files", 1)
    entry = replace(entry, backends=("jit", "trace"))

    def judge(job: Job) -> Performed:
        told = passing(job)
        crash = {"error": "its code crashed", "error_type": "IsolationError"}
        return changed(told, "jit", **crash) if "jit" in told.units else told

    done, stage = swept(tmp_path, [entry], judge)
    assert [job.backends for job in stage.begun] == [("jit", "trace"), ("jit",)]
    assert states(done) == ["not judged", "consistent"]
    assert verdicts(tmp_path) == 2


def test_a_file_that_is_not_there_is_no_verdict(tmp_path: Path) -> None:
    entry = Entry(label="gone.pt", source=Source("path", str(tmp_path / "gone.pt")))

    def judge(job: Job) -> Performed:
        return replace(failing(job), sha256=None)

    swept(tmp_path, [entry], judge)
    assert verdicts(tmp_path) == 0


def test_a_sweep_that_is_interrupted_keeps_what_it_has(tmp_path: Path) -> None:
    entries = files(tmp_path / "files", 3)
    seen: list[str] = []

    def judge(job: Job) -> Performed:
        seen.append(job.label)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return passing(job)

    stage = Stage(judge)
    with Ledger(tmp_path / "ledger") as ledger, pytest.raises(KeyboardInterrupt):
        run(planned(entries, ledger), stage, ledger)
    assert verdicts(tmp_path) == 2
    _, stage = swept(tmp_path, entries, passing)
    assert [job.label for job in stage.begun] == seen[2:]


# ------------------------------------------------------------------ what is fetched


def urls(count: int, size: int | None = 100) -> list[Entry]:
    places = [f"https://example.org/{number}.pt" for number in range(count)]
    return [Entry(label=place, source=Source("url", place, size=size)) for place in places]


def test_what_is_fetched_at_a_time_fits_on_the_disk(tmp_path: Path) -> None:
    done, stage = swept(tmp_path, urls(6), passing, count=4, disk=250)
    assert states(done) == ["consistent"] * 6
    assert stage.most == 2


def test_files_that_are_here_take_nothing_of_the_disk(tmp_path: Path) -> None:
    _, stage = swept(tmp_path, files(tmp_path / "files", 4), passing, count=4, disk=1)
    assert stage.most == 4


def test_what_does_not_fit_on_the_disk_at_all_is_reported(tmp_path: Path) -> None:
    entries = [*urls(1, size=300), *urls(2, size=None)[1:]]
    done, stage = swept(tmp_path, entries, passing, disk=250)
    assert stage.begun == []
    assert "at most 0 kB, the limit of --disk" in done.rows[0].problem
    assert "expected a size" in done.rows[1].problem


def test_what_was_fetched_from_a_url_is_known_by_its_hash_the_next_time(tmp_path: Path) -> None:
    (entry,) = urls(1)
    swept(tmp_path, [entry], passing)
    _, stage = swept(tmp_path, [entry], passing)
    assert stage.begun == []
    other = replace(entry, source=replace(entry.source, sha256="f" * 64))
    _, stage = swept(tmp_path, [other], passing)
    assert len(stage.begun) == 1


def test_files_that_a_dead_worker_fetched_are_removed(tmp_path: Path) -> None:
    (entry,) = urls(1)
    folders: list[Path] = []

    def judge(job: Job) -> Performed | Outcome:
        assert job.folder is not None
        if folders:
            assert not job.folder.exists()
            return passing(job)
        job.folder.mkdir(parents=True)
        (job.folder / "part").touch()
        folders.append(job.folder)
        return died(job)

    _, stage = swept(tmp_path, [entry], judge)
    assert len(stage.begun) == 2


def test_each_finished_job_gets_a_line(tmp_path: Path) -> None:
    lines: list[str] = []
    entries = files(tmp_path / "files", 2)
    with Ledger(tmp_path / "ledger") as ledger:
        plan = planned(entries, ledger)
        run(plan, Stage(passing), ledger, tell=lines.append)
    assert lines == [
        "1 of 2: model-00.pt: consistent, 1.5 s",
        "2 of 2: model-01.pt: consistent, 1.5 s",
    ]
    json.dumps(lines)
