"""The pytest plugin: options that choose checkpoints and devices, fixtures that give them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from clipcheck.suite import Subject

DEFAULT_MODELS = ("tiny-vit", "tiny-resnet", "ViT-B/32")
"""What runs in a minute: both small architectures, and a full-size one."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, in a group of their own."""
    group = parser.getgroup("clipcheck", "consistency of CLIP checkpoints")
    group.addoption(
        "--clip-model",
        action="append",
        metavar="M",
        help="a released name, 'all' for the nine of them, an architecture, or a path; may be "
        f"repeated (default: {', '.join(DEFAULT_MODELS)})",
    )
    group.addoption(
        "--clip-device",
        action="append",
        metavar="D",
        help="cpu, cuda, cuda:1, mps; may be repeated (default: cpu). With several workers, "
        "'cuda' spreads them over the GPUs",
    )
    group.addoption(
        "--clip-atol",
        type=float,
        default=0.01,
        metavar="A",
        help="absolute tolerance on probabilities (default: %(default)s)",
    )
    group.addoption(
        "--clip-rtol",
        type=float,
        default=0.1,
        metavar="R",
        help="relative tolerance on probabilities (default: %(default)s)",
    )


def pytest_configure() -> None:
    """Divide the cores before anything imports torch."""
    divide_cores()


def divide_cores() -> None:
    """Give each worker of pytest-xdist its share of the cores.

    Each would start a thread for every core otherwise, and they would fight for them. A number
    that is set already is left alone.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, (os.cpu_count() or 1) // workers)
        # Read by torch when it is imported, which no plugin has done yet.
        os.environ["OMP_NUM_THREADS"] = str(threads)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """With ``-n auto`` on GPUs, one worker for each: more would run out of their memory."""
    if not any(device.startswith("cuda") for device in config.getoption("--clip-device") or []):
        return None
    import torch

    return max(torch.cuda.device_count(), 1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests that ask for ``clip_model`` and ``clip_device`` from the options."""
    if "clip_model" in metafunc.fixturenames:
        metafunc.parametrize("clip_model", _models(metafunc.config), scope="session")
    if "clip_device" in metafunc.fixturenames:
        devices = metafunc.config.getoption("--clip-device") or ["cpu"]
        metafunc.parametrize("clip_device", devices, scope="session")


def _models(config: pytest.Config) -> list[str]:
    from clipcheck.checkpoints.registry import available_models

    chosen = config.getoption("--clip-model") or list(DEFAULT_MODELS)
    found = [name for m in chosen for name in (available_models() if m == "all" else [m])]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="session")
def clip_subject(
    clip_model: str,
    clip_device: str,
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Subject:
    """The checkpoint, checked on the device."""
    from clipcheck.suite import check_subject

    return check_subject(
        clip_model,
        clip_device,
        tmp_path_factory,
        atol=pytestconfig.getoption("--clip-atol"),
        rtol=pytestconfig.getoption("--clip-rtol"),
    )


def pytest_report_header(config: pytest.Config) -> str:
    """Name what is going to be checked."""
    devices = config.getoption("--clip-device") or ["cpu"]
    return f"clipcheck: {', '.join(_models(config))} on {', '.join(devices)}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say of each checkpoint whether it was a file or seeded weights."""
    sources: dict[str, str] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            sources.update(
                (value, "")
                for key, value in getattr(report, "user_properties", ())
                if key == "clip"
            )
    if sources:
        terminalreporter.section("clipcheck")
        for line in sorted(sources):
            terminalreporter.write_line(line)
