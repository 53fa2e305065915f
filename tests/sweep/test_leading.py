"""The command and its options; whole sweeps are in test_sweep.py."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipcheck.sweep import leading
from clipcheck.sweep.jobs import Job
from conftest import Run
from tests.sweep.samples import OPTIONS, Stage, failing, files, passing, rows


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stage]:
    """Let the command use an engine with given outcomes."""

    def stage(judge: Any = passing) -> Stage:
        made = Stage(judge)
        monkeypatch.setattr(leading, "_engine", lambda *_: made)
        return made

    return stage


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_sweep_reports_what_it_found_and_exits_as_a_check_does(
    run: Run, staged: Callable[..., Stage], tmp_path: Path
) -> None:
    files(tmp_path / "all", 2)
    stage = staged()
    done = run("sweep", "all", "--json", "found.json", "--report", "kept")
    assert done.code == 0
    assert "CONSISTENT: 2 checkpoints agree between JIT and eager." in done.out
    assert done.out.endswith("Page: kept/report.html\n")
    assert "2 of 2: all/model-01.pt: consistent, 1.5 s" in done.err
    assert stage.closed
    assert rows(tmp_path / "clipcheck-sweep.sqlite", "SELECT count(*) FROM verdicts") == [(2,)]
    assert len(json.loads((tmp_path / "found.json").read_text())["results"]) == 2
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        "report.html",
        "report.txt",
        "results.json",
    }


def test_an_inconsistent_checkpoint_exits_1_and_an_unjudged_one_2(
    run: Run, staged: Callable[..., Stage], tmp_path: Path
) -> None:
    files(tmp_path / "all", 2)
    staged(failing)
    assert run("sweep", "all").code == 1
    staged(lambda job: {"failed": "no room"})
    assert run("sweep", "all", "--ledger", "other").code == 2


def test_quiet_is_the_verdict_alone_where_all_pass(
    run: Run, staged: Callable[..., Stage], tmp_path: Path
) -> None:
    files(tmp_path / "all", 2)
    staged()
    done = run("sweep", "all", "--quiet")
    assert done.out == "CONSISTENT: 2 checkpoints agree between JIT and eager.\n"
    assert done.err == ""


def test_json_on_stdout_is_alone(run: Run, staged: Callable[..., Stage], tmp_path: Path) -> None:
    files(tmp_path / "all", 1)
    staged()
    assert json.loads(run("sweep", "all", "--json", "-").out)["passed"] is True


def test_a_plan_runs_nothing(run: Run, staged: Callable[..., Stage], tmp_path: Path) -> None:
    files(tmp_path / "all", 2)
    stage = staged()
    done = run("sweep", "all", "--plan")
    assert done.code == 0
    assert stage.begun == []
    assert "2 runs to judge, of which the ledger already has 0." in done.out
    assert rows(tmp_path / "clipcheck-sweep.sqlite", "SELECT count(*) FROM runs") == [(0,)]


@pytest.mark.parametrize("during", ["planning", "judging"])
def test_ctrl_c_is_reported_and_is_no_verdict(
    run: Run,
    staged: Callable[..., Stage],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    during: str,
) -> None:
    files(tmp_path / "all", 2)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    stage = staged(interrupted)
    if during == "planning":
        monkeypatch.setattr(leading, "plan", interrupted)
    done = run("sweep", "all", "--ledger", "mine")
    assert done.code == 130
    assert "mine keeps the results, and the same command resumes the sweep" in done.err
    assert stage.closed


def test_files_of_a_killed_sweep_are_removed_first_and_its_own_last(
    run: Run, staged: Callable[..., Stage], tmp_path: Path
) -> None:
    files(tmp_path / "all", 1)
    scratch = tmp_path / "mine.files"
    left = scratch / "job-7" / "model.pt"
    left.parent.mkdir(parents=True)
    left.touch()

    def judge(job: Job) -> dict[str, Any]:
        assert not left.exists()
        scratch.mkdir()
        return passing(job)

    stage = staged(judge)
    assert run("sweep", "all", "--ledger", "mine").code == 0
    assert len(stage.begun) == 1
    assert not scratch.exists()


def test_options_are_part_of_what_a_verdict_is_kept_under(
    run: Run, staged: Callable[..., Stage], tmp_path: Path
) -> None:
    files(tmp_path / "all", 1)
    stage = staged()
    for options in ([], ["--examples", 31], ["--seed", 1], ["--atol", 0.5], ["--rtol", 0.5]):
        run("sweep", "all", *options)
    assert len(stage.begun) == 5
    run("sweep", "all", "--seed", 1)
    assert len(stage.begun) == 5
    assert {job.options.seed for job in stage.begun} == {0, 1}


def test_the_options_of_a_check_are_passed_on(
    run: Run, staged: Callable[..., Stage], tmp_path: Path
) -> None:
    files(tmp_path / "all", 1)
    stage = staged()
    run("sweep", "all", "--isolation", "none", "--no-cache", "--download-root", tmp_path)
    (job,) = stage.begun
    options = job.options
    assert (options.isolation, options.cache) == ("none", False)
    assert options.download_root == tmp_path
    assert job.folder == tmp_path / "clipcheck-sweep.sqlite.files" / "job-0"


def test_an_unnamed_gpu_is_assigned_as_well(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipcheck.sweep.engines import local

    files(tmp_path / "all", 4)
    monkeypatch.setattr(local, "default_device", lambda *_: "cuda")
    monkeypatch.setattr(local, "wanted_gpus", lambda devices: 2 if devices == ["cuda"] else 0)
    asked = leading.Asked(
        catalogue=Path("all"),
        pretrained=False,
        engine="local",
        address=None,
        workers=None,
        ledger=Path("l"),
        disk=None,
        options=OPTIONS,
    )
    with leading.opened(asked) as lead:
        assert lead.engine.workers() == 2
        assert {unit.device for unit in lead.plan().units} == {"cuda"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "expected a catalogue"),
        (["nowhere.toml"], "No such file"),
        (["all", "--disk", "much"], "expected a size, found 'much'"),
        (["all", "--disk", "0"], "expected a size, found '0'"),
        (["all", "--address", "host:6379"], "--address needs the engine ray"),
        (["all", "--atol", "nan"], "expected atol"),
        (["all", "--ledger", "all"], "--ledger"),
        (["all", "--ledger", "no/where"], "expected a folder for the ledger"),
    ],
)
def test_invalid_options_are_refused_in_one_line(
    run: Run, tmp_path: Path, arguments: list[str], told: str
) -> None:
    files(tmp_path / "all", 1)
    done = run("sweep", *arguments)
    assert done.code == 2
    assert told in done.err
    assert done.err.startswith("clipcheck: ")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "clipcheck-sweep.sqlite").exists() or "--address" in arguments


def test_without_ray_it_says_how_to_get_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path / "all", 1)
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    done = run("sweep", "all", "--engine", "ray")
    assert done.code == 2
    assert "pip install 'clipcheck[ray]'" in done.err


def test_a_missing_cluster_is_reported_and_none_is_started(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    files(tmp_path / "all", 1)
    done = run("sweep", "all", "--engine", "ray")
    assert done.code == 2
    assert "expected a Ray cluster at this machine" in done.err
    assert "ray start --head" in done.err
    assert not ray.is_initialized()
