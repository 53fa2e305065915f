from __future__ import annotations

from types import SimpleNamespace

import pytest

# Here, not in the tests: what is imported while ``pytester`` is in use is thrown away after it,
# and torch cannot be imported a second time.
import torch

import clipcheck.models.loader  # noqa: F401
from clipcheck import suite
from clipcheck.checkpoints.registry import available_models
from clipcheck.plugin import hooks as pytest_plugin
from clipcheck.plugin import offered
from clipcheck.system import workers

pytest_plugins = ["pytester"]

SHOWS = """
    def test_it(clip_model, clip_device):
        print(f"seen {clip_model} {clip_device}")
"""


@pytest.fixture(autouse=True)
def of_no_other_run(monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester) -> None:
    """Remove what the outer run set for its workers, so that inner runs do not see it."""
    for name in (*workers.THREADS, workers.GPUS):
        monkeypatch.delenv(name, raising=False)
    pytester.makeini("[pytest]\naddopts = -p no:randomly -p no:cacheprovider")


@pytest.fixture
def shown(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(SHOWS)
    for name in ("a.pt", "b.pt"):
        (pytester.path / name).write_bytes(name.encode())
    return pytester


def test_without_a_checkpoint_only_the_tests_that_need_one_fail(shown: pytest.Pytester) -> None:
    shown.makepyfile(test_other="def test_other(clip_device, clip_dtype): pass")
    shown.makepyfile(test_imported="from clipcheck.suite import test_gate")
    result = shown.runpytest_inprocess()
    result.assert_outcomes(passed=1, errors=1 + 6)
    assert "--clip-model: expected the checkpoint to judge, found none." in result.stdout.str()
    assert "clipcheck:" not in result.stdout.str()


def test_seeded_weights_are_used_on_request(shown: pytest.Pytester) -> None:
    result = shown.runpytest_inprocess("-v", "--clip-seeded")
    lines = [f"*[[]seeded:{name}-cpu]*" for name in ("ViT-B/32", "tiny-*", "tiny-*")]
    result.stdout.fnmatch_lines(lines)
    result.assert_outcomes(passed=3)


def test_models_and_devices_are_every_combination_of_the_options(shown: pytest.Pytester) -> None:
    options = ("--clip-model", "a.pt", "--clip-model", "b.pt", "--clip-device", "cpu")
    result = shown.runpytest_inprocess("-s", *options, "--clip-device", "cpu:0")
    result.assert_outcomes(passed=4)
    for model in ("a.pt", "b.pt"):
        for device in ("cpu", "cpu:0"):
            assert f"seen {model} {device}" in result.stdout.str()


def test_all_stands_for_the_nine_released_models(shown: pytest.Pytester) -> None:
    result = shown.runpytest_inprocess("-s", "--clip-model", "all", "--clip-model", "RN50")
    result.assert_outcomes(passed=9)
    for name in available_models():
        assert f"seen {name} cpu" in result.stdout.str()


def test_the_header_says_what_is_judged_and_what_with(shown: pytest.Pytester) -> None:
    result = shown.runpytest_inprocess("--clip-model", "a.pt", "--clip-seed", "3")
    result.stdout.fnmatch_lines(["clipcheck: a.pt on cpu; seed 3; * thread*; torch *"])


def test_the_help_describes_the_options_and_the_marker(shown: pytest.Pytester) -> None:
    result = shown.runpytest_inprocess("--help")
    for option in offered.OPTIONS:
        assert f"  {option}=" in result.stdout.str()
    for option in offered.FLAGS:
        assert f"  {option} " in result.stdout.str()
    result = shown.runpytest_inprocess("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.clipcheck: judges a CLIP checkpoint*"])


def test_tests_of_checkpoints_can_be_left_out_by_their_marker(shown: pytest.Pytester) -> None:
    result = shown.runpytest_inprocess("--strict-markers", "-m", "not clipcheck")
    result.assert_outcomes(deselected=1)


def test_tests_of_one_checkpoint_are_consecutive(shown: pytest.Pytester) -> None:
    shown.makepyfile(
        """
        def test_one(clip_model): pass
        def test_other(): pass
        def test_two(clip_model, clip_device): pass
        """
    )
    options = ("--clip-model=a.pt", "--clip-model=seeded:tiny-vit", "--clip-device=cpu")
    result = shown.runpytest_inprocess("-v", *options, "--clip-device=cpu:0")
    seen = [line.split("::")[1].split()[0] for line in result.outlines if "::" in line]
    places = [test.partition("[")[2].removesuffix("]").removesuffix("-cpu") for test in seen]
    assert places == [
        *2 * ["seeded:tiny-vit"],
        "seeded:tiny-vit-cpu:0",
        *2 * ["a.pt"],
        "a.pt-cpu:0",
        "",
    ]


