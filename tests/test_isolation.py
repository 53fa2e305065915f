"""Files that do what no model should: judged, reported, and without effect on anything else."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipcheck.checkpoints import registry
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.errors import IsolationError, UsageError
from clipcheck.harness.checking import check
from clipcheck.harness.localising import localize
from conftest import Run
from tests import hostile
from tests.samples import MINUTE, MINUTE_RESNET, minute_bytes
from tests.thorough import parametrize

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that confines")

Written = Callable[..., Path]


@pytest.fixture
def archive(tmp_path: Path) -> Written:
    return lambda *act: hostile.write(tmp_path / "hostile.pt", *act, architecture=MINUTE)


def judged(path: Path, **how: Any) -> Any:
    (judgement,) = check(path, examples=14, **how).judgements
    return judgement


def test_a_crash_is_a_verdict_of_its_checkpoint_and_the_next_one_is_judged(
    run: Run, tmp_path: Path, minute_archive: Path
) -> None:
    crashing = hostile.write_crashing(tmp_path / "crashing.pt", architecture=MINUTE)
    done = run("check", crashing, minute_archive, "--json", "-", "--examples", 14)
    assert done.code == 2
    first, second = json.loads(done.out)["results"]
    assert first["error"].startswith("loading the archive: the process was ended by SIGSEGV.")
    assert (first["sha256"], first["gates"]) == (registry_free(first), [])
    assert first["isolation"]
    assert second["passed"]


def registry_free(entry: dict[str, Any]) -> str:
    """Return the SHA-256 of a file that is not released, which is known although it could not
    run."""
    sha256: str = entry["sha256"]
    assert registry.by_sha256(sha256) is None
    return sha256


@pytest.mark.thorough
def test_a_hang_is_a_verdict(archive: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPCHECK_TIME_LIMIT", "2")
    found = judged(archive(hostile.hangs))
    assert "it took more than 2 s, and was ended" in found.error
    assert "running forward on a batch of 2 and 1" in found.error
    assert "CLIPCHECK_TIME_LIMIT" in found.remedy


def test_taking_too_much_memory_is_a_verdict(archive: Written) -> None:
    found = judged(archive(hostile.takes_memory))
    assert "it needs more memory than the 6.0 GB that it may take" in found.error


@pytest.mark.thorough
def test_what_a_file_prints_is_not_seen(
    archive: Written, capfd: pytest.CaptureFixture[str]
) -> None:
    assert judged(archive(hostile.prints)).passed
    assert "from the file" not in "".join(capfd.readouterr())


def test_a_file_that_reads_another_fails_and_gets_nothing_of_it(
    archive: Written, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\xff" * 8)
    path = archive(hostile.reading(secret))
    found = judged(path)
    assert not found.passed
    assert "Permission denied" in found.gates[0].message
    # It does read it where it may, and what is in it is seen in its features.
    trusting = judged(path, isolation="none")
    assert not trusting.passed
    assert "Permission denied" not in trusting.gates[0].message


@pytest.mark.thorough
def test_a_file_that_writes_another_fails_and_leaves_nothing(
    archive: Written, tmp_path: Path
) -> None:
    path = archive(hostile.writing(tmp_path / "made"))
    (tmp_path / "made").unlink()
    assert not judged(path).passed
    assert not (tmp_path / "made").exists()
    assert judged(path, isolation="none").passed
    assert (tmp_path / "made").exists()


@pytest.mark.thorough
def test_replay_and_localize_use_the_sandbox_too(run: Run, tmp_path: Path) -> None:
    path = hostile.write(tmp_path / "hostile.pt", hostile.writing(tmp_path / "made"))
    (tmp_path / "made").unlink()
    done = run("check", path, "--report", tmp_path / "report", "--examples", 14)
    (saved,) = (tmp_path / "report" / "failing-inputs").iterdir()
    assert done.code == 1
    assert run("replay", saved).code == 1
    assert localize(path).localisation.found
    assert not (tmp_path / "made").exists()


def test_a_crash_ends_localize_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(IsolationError, match="SIGSEGV"):
        localize(hostile.write_crashing(tmp_path / "crashing.pt", architecture=MINUTE))


@pytest.mark.thorough
def test_a_check_finds_the_same_with_and_without_a_sandbox(minute_archive: Path) -> None:
    apart, here = (judged(minute_archive, isolation=how) for how in ("process", "none"))
    assert [gate.figures for gate in apart.gates] == [gate.figures for gate in here.gates]
    assert (bool(apart.isolation), here.isolation) == (True, ())


def test_by_default_all_files_except_released_ones_run_in_a_sandbox(
    minute_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judged(minute_archive).isolation
    monkeypatch.setattr(registry, "by_sha256", lambda _: registry.find("RN50"))
    assert judged(minute_archive).isolation == ()
    assert judged(minute_archive, isolation="process").isolation


def test_a_file_without_code_needs_no_sandbox(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(minute_bytes(Format.SAFETENSORS))
    (found,) = check(path, backend="trace", examples=14).judgements
    assert (found.passed, found.isolation) == (True, None)


@pytest.mark.thorough
def test_the_report_says_where_it_ran(run: Run, minute_archive: Path) -> None:
    apart = run("check", minute_archive, "--examples", 14).out
    assert "sandboxed: no network" in " ".join(apart.split())
    here = run("check", minute_archive, "--examples", 14, "--isolation", "none").out
    assert "unsandboxed: its own code ran in this process" in here


@pytest.mark.thorough
def test_a_refused_file_has_no_isolation_in_its_report(
    tmp_path: Path, minute_archive: Path, run: Run
) -> None:
    program = tmp_path / "half.onnx"
    written = run("convert", minute_archive, "-o", program, "--dtype", "float16", "-q")
    assert written.code == 0, written.err
    told = run("check", program, "--reference", minute_archive, "--dtype", "float32")
    assert "float32, found float16." in " ".join(told.out.split())
    assert "sandboxed" not in told.out


def test_another_isolation_is_refused(minute_archive: Path, run: Run) -> None:
    with pytest.raises(UsageError, match="expected an isolation, found 'docker'"):
        check(minute_archive, isolation="docker")
    assert run("check", minute_archive, "--isolation", "docker").code == 2


@parametrize("written", ["0", "-1", "nan", "inf", "soon"], quick=2)
def test_an_invalid_time_limit_is_refused(
    written: str, minute_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPCHECK_TIME_LIMIT", written)
    assert "expected a number of seconds above 0" in judged(minute_archive).error


def test_an_invalid_memory_limit_is_refused_and_a_valid_one_holds(
    minute_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPCHECK_MEMORY_LIMIT", "much")
    assert "expected a size" in judged(minute_archive).error
    monkeypatch.setenv("CLIPCHECK_MEMORY_LIMIT", "3GB")
    assert judged(minute_archive).isolation[-1].startswith("at most 300 s a call, 3.0 GB, ")


@pytest.mark.thorough
def test_an_archive_that_changes_its_weights_leaves_the_eager_models(tmp_path: Path) -> None:
    from clipcheck.audit.faults import fault_named
    from clipcheck.writers.archive import write_archive
    from clipcheck.writers.synthesize import synthesize

    path = tmp_path / "drifts.pt"
    plant = fault_named("running-mean-updated").plant
    write_archive(MINUTE_RESNET, synthesize(MINUTE_RESNET), path, alter=plant)
    found = judged(path)
    assert not found.passed
    assert "running the model changed" in found.gates[0].message
    assert found.localisation[0].part == "its running_mean, which running changes"


@pytest.mark.thorough
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@parametrize(("folder", "file"), [(0o755, 0o600), (0o700, 0o644)], quick=1)
def test_root_judges_what_only_another_user_may_read(
    folder: int, file: int, minute_archive: Path, tmp_path: Path
) -> None:
    """As what is mounted into a container may be: a process without privileges cannot open it."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    path = Path(shutil.copy(minute_archive, theirs / "model.pt"))
    path.chmod(file)
    theirs.chmod(folder)
    for each in (path, theirs):
        os.chown(each, 12345, 12345)
    found = judged(path)
    assert found.passed
    assert found.isolation


@pytest.mark.thorough
def test_the_parent_process_is_unchanged(minute_archive: Path) -> None:
    """No capability is dropped and no limit taken in the process of the check."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA), os.environ.get("TMPDIR"), Path.cwd()
    judged(minute_archive)
    after = resource.getrlimit(resource.RLIMIT_DATA), os.environ.get("TMPDIR"), Path.cwd()
    assert before == after
