from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipcheck.checkpoints.checkpoint import Format
from clipcheck.errors import IsolationError
from clipcheck.harness.options import CheckOptions
from clipcheck.results.document import convert_to, parse_json
from clipcheck.sweep.found import Performed
from clipcheck.sweep.identity import versions_for
from clipcheck.sweep.jobs import Job, Source
from clipcheck.sweep.worker import perform, unjudged
from tests.samples import minute_bytes, minute_config, minute_weights, saved
from tests.sweep.samples import job


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "minute.pt"
    path.write_bytes(minute_bytes(Format.ARCHIVE))
    return path


def of(path: Path, *backends: str, **other: Any) -> Job:
    options = CheckOptions(
        backend=backends or None, device="cpu", examples=2, isolation="none", **other
    )
    made = job(label="its name", source=Source("path", str(path)))
    return replace(made, options=options, versions=versions_for(backends or ("",)))


def done(asked: Job) -> Performed:
    return convert_to(parse_json(perform(asked)), Performed)


def test_findings_are_by_backend_and_under_the_requested_name(
    archive: Path,
) -> None:
    found = done(of(archive, "jit", "trace"))
    assert found.sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert list(found.units) == ["jit", "trace"]
    for backend, unit in found.units.items():
        (entry,) = unit.results
        assert (entry.backend, entry.passed) == (backend, True)
        assert (entry.checkpoint, entry.path) == ("its name", str(archive))
        assert (unit.failed, unit.ended) == ("", "")
    assert (found.cost.seconds or 0) > 0
    assert (found.cost.threads or 0) >= 1
    assert found.cost.bytes == 0


@pytest.mark.thorough
def test_all_that_fit_are_one_unit_with_what_was_left_out(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipcheck.backends.registry.BACKENDS", ("jit", "eager", "trace"))
    found = done(of(archive, "all"))
    unit = found.units["all"]
    assert [entry.backend for entry in unit.results] == ["jit", "trace"]
    (left_out,) = unit.left_out
    assert (left_out.backend, left_out.checkpoint) == ("eager", "its name")


def test_a_file_that_cannot_be_opened_is_reported_for_each_backend(tmp_path: Path) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(b"PK\x03\x04nothing")
    found = done(of(path, "jit", "trace"))
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for backend in ("jit", "trace"):
        unit = found.units[backend]
        (entry,) = unit.results
        assert entry.backend == backend
        assert "cut off or altered" in str(entry.error)
        assert unit.failed == ""


def test_a_missing_file_is_an_error_of_the_environment(tmp_path: Path) -> None:
    found = done(of(tmp_path / "gone.pt"))
    assert found.sha256 is None
    assert "gone.pt" in found.units[""].failed


def test_a_missing_backend_is_an_error_of_the_environment(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipcheck.backends.base import Missing
    from clipcheck.backends.compile import Compile

    monkeypatch.setattr(Compile, "available", lambda: Missing("no compiler", "Install one."))
    units = done(of(archive, "jit", "compile")).units
    assert units["jit"].failed == ""
    assert "no compiler" in units["compile"].failed


def test_a_checkpoint_without_a_comparison_gets_a_final_verdict(
    archive: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(saved(minute_weights()))
    told = str(minute_config(tmp_path))
    asked = [of(weights, architecture=told), of(weights, "jit", architecture=told)]
    for unit in (done(each).units[each.backends[0]] for each in [*asked, of(archive, "eager")]):
        (entry,) = unit.results
        assert entry.error
        assert (unit.failed, unit.ended) == ("", "")


def test_code_that_ended_its_sandbox_process_is_reported_as_that(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashed(*_: object) -> None:
        raise IsolationError("it crashed", remedy="Look at it.")

    monkeypatch.setattr("clipcheck.harness.matrix.build", crashed)
    unit = done(of(archive, "jit")).units["jit"]
    assert "it crashed" in unit.ended
    assert unit.failed == ""


def test_an_internal_error_is_reported_without_a_verdict(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr("clipcheck.harness.checking.check_files", full)
    assert done(of(archive)) == Performed(failed="MemoryError: no more")
    assert "Traceback" in capsys.readouterr().err


def test_a_worker_of_other_versions_judges_nothing(archive: Path) -> None:
    asked = of(archive)
    asked = replace(asked, versions={**asked.versions, "torch": "1.0"})
    assert "torch 1.0 there and" in done(asked).failed


@pytest.mark.thorough
def test_what_failed_elsewhere_before_is_not_tried_first(
    archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from clipcheck.harness import checking

    check = checking.check_files
    folders: list[str] = []

    def looked(*arguments: Any, **known: Any) -> Any:
        folders.append(os.environ["HYPOTHESIS_STORAGE_DIRECTORY"])
        return check(*arguments, **known)

    monkeypatch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr("clipcheck.harness.checking.check_files", looked)
    done(of(archive))
    done(of(archive))
    assert len({*folders, str(tmp_path)}) == 3
    assert not any(Path(folder).exists() for folder in folders)
    assert os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] == str(tmp_path)


def test_an_unfinished_job_also_has_an_entry() -> None:
    half = job(label="m.pt", options=CheckOptions(device="cpu", dtype="float16"))
    told = unjudged(half, "trace", "a" * 64, "why")
    (entry,) = told.results
    assert (entry.checkpoint, entry.backend, entry.dtype) == ("m.pt", "trace", "float16")
    assert (entry.error, entry.passed, entry.sha256) == ("why", False, "a" * 64)
    assert unjudged(job(), "", "url:x", "why").results[0].sha256 is None


def test_an_unfinished_job_names_the_default_backend_of_its_file(tmp_path: Path) -> None:
    program = tmp_path / "program.pte"
    program.write_bytes(b"\x10\0\0\0ET12" + bytes(100))
    unfinished = job(source=Source("path", str(program)))
    assert unjudged(unfinished, "", "url:x", "why").results[0].backend == "executorch"
