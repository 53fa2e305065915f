from __future__ import annotations

import errno
import html
import inspect
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clipcheck.cli import check, terminal
from clipcheck.harness import checking
from clipcheck.harness.options import CheckOptions
from clipcheck.report import advice, annotations, junit, markdown, text
from clipcheck.system.progress import Progress
from conftest import Run, unfolded
from tests.cli import minute
from tests.report import ENVIRONMENT, failed, failing_result, saved_in


def test_check_prints_a_verdict_and_exits_0(run: Run, minute_archive: Path) -> None:
    done = run("check", minute_archive)
    assert done.code == 0
    assert done.out.startswith(f"{minute_archive}\n")
    assert unfolded(done.out).endswith(
        "\nCONSISTENT: 1 checkpoint agrees between JIT and eager.\n"
        f"Next: clipcheck check {minute_archive} --report clip-report\n"
        "      writes a report to publish with the release.\n"
    )
    assert done.err == ""


def test_quiet_leaves_the_table_and_the_verdict(
    run: Run, minute_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(minute_archive.parent)
    done = run("check", "-q", minute_archive.name, "--examples", 1)
    assert done.code == 0
    first, *middle, last = done.out.splitlines()
    assert first.split()[-6:] == [
        "integrity", "allclose", "fidelity", "modules", "top1", "repeatability"
    ]  # fmt: skip
    assert len(middle) <= 4
    assert last == "CONSISTENT: 1 checkpoint agrees between JIT and eager."


@pytest.mark.thorough
def test_no_report_is_suggested_where_one_is_kept(
    run: Run, minute_archive: Path, tmp_path: Path
) -> None:
    options = ["--report", tmp_path / "report", "--examples", 1]
    assert "Next:" not in run("check", minute_archive, *options).out


@pytest.mark.parametrize(
    ("option", "told"), [([], True), (["-q"], False), (["--json", "-"], False)]
)
def test_the_path_of_the_page_comes_last(
    run: Run, found: checking.Result, tmp_path: Path, option: list[str], told: bool
) -> None:
    done = run("check", "x.pt", "--report", tmp_path, *option)
    line = f"Page: {tmp_path / 'report.html'}\n"
    assert done.out.endswith(line) == told
    assert ("Page:" in done.out) == told


def test_check_exits_1_for_an_inconsistent_checkpoint(run: Run, minute_archive: Path) -> None:
    done = run("check", minute_archive, "--atol", 0, "--rtol", 0, "--examples", 14)
    assert done.code == 1
    assert "FAIL  allclose" in done.out
    assert "INCONSISTENT" in done.out


def test_check_judges_several_and_exits_2_where_one_cannot_be(
    run: Run, minute_archive: Path
) -> None:
    done = run("check", "RN51", minute_archive, "--examples", 1)
    assert done.code == 2
    assert "'RN50'" in done.out
    assert "NOT JUDGED: 1 of 2 checkpoints could not be judged, 1 passed." in done.out


def test_json_on_stdout_is_alone_there(run: Run, minute_archive: Path) -> None:
    done = run("check", minute_archive, "--json", "-", "--examples", 3)
    document = json.loads(done.out)
    assert document["results"][0]["examples"] == 3
    assert done.code == 0


def test_json_in_a_file_comes_beside_the_text(
    run: Run, minute_archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    done = run("check", minute_archive, "--json", path, "--examples", 1)
    assert "CONSISTENT" in done.out
    assert json.loads(path.read_text())["passed"] is True
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.thorough
def test_a_json_file_that_cannot_be_written_is_an_error(
    run: Run, minute_archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "missing" / "result.json"
    done = run("check", minute_archive, "--json", path, "--examples", 1)
    assert done.code == 2
    assert "result.json: cannot be written" in done.err


def test_the_options_reach_the_check(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog")
    seen: dict[str, object] = {}

    def spy(checkpoints: list[str], options: CheckOptions, _: object) -> checking.Result:
        seen.update(vars(options), checkpoints=checkpoints)
        return checking.Result((), {})

    monkeypatch.setattr(checking, "check_files", spy)
    options = ["--device", "cpu", "--device", "mps", "--examples", 3, "--seed", 4]
    options += ["--dtype", "float32", "--dtype", "bfloat16", "--exhaustive"]
    options += ["--backend", "jit", "--backend", "compile:dynamic=auto"]
    options += ["--key", "k", "--reference", "r", "--no-cache", "--isolation", "none"]
    options += ["--architecture", "ViT-B/32", "--fail-fast"]
    options += ["--select", "top1", "--select", "modules", "--ignore", "modules"]
    options += ["--budget", "int8", "--map", "a=pixels", "--require", "dynamic-batch"]
    options += ["--images", tmp_path, "--prompts", prompts]
    run("check", "a", "b", *options, "--atol", 0.5, "--rtol", 0.25, "--download-root", "x")
    assert seen == {
        "checkpoints": ["a", "b"],
        "backend": ["jit", "compile:dynamic=auto"],
        "key": "k",
        "reference": "r",
        "pinned": None,
        "keep_outputs": None,
        "architecture": "ViT-B/32",
        "cache": False,
        "isolation": "none",
        "device": ["cpu", "mps"],
        "dtype": ["float32", "bfloat16"],
        "exhaustive": True,
        "examples": 3,
        "images": tmp_path,
        "prompts": prompts,
        "seed": 4,
        "atol": 0.5,
        "rtol": 0.25,
        "budget": "int8",
        "map": ["a=pixels"],
        "require": ["dynamic-batch"],
        "select": ["top1", "modules"],
        "ignore": ["modules"],
        "fail_fast": True,
        "download_root": Path("x"),
    }


def test_options_may_stand_in_a_file_and_every_report_says_so(
    run: Run, minute_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text('[tool.clipcheck]\nexamples = 5\nseed = 7\nignore = ["modules"]\n')
    monkeypatch.chdir(tmp_path)
    done = run("check", minute_archive, "--seed", 3, "--report", "kept", "--junit", "found.xml")
    told = f'Options from {file}: examples = 5, ignore = ["modules"]'
    assert told.replace(" ", "") in "".join(done.out.split())
    document = json.loads((tmp_path / "kept" / "results.json").read_text())
    assert document["configuration"] == {
        "file": str(file),
        "options": {"examples": 5, "ignore": ["modules"]},
    }
    (found,) = document["results"]
    assert (found["examples"], found["seed"], found["ignored"]) == (5, 3, ["modules"])
    assert told in html.unescape((tmp_path / "kept" / "report.html").read_text())
    assert told in html.unescape((tmp_path / "found.xml").read_text())


def test_an_option_in_a_file_that_there_is_not_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.clipcheck]\nexampels = 5\n")
    monkeypatch.chdir(tmp_path)
    done = run("check", "x.pt")
    assert (done.code, done.out) == (2, "")
    assert "The nearest name is 'examples'" in done.err


@pytest.mark.thorough
def test_a_model_of_a_training_checkpoint_is_judged(run: Run, several: Path) -> None:
    asked = (
        "--backend",
        "eager",
        "--examples",
        "1",
        "--reference",
        minute(several.parent / "reference.pt"),
    )
    for key, code in (("model", 0), ("model_ema", 1)):
        done = run("check", several, "--key", key, *asked, "--json", "-")
        (result,) = json.loads(done.out)["results"]
        assert (done.code, result["origin"]) == (code, f"read from {key!r}"), result["error"]


def test_progress_is_shown_on_stderr(
    run: Run, minute_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    quiet: list[bool] = []

    @contextmanager
    def progress(wanted: bool = False) -> Iterator[Progress]:
        quiet.append(wanted)
        yield told.append

    monkeypatch.setattr(terminal, "progress", progress)
    done = run("check", minute_archive, "--examples", 1)
    assert f"{minute_archive}: jit: running" in told
    assert "running the archive" not in done.out + done.err
    run("check", minute_archive, "--quiet", "--examples", 1)
    assert quiet == [False, True]


def test_the_defaults_of_the_command_are_those_of_the_function() -> None:
    command = inspect.signature(check.check).parameters
    function = inspect.signature(checking.check).parameters
    options = set(command) & set(vars(CheckOptions()))
    assert len(options) == 24
    for name in options:
        assert command[name].default == function[name].default


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> checking.Result:
    """Make every check find three results: one passes, one fails, one is missing."""
    result = failing_result()
    monkeypatch.setattr(checking, "check_files", lambda *a, **k: result)
    return result


def test_junit_xml_comes_beside_the_text(run: Run, found: checking.Result, tmp_path: Path) -> None:
    done = run("check", "x.pt", "--junit", tmp_path / "junit.xml")
    assert "INCONSISTENT" in done.out
    assert (tmp_path / "junit.xml").read_text(encoding="utf-8") == junit.render(found)


def test_on_github_there_are_annotations_and_a_summary(
    run: Run, found: checking.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    lines = annotations.render(found)
    done = run("check", "x.pt")
    assert [line for line in done.out.splitlines() if line.startswith("::")] == lines
    assert done.err == ""
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == markdown.render(found)
    done = run("check", "x.pt", "--json", "-")
    assert json.loads(done.out)["schema"] == 1
    assert done.err.splitlines() == lines


@pytest.mark.thorough
def test_a_summary_that_cannot_be_written_changes_no_verdict(
    run: Run, minute_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    done = run("check", minute_archive, "--examples", 2)
    assert done.code == 0
    assert done.err.startswith(f"clipcheck: {tmp_path}: the summary cannot be written (")


def test_outside_github_there_are_no_annotations(run: Run, found: checking.Result) -> None:
    assert "::" not in run("check", "x.pt").out


@pytest.mark.parametrize("option", ["--report", "--json", "--junit"])
@pytest.mark.parametrize("reason", ["below a file", "a full disk"])
def test_the_verdict_is_printed_whatever_cannot_be_written(
    run: Run,
    found: checking.Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    reason: str,
) -> None:
    target = tmp_path / "there"
    if reason == "below a file":
        target.touch()
        target /= "below"
    else:

        def full(*_: object, **__: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_text", full)
    done = run("check", "x.pt", option, target)
    assert done.code == 2
    assert done.out.startswith(text.render(found))
    (line,) = done.err.splitlines()
    assert line.startswith(f"clipcheck: {target}")
    assert reason != "a full disk" or "(No space left on device). Give another" in line


def test_each_output_that_cannot_be_written_is_reported_and_the_others_are_written(
    run: Run, found: checking.Result, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "below"
    options = ["--report", below, "--json", below, "--junit", tmp_path / "junit.xml"]
    done = run("check", "x.pt", *options)
    assert done.code == 2
    assert len(done.err.splitlines()) == 2
    assert (tmp_path / "junit.xml").exists()


def test_a_failing_input_that_cannot_be_kept_does_not_hide_the_verdict(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsaved = saved_in(None, failed())
    result = checking.Result((unsaved,), ENVIRONMENT)
    monkeypatch.setattr(checking, "check_files", lambda *a, **k: result)

    def none(**_: object) -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", none)
    done = run("check", "x.pt")
    assert done.code == 2
    again = ("clipcheck", *sys.argv[1:], "--report", advice.KEPT)
    assert done.out == f"{text.render(result, rerun=again)}\n"
    assert "expected a temporary folder for the failing inputs, found none" in done.err


@pytest.mark.thorough
def test_check_runs_the_requested_backends_against_a_reference(run: Run, tmp_path: Path) -> None:
    archive, weights = minute(tmp_path / "minute.pt"), tmp_path / "weights.pt"
    assert run("convert", archive, "-o", weights, "--format", "state-dict").code == 0
    options = ["--reference", archive, "--examples", 1, "--no-cache", "--json", "-"]
    done = run("check", weights, "--backend", "eager", "--backend", "trace", *options)
    assert done.code == 0
    found = json.loads(done.out)["results"]
    assert [each["backend"] for each in found] == ["eager", "trace"]
    assert {each["reference_checkpoint"] for each in found} == {str(archive)}
    assert {each["gates"][0]["name"] for each in found} == {"weights"}


def test_an_unknown_backend_exits_2_with_the_nearest(run: Run) -> None:
    done = run("check", "gone.pt", "--backend", "tracer")
    assert done.code == 2
    assert done.err.startswith("clipcheck: expected a backend, found 'tracer'. The nearest name is")
