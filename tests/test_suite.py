"""The suite as users run it. Each run is a separate process, which imports torch once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from clipcheck._version import __version__
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.plugin.choices import gates_for
from clipcheck.system import workers
from tests.samples import minute_bytes
from tests.thorough import parametrize

pytest_plugins = ["pytester"]

SUITE = ("--pyargs", "clipcheck.suite")

PRETENDS = """
    import os, signal, sys
    from dataclasses import replace
    from pathlib import Path
    from clipcheck.plugin import run

    HERE = Path(__file__).parent

    def check(self, case):
        from clipcheck.results.judgement import Judgement
        from clipcheck.gates.result import GateResult

        with (HERE / "judged").open("a") as file:
            file.write(f"{case} in {os.environ.get('PYTEST_XDIST_WORKER')}\\n")
        if case.model == "dies.pt":
            os.kill(os.getpid(), signal.SIGKILL)
        names = ("integrity", "allclose", "fidelity", "modules", "top1", "repeatability")
        bad = "allclose" if case.model == "bad.pt" else ""
        gates = tuple(
            GateResult(name=name, passed=name != bad, message=f"so it is with {name}")
            for name in names
        )
        judgement = Judgement(
            case.model, case.device, dtype=case.dtype, gates=gates, run="0badf00d"
        )
        judgement = replace(judgement, seconds={"load": 0, "run": 0})
        return run.Finding(case, judgement, "the file given")

    run.Run._check = check

    def pytest_unconfigure(config):
        if hasattr(config, "workerinput"):
            with (HERE / "imported").open("a") as file:
                file.write(f"{'torch' in sys.modules} {'numpy' in sys.modules}\\n")
"""
"""A conftest.py that judges in no time, and keeps a list of what was judged where."""


@pytest.fixture(autouse=True)
def _lean(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run without plugins of other packages that take most of a second in each process."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:anyio -p no:hypothesispytest")


@pytest.fixture
def here(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Return a folder of checkpoints that are not read: a fake judges them."""
    for name in (*workers.THREADS, workers.GPUS):
        monkeypatch.delenv(name, raising=False)
    pytester.makeconftest(PRETENDS)
    for name, size in (("large.pt", 300), ("dies.pt", 200), ("small.pt", 100), ("bad.pt", 100)):
        (pytester.path / name).write_bytes(bytes(size))
    return pytester


def chosen(*names: str) -> list[str]:
    return [part for name in names for part in ("--clip-model", name)]


def judged(here: pytest.Pytester) -> list[str]:
    return (here.path / "judged").read_text().splitlines()


def cases(path: Path) -> Counter[tuple[str | None, str | None]]:
    """Return how often each test case is in a JUnit file."""
    found = ElementTree.parse(path).getroot().iter("testcase")
    return Counter((case.get("classname"), case.get("name")) for case in found)


