from __future__ import annotations

import pytest

# Here, not in the tests: what is imported while ``pytester`` is in use is thrown away after it,
# and torch cannot be imported a second time.
import torch

from clipcheck import pytest_plugin, suite
from clipcheck.checkpoints.registry import available_models
from conftest import SeededArchive

pytest_plugins = ["pytester"]

SHOWS = """
    def test_it(clip_model, clip_device):
        print(f"seen {clip_model} {clip_device}")
"""


@pytest.fixture
def shown(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(SHOWS)
    return pytester


def test_by_default_it_takes_what_runs_in_a_minute(shown: pytest.Pytester) -> None:
    result = shown.runpytest_inprocess("-s")
    result.stdout.fnmatch_lines(["clipcheck: tiny-vit, tiny-resnet, ViT-B/32 on cpu"])
    result.stdout.fnmatch_lines(["*seen tiny-vit cpu*", "*seen tiny-resnet cpu*"])
    result.assert_outcomes(passed=3)


def test_models_and_devices_are_every_combination_of_the_options(shown: pytest.Pytester) -> None:
    options = ("--clip-model", "a.pt", "--clip-model", "b.pt", "--clip-device", "cpu")
    result = shown.runpytest_inprocess("-s", *options, "--clip-device", "mps")
    result.assert_outcomes(passed=4)
    for model in ("a.pt", "b.pt"):
        for device in ("cpu", "mps"):
            assert f"seen {model} {device}" in result.stdout.str()


def test_all_stands_for_the_nine_released_models(shown: pytest.Pytester) -> None:
    result = shown.runpytest_inprocess("-s", "--clip-model", "all", "--clip-model", "RN50")
    result.assert_outcomes(passed=9)
    result.stdout.fnmatch_lines([f"clipcheck: {', '.join(available_models())} on cpu"])


def test_the_help_describes_the_options(shown: pytest.Pytester) -> None:
    result = shown.runpytest_inprocess("--help")
    result.stdout.fnmatch_lines(["*--clip-model=M*", "*--clip-device=D*", "*--clip-atol=A*"])


def test_the_summary_tells_seeded_weights_from_files(
    pytester: pytest.Pytester, seeded_archive: SeededArchive
) -> None:
    pytester.makepyfile(
        """
        def test_it(clip_subject, record_property):
            record_property("clip", clip_subject.source)
        """
    )
    path = seeded_archive("tiny-vit")
    # In a process of its own, for the reason above.
    result = pytester.runpytest_subprocess("--clip-model", "tiny-vit", "--clip-model", str(path))
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "*= clipcheck =*",
            f"{path} on cpu: the file given",
            "tiny-vit on cpu: seeded weights, NOT the released ones",
        ]
    )


def test_without_its_fixtures_it_says_nothing_at_the_end(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_inprocess()
    assert "= clipcheck =" not in result.stdout.str()


@pytest.mark.parametrize(
    ("workers", "before", "expected"),
    [("2", None, "4"), ("16", None, "1"), ("2", "7", "7"), ("1", None, None), (None, None, None)],
)
def test_the_cores_are_divided_among_the_workers(
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
    workers: str | None,
    before: str | None,
    expected: str | None,
) -> None:
    import os

    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for name, value in (("PYTEST_XDIST_WORKER_COUNT", workers), ("OMP_NUM_THREADS", before)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    # Set and taken away again, so that monkeypatch restores what the plugin sets.
    pytest_plugin.divide_cores()
    assert os.environ.get("OMP_NUM_THREADS") == expected
    if before is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], None),
        (["--clip-device", "cpu"], None),
        (["--clip-device", "cuda"], 3),
        (["--clip-device", "cpu", "--clip-device", "cuda:1"], 3),
    ],
)
def test_on_gpus_there_are_as_many_workers_as_gpus(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    expected: int | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    config = pytester.parseconfig(*options)
    assert pytest_plugin.pytest_xdist_auto_num_workers(config) == expected


@pytest.mark.parametrize(
    ("device", "worker", "gpus", "expected"),
    [
        ("cuda", "gw0", 2, "cuda:0"),
        ("cuda", "gw3", 2, "cuda:1"),
        ("cuda", None, 2, "cuda:0"),
        ("cuda:1", "gw0", 2, "cuda:1"),
        ("cpu", "gw1", 2, "cpu"),
        ("cuda", "gw1", 0, "cuda:0"),
    ],
)
def test_workers_are_spread_over_the_gpus(
    monkeypatch: pytest.MonkeyPatch, device: str, worker: str | None, gpus: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if worker is None:
        monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    else:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
    assert suite.spread(device) == expected
