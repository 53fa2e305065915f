"""A folder for programs that take long to build, shared by all processes of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clipcheck.checkpoints.checkpoint import Format
from tests.backends.kept import minute
from tests.samples import MINUTE, MINUTE_RESNET
from tests.thorough import thorough


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: compiled code for several ends the process if one of them raises."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """Return the folder. Tests must not change its contents."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(pytestconfig, "workerinput"):
        folder = folder.parent
    return folder / "built"


@pytest.fixture(
    scope="session", params=[pytest.param(MINUTE, id="vit"), thorough(MINUTE_RESNET, id="resnet")]
)
def small_archive(request: pytest.FixtureRequest, built: Path) -> Path:
    """Yield an archive of the smallest model of each kind in turn. Tests must not change the
    file."""
    return minute(built, Format.ARCHIVE, request.param)