@pytest.mark.thorough
def test_it_runs_where_nothing_can_be_written(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes = ("float32", "float16")
    options = [part for dtype in dtypes for part in ("--clip-dtype", dtype)]
    written = (f"--clip-report={pytester.path / 'report'}", f"--junit-xml={pytester.path / 'xml'}")
    monkeypatch.chdir("/proc")  # where not even root can write
    result = pytester.runpytest_subprocess(
        *SUITE,
        *chosen("seeded:tiny-vit"),
        *options,
        "--clip-examples=1",
        *written,
        "-p",
        "no:randomly",
    )
    # Of one random image and prompt no best match is clear, so top1 is only measured.
    result.assert_outcomes(passed=9, skipped=2)
    result.stdout.fnmatch_lines(
        [
            "clipcheck: seeded:tiny-vit on cpu; seed 0; *",
            "*= clipcheck =*",
            "seeded:tiny-vit on cpu: seeded weights, NOT the released weights",
            f"reports in {pytester.path}/report",
        ]
    )
    gates = {dtype: gates_for("jit", dtype) for dtype in dtypes}
    names = [f"{gate}-seeded:tiny-vit-jit-cpu-{dtype}" for dtype in dtypes for gate in gates[dtype]]
    expected = {("clipcheck.suite", f"test_gate[{name}]"): 1 for name in names}
    assert cases(pytester.path / "xml") == expected
    results = json.loads((pytester.path / "report/results.json").read_text())["results"]
    found = {each["dtype"]: tuple(gate["name"] for gate in each["gates"]) for each in results}
    assert found == gates
    assert "\ntiny-vit (seeded weights)\n" in (pytester.path / "report/report.txt").read_text()


@pytest.mark.thorough
def test_a_checkpoint_that_kills_its_worker_fails_by_name_and_the_others_are_judged(
    here: pytest.Pytester,
) -> None:
    options = ("-n2", "-p", "no:randomly", "--junit-xml=xml", "--clip-report=report")
    result = here.runpytest_subprocess(*SUITE, *chosen("large.pt", "dies.pt", "small.pt"), *options)
    result.assert_outcomes(passed=12, failed=6)
    result.stdout.fnmatch_lines(
        [
            "*_ test_gate[[]integrity-dies.pt-jit-cpu-float32[]] _*",
            "worker 'gw?' crashed while running '*dies.pt*': it crashed, or the machine ran out of "
            "memory",
            "*_ test_gate[[]allclose-dies.pt-jit-cpu-float32[]] _*",
            "dies.pt, jit on cpu in float32: not judged",
            "expected a result, but the worker died: *",
        ]
    )
    assert sum("dies.pt" in line for line in judged(here)) == 1
    assert set(cases(here.path / "xml").values()) == {1}
    assert len(cases(here.path / "xml")) == 18
    report = (here.path / "report/report.txt").read_text()
    assert report.endswith("NOT JUDGED: 1 of 3 checkpoints could not be judged, 2 passed.\n")


@pytest.mark.thorough
def test_each_checkpoint_is_judged_once_in_one_worker_large_ones_first(
    here: pytest.Pytester,
) -> None:
    options = ("-n3", "-p", "no:randomly", "-v")
    result = here.runpytest_subprocess(*SUITE, *chosen("small.pt", "large.pt"), *options)
    result.assert_outcomes(passed=12)
    assert len(judged(here)) == 2
    ran = [line.split() for line in result.outlines if " PASSED " in line]
    for name in ("small.pt", "large.pt"):
        assert len({words[0] for words in ran if name in words[-1]}) == 1
    (share,) = {workers.threads(workers.cores(), 2)}
    result.stdout.fnmatch_lines([f"clipcheck: large.pt, small.pt on cpu; seed 0; {share} thread*"])
    # One of the three had nothing to do, and imported nothing for it.
    assert sorted((here.path / "imported").read_text().splitlines())[0] == "False False"


@pytest.mark.thorough
def test_tests_that_are_spread_over_workers_share_one_judgement(here: pytest.Pytester) -> None:
    options = ("-n2", "-p", "no:randomly", "--dist=load", "--maxschedchunk=1")
    result = here.runpytest_subprocess(*SUITE, *chosen("bad.pt"), *options)
    result.assert_outcomes(passed=5, failed=1)
    assert len(judged(here)) == 1


def test_a_failure_is_one_block_and_a_line_for_each_gate_whose_id_can_be_pasted_back(
    here: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")  # There pytest cuts no line off.
    root = f"--rootdir={here.path.parent}"  # Ids are paths from there, to pytest.
    options = ("-p", "no:randomly", root, "--junit-xml=xml")
    result = here.runpytest_subprocess(*SUITE, *chosen("bad.pt"), *options)
    result.assert_outcomes(passed=5, failed=1)
    first = next(at for at, line in enumerate(result.outlines) if "= FAILURES =" in line)
    assert result.outlines[first + 1 :][:3] == [
        "__________________ test_gate[allclose-bad.pt-jit-cpu-float32] __________________",
        "bad.pt, jit on cpu in float32: allclose",
        "so it is with allclose",
    ]
    assert "= clipcheck =" in result.outlines[first + 5]  # after the name of the JUnit file
    assert (
        result.outlines.count(
            "INCONSISTENT: 1 checkpoint differs between JIT and eager. Worst: allclose."
        )
        == 1
    )
    assert result.outlines.count("Next: clipcheck convert bad.pt -o fixed.pt") == 1
    (line,) = (line for line in result.outlines if line.startswith("FAILED"))
    word, test, dash, reason = line.split(" ", 3)
    assert (word, dash, reason) == ("FAILED", "-", "so it is with allclose")
    assert test == "clipcheck.suite::test_gate[allclose-bad.pt-jit-cpu-float32]"
    found = ElementTree.parse(here.path / "xml").getroot().iter("property")
    told = {each.get("name"): each.get("value") for each in found}
    assert told["clipcheck"] == __version__
    assert told["bad.pt, jit on cpu in float32: run"] == "0badf00d"
    again = here.runpytest_subprocess("--pyargs", test, *chosen("bad.pt"))
    again.assert_outcomes(failed=1)


@pytest.mark.thorough
def test_the_table_of_gates_is_shown_where_all_pass(here: pytest.Pytester) -> None:
    result = here.runpytest_subprocess(*SUITE, *chosen("small.pt"), "-p", "no:randomly", "-n2")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(
        [
            "*= clipcheck =*",
            "small.pt on cpu: the file given",
            "jit cpu float32  integrity  allclose  fidelity  modules  top1  repeatability",
            "small.pt         ok         ok        ok        ok       ok    ok",
            "CONSISTENT: 1 checkpoint agrees between JIT and eager.",
        ]
    )


@pytest.mark.thorough
def test_gates_that_are_not_tested_are_not_judged(pytester: pytest.Pytester) -> None:
    (pytester.path / "minute.pt").write_bytes(minute_bytes(Format.ARCHIVE))
    options = ("--clip-examples=1", "--clip-report=report", "-p", "no:randomly", "-k", "fidelity")
    result = pytester.runpytest_subprocess(*SUITE, *chosen("minute.pt"), *options)
    result.assert_outcomes(passed=1, deselected=5)
    (found,) = json.loads((pytester.path / "report/results.json").read_text())["results"]
    assert [gate["name"] for gate in found["gates"]] == ["fidelity"]
    assert "modules" not in found["seconds"]
    told = " ".join(result.outlines)
    assert "gates left out: integrity, allclose, modules, top1, repeatability." in told


@pytest.mark.thorough
def test_it_runs_beside_plugins_that_shuffle_and_repeat(here: pytest.Pytester) -> None:
    here.makepyfile(
        """
        def test_flaky(clip_judgement, tmp_path_factory):
            seen = tmp_path_factory.getbasetemp() / clip_judgement.checkpoint
            before = seen.exists()
            seen.touch()
            assert before
        """
    )
    here.makepyfile(test_suite="from clipcheck.suite import test_gate")
    options = ("-n2", "-p", "no:cacheprovider", "-p", "randomly", "--reruns=1", "-v")
    result = here.runpytest_subprocess(*chosen("large.pt", "small.pt"), *options)
    result.assert_outcomes(passed=14)
    result.stdout.fnmatch_lines(["Using --randomly-seed=*", "*= 14 passed, 2 rerun in *"])
    assert len(judged(here)) == 2


@pytest.mark.thorough
def test_on_github_the_summary_is_written_once_and_failures_are_annotated(
    here: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = here.path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    options = ("-n2", "-p", "no:randomly")
    result = here.runpytest_subprocess(*SUITE, *chosen("bad.pt", "small.pt"), *options)
    result.assert_outcomes(passed=11, failed=1)
    assert [line for line in result.outlines if line.startswith("::")] == [
        "::error title=clipcheck%3A bad.pt%2C jit on cpu in float32::does not pass allclose"
    ]
    text = summary.read_text(encoding="utf-8")
    assert (
        text.count(
            "### ✗ clipcheck: INCONSISTENT: 1 of 2 checkpoints differs between JIT and eager"
        )
        == 1
    )
    for name in ("bad.pt", "small.pt"):
        assert text.count(f"| {name} | jit | cpu | float32 |") == 1


@pytest.mark.thorough
def test_a_summary_that_cannot_be_written_is_reported_on_stderr(
    here: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here.path))
    result = here.runpytest_subprocess(*SUITE, *chosen("small.pt"), "-p", "no:randomly")
    assert result.ret == 0
    assert any("the summary cannot be written (" in line for line in result.errlines)


@pytest.mark.thorough
def test_a_run_that_judges_nothing_adds_nothing_to_the_summary(
    here: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here.path / "summary.md"))
    here.makepyfile("def test_mine(): assert False")
    assert here.runpytest_subprocess().ret == 1
    assert not (here.path / "summary.md").exists()


@pytest.mark.thorough
def test_several_backends_are_judged_each_by_its_gates(pytester: pytest.Pytester) -> None:
    (pytester.path / "minute.pt").write_bytes(minute_bytes(Format.ARCHIVE))
    pytester.makepyfile(
        test_own="""
        import numpy as np

        def test_pair(clip_reference, clip_candidate, clip_backend):
            assert clip_candidate.name == clip_backend
            pixels = np.zeros((1, 3, 16, 16), np.float32)
            own, other = (each.encode_image(pixels) for each in (clip_reference, clip_candidate))
            assert np.allclose(own, other, atol=1e-4)
        """,
        test_gates="from clipcheck.suite import test_gate",
    )
    backends = ("--clip-backend=trace", "--clip-backend=script")
    options = ("--clip-examples=1", "--clip-report=report", "-p", "no:randomly")
    result = pytester.runpytest_subprocess(*chosen("minute.pt"), *backends, *options)
    result.assert_outcomes(passed=2 * 4 + 2, skipped=4)  # no clear best match, and no modules
    results = json.loads((pytester.path / "report/results.json").read_text())["results"]
    assert [(each["backend"], each["passed"]) for each in results] == [
        ("trace", True), ("script", True)
    ]  # fmt: skip
    gates = list(gates_for("eager", "float32"))
    assert [[gate["name"] for gate in each["gates"]] for each in results] == [gates] * 2


@parametrize("workers", ["-n0", "-n2"])
def test_it_does_not_run_without_a_checkpoint(here: pytest.Pytester, workers: str) -> None:
    result = here.runpytest_subprocess(*SUITE, workers, "--clip-report=report")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = filter(None, result.errlines)
    assert line.startswith("ERROR: --clip-model: expected the checkpoint to judge, found none. ")
    assert not (here.path / "judged").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_it_is_not_green_if_everything_is_left_out(here: pytest.Pytester, workers: str) -> None:
    here.makepyfile(test_mine="def test_mine(): pass")
    options = (*SUITE, "test_mine.py", *chosen("small.pt"), workers, "-p", "no:randomly")
    result = here.runpytest_subprocess(*options, "-k", "mine")
    result.assert_outcomes(passed=1, deselected=6 if workers == "-n0" else 0)
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["the suite ran, but no checkpoint was judged"])
    assert here.runpytest_subprocess(*options, "-k", "nothing").ret == result.ret
    assert here.runpytest_subprocess(*options).ret == pytest.ExitCode.OK


@pytest.mark.thorough
def test_an_unknown_backend_is_refused_before_any_test_runs(here: pytest.Pytester) -> None:
    result = here.runpytest_subprocess(*SUITE, *chosen("small.pt"), "--clip-backend=tracer")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*--clip-backend: expected a backend, found 'tracer'. The nearest name is 'trace'*"]
    )
    assert not (here.path / "judged").exists()