@pytest.mark.parametrize(
    "options",
    [
        ["--clip-model", "gone.pt"],
        ["--clip-model", "a.pt", "--clip-model", "gone.pt", "-n2"],
        ["--clip-backend", "onnx"],
        ["--clip-dtype", "float8"],
        ["--clip-atol", "nan"],
        ["--clip-rtol=-1"],
        ["--clip-examples", "0"],
        ["--clip-seed=-1"],
        ["--clip-report", "a.pt"],
        ["--clip-seed=x", "-nauto", "--pyargs", "clipcheck.suite"],
        ["--clip-model="],
        ["--clip-model", "tiny-vit"],
        ["--clip-model", "a.pt", "--clip-seeded"],
    ],
    ids=" ".join,
)
def test_bad_input_is_one_usage_error_before_any_test(
    shown: pytest.Pytester, options: list[str]
) -> None:
    result = shown.runpytest_inprocess(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    lines = [line for line in result.errlines if line]
    assert len(lines) == 1
    assert lines[0].startswith("ERROR: ")
    assert options[0].split("=")[0] in lines[0]
    assert "test session starts" not in result.stdout.str()


def test_reports_that_can_no_longer_be_written_are_named_beside_the_failures(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        from pathlib import Path

        def test_it():
            Path("report").rmdir()
            Path("report").touch()
            assert False
        """
    )
    result = pytester.runpytest_inprocess("--clip-report", "report")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(
        ["*= FAILURES =*", "*= clipcheck =*", f"{pytester.path}/report*: *"]
    )
    result.assert_outcomes(failed=1)


def test_a_device_that_is_not_there_is_one_usage_error(
    shown: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    result = shown.runpytest_inprocess("--clip-device", "cuda:2", "-nauto")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: --clip-device: " in result.stderr.str()


OF_THE_OPTIONS = (
    "clipcheck",
    "clipcheck._version",
    "clipcheck.backends",
    "clipcheck.backends.names",
    "clipcheck.gates",
    "clipcheck.gates.tolerances",
    "clipcheck.harness",
    "clipcheck.harness.declarations",
    "clipcheck.harness.declared",
    "clipcheck.inputs",
    "clipcheck.inputs.counts",
    "clipcheck.plugin",
    "clipcheck.plugin.hooks",
    "clipcheck.plugin.offered",
)
"""What every run of pytest imports, in 10 ms: the names and the help of the options."""


def test_runs_without_the_suite_are_not_changed(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import sys

        def modules():
            heavy = ("torch", "numpy", "PIL", "filelock", "hypothesis")
            ours = sorted(name for name in sys.modules if name.split(".")[0] == "clipcheck")
            return [*ours, *(name for name in heavy if name in sys.modules)]

        def pytest_unconfigure(config):
            print("left", config.getoption("dist", None), *modules())
        """
    )
    pytester.makepyfile(
        f"""
        import os
        from conftest import modules

        def test_it():
            assert tuple(modules()) == {OF_THE_OPTIONS}
            assert "OMP_NUM_THREADS" not in os.environ
        """
    )
    result = pytester.runpytest_subprocess("-n1", "-p", "no:anyio", "-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"left load {' '.join(OF_THE_OPTIONS)}"])
    assert "clipcheck:" not in result.stdout.str()
    assert "= clipcheck =" not in result.stdout.str()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-n2", "--clip-seed=1"], "loadgroup"),
        (["-nauto", "--pyargs", "clipcheck.suite"], "loadgroup"),
        (["-nauto", "--pyargs", "clipcheck.suite::test_gate"], "loadgroup"),
        (["-n2", suite.__file__], "loadgroup"),
        (["-n2"], "load"),
        (["-n2", "--clip-seed=1", "--dist=load"], "load"),
        (["-n2", "--clip-seed=1", "--dist=worksteal"], "worksteal"),
        (["-n0", "--clip-seed=1"], "no"),
        (["--clip-seed=1"], "no"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_tests_of_a_checkpoint_go_to_one_worker_where_nothing_else_is_asked_for(
    pytester: pytest.Pytester, options: list[str], expected: str
) -> None:
    # Its own: that of the repository, in which the suite lies as well, asks for something else.
    ini = pytester.makeini("[pytest]")
    config = pytester.parseconfig(*options, "--collect-only", "-c", str(ini))
    main = config.pluginmanager.getplugin("main")
    config.pluginmanager.unregister(main)  # which would go on to run the tests
    config.hook.pytest_cmdline_main(config=config)
    assert config.getoption("dist") == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], None),
        (["--clip-device=cpu"], None),
        (["--clip-device=cuda"], 3),
        (["--clip-device=cpu", "--clip-device=cuda"], 3),
        (["--clip-device=cuda:1"], 1),
        (["--clip-device=cuda:1", "--clip-device=cuda:2", "--clip-device=cpu"], 2),
        # Where nothing but the suite is run, there may be less to do than there are cores.
        (["--pyargs", "clipcheck.suite", "--clip-model=RN50"], 1),
        (["--pyargs", "clipcheck.suite", "--clip-model=RN50", "--clip-device=cuda"], 1),
        (["--pyargs", "clipcheck.suite", "--clip-device=cuda"], 1),
        (["--pyargs", "clipcheck.suite", "--clip-device=cuda", "--clip-seeded"], 3),
        (["--pyargs", "clipcheck.suite", "--clip-model=all"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_there_are_as_many_workers_as_gpus_and_no_more_than_have_a_part(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    expected: int | None,
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(workers, "cores", lambda: 4)
    config = pytester.parseconfig(*options)
    assert pytest_plugin.pytest_xdist_auto_num_workers(config) == expected
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "2")
    assert pytest_plugin.pytest_xdist_auto_num_workers(config) is None


@pytest.mark.parametrize(
    ("options", "threads", "gpus"),
    [
        # Nothing of ours: nothing is set.
        ([], None, [None, None, None]),
        # The suite alone, with one checkpoint: one worker computes, on one device or on two.
        (["--pyargs", "clipcheck.suite", "--clip-model=RN50"], "12", [None, None, None]),
        (
            ["--pyargs", "clipcheck.suite", "--clip-model=RN50", "--clip-device=cuda"],
            "12",
            ["0", "1", "0"],
        ),
        (
            [
                "--pyargs",
                "clipcheck.suite",
                "--clip-model=RN50",
                "--clip-device=cuda",
                "--clip-device=cpu",
            ],
            "6",
            ["0", "1", "0"],
        ),
        # Other tests beside it, of which nothing is known.
        (["test_x.py", "--clip-model=RN50"], "4", [None, None, None]),
        (["test_x.py", "--clip-device=cuda:1"], "4", [None, None, None]),
    ],
)
def test_cores_and_gpus_are_divided_before_the_workers_start(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    threads: str | None,
    gpus: list[str | None],
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(workers, "cores", lambda: 12)
    specs = [SimpleNamespace(env={}, popen=True) for _ in gpus]
    config = pytester.parseconfig(*options)
    pytest_plugin.pytest_xdist_setupnodes(config, specs)
    assert [spec.env.get("OMP_NUM_THREADS") for spec in specs] == [threads] * len(gpus)
    assert [spec.env.get(workers.GPUS) for spec in specs] == gpus


def test_a_worker_starts_with_its_threads_and_sees_its_gpu_alone(pytester: pytest.Pytester) -> None:
    # In place of torch, so that there are GPUs, and to see that no worker imports it.
    pytester.makepyfile(torch="class cuda:\n    device_count = staticmethod(lambda: 2)")
    pytester.makeconftest(
        """
        import os, sys

        def pytest_configure(config):
            if hasattr(config, "workerinput"):
                at_start["threads"] = os.environ["OMP_NUM_THREADS"]
                at_start["gpu"] = os.environ["CUDA_VISIBLE_DEVICES"]

        at_start = {}
        """
    )
    pytester.makepyfile(
        """
        import sys
        import pytest
        from conftest import at_start

        @pytest.mark.parametrize("n", range(4))
        def test_it(n, worker_id):
            assert "torch" not in sys.modules
            print("seen", worker_id, at_start["gpu"], at_start["threads"])
        """
    )
    lean = ("-p", "no:anyio", "-p", "no:hypothesispytest")
    result = pytester.runpytest_subprocess("-n2", "--clip-device=cuda", "-rP", *lean)
    result.assert_outcomes(passed=4)
    seen = {line for line in result.outlines if line.startswith("seen")}
    share = workers.threads(workers.cores(), 2)
    assert seen == {f"seen gw0 0 {share}", f"seen gw1 1 {share}"}
