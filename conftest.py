"""The option --thorough, and fixtures for all tests: seeded checkpoints and the command line."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

SeededArchive = Callable[..., Path]

EXAMPLES, THOROUGH_EXAMPLES = 25, 50
"""Examples of each Hypothesis test, in a plain run and with --thorough."""

_LEFT_OUT = pytest.StashKey[int]()
"""Number of deselected tests, the same in all workers."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that runs all tests."""
    parser.addoption(
        "--thorough",
        action="store_true",
        help="also run the tests marked thorough, which repeat others with another fault, backend, "
        f"architecture or attack, and {THOROUGH_EXAMPLES} examples of each Hypothesis test in "
        f"place of {EXAMPLES}",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples Hypothesis draws."""
    # Loading a model or writing a file sometimes exceeds Hypothesis's default deadline.
    hypothesis.settings.register_profile(
        "clipcheck",
        deadline=None,
        max_examples=THOROUGH_EXAMPLES if _is_asked_for(config) else EXAMPLES,
        derandomize="CI" in os.environ,
    )
    hypothesis.settings.load_profile("clipcheck")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect thorough tests, unless --thorough is given or tests are named."""
    if _is_asked_for(config) or any("::" in argument for argument in config.args):
        return
    left_out = [item for item in items if _is_thorough(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not _is_thorough(item)]
    config.stash[_LEFT_OUT] = len(left_out)


def _is_asked_for(config: pytest.Config) -> bool:
    """Whether --thorough is given; unknown if a test of the suite makes pytest find this file."""
    return bool(config.getoption("thorough", default=False))


def _is_thorough(item: pytest.Item) -> bool:
    """Whether a test is marked thorough, or uses the second of the tiny archives."""
    if item.get_closest_marker("thorough"):
        return True
    # Not a mark on the fixture's parameter: the marker is not registered everywhere.
    chosen = getattr(getattr(item, "callspec", None), "params", {})
    return chosen.get("tiny_archive") == "tiny-resnet"


def pytest_collection_finish() -> None:
    """Exempt the modules that collecting has imported from garbage collection."""
    _exempt_from_collection()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Exempt modules that a test imported, and all objects at the end of a file."""
    before = len(sys.modules)
    found = yield
    if nextitem and (nextitem.path != item.path or len(sys.modules) > before + 20):
        _exempt_from_collection()
    return found


def _exempt_from_collection() -> None:
    """Exempt all present objects from garbage collection.

    Each check collects garbage, and would traverse all modules of torch, of the tests and of the
    libraries, which would be most of the time of a check of the smallest model.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the main process how many tests a worker of pytest-xdist deselected."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(_LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the count from any worker: all collect the same tests."""
    node.config.stash[_LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print how many tests were deselected, because pytest-xdist does not."""
    if config.stash.get(_LEFT_OUT, 0):
        terminalreporter.write_line(
            f"{config.stash[_LEFT_OUT]} thorough tests deselected; --thorough runs them as well"
        )


@pytest.fixture(scope="session")
def thorough(pytestconfig: pytest.Config) -> bool:
    """Whether --thorough is given, for tests that repeat something several times."""
    return bool(pytestconfig.getoption("thorough"))


@pytest.hookimpl(optionalhook=True, trylast=True)
def pytest_xdist_setupnodes(specs: Sequence[object]) -> None:
    """Divide the cores among all workers: each imports torch, whatever clipcheck's options are."""
    from clipcheck.system.workers import divide_cores

    divide_cores(specs, busy=len(specs))


@pytest.fixture(autouse=True)
def no_github_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep failures that tests cause on purpose out of the GitHub job that runs the tests."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module", autouse=True)
def same_threads() -> Iterator[None]:
    """Fail a file that leaves another number of torch's threads. With more of them than cores, each
    later test of the process took up to eight times as much processor time."""
    torch = sys.modules.get("torch")
    before = torch and torch.get_num_threads()
    yield
    assert torch is None or torch.get_num_threads() == before


@pytest.fixture(scope="session", autouse=True)
def own_artefact_cache(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[None]:
    """Give the run its own cache of built programs, shared by all workers."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(pytestconfig, "workerinput"):
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPCHECK_ARTEFACTS", str(folder / "artefacts"))
        # Otherwise torch starts compiler processes, each of which imports torch.
        patch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def seeded_archive(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> SeededArchive:
    """Return a function that gives the path of a seeded archive. Tests must not change the file."""
    from clipcheck.plugin.subjects import seeded_archive

    folder = tmp_path_factory.getbasetemp()
    if hasattr(pytestconfig, "workerinput"):
        folder = folder.parent  # the folder that all workers share
    return lambda name="tiny-vit": seeded_archive(name, folder)


@pytest.fixture(scope="session", params=["tiny-vit", "tiny-resnet"])
def tiny_archive(request: pytest.FixtureRequest, seeded_archive: SeededArchive) -> Path:
    """An archive of each small architecture. Tests must not change the file."""
    return seeded_archive(request.param)


@pytest.fixture(scope="session")
def minute_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive with the fastest check, for behaviour that all architectures share.

    Tests must not change the file.
    """
    from clipcheck.checkpoints.checkpoint import Format
    from tests.samples import minute_bytes

    path = tmp_path_factory.mktemp("minute") / "minute.pt"
    path.write_bytes(minute_bytes(Format.ARCHIVE))
    return path


def unfolded(text: str) -> str:
    """Join the continued lines of each command, as a shell does."""
    return re.sub(r" \\\n +", " ", text).replace(" \\\n", " ").replace("\\\n", "")


@dataclass(frozen=True)
class Done:
    """Result of a command: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command line in this process, to import torch only once."""
    from clipcheck.cli import app as cli

    # Otherwise failing examples of a test would be saved for the user's own checks.
    storage = os.environ.get("HYPOTHESIS_STORAGE_DIRECTORY", ".hypothesis")
    monkeypatch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", storage)

    def invoke(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["clipcheck", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        code = caught.value.code
        return Done(code if isinstance(code, int) else 0, captured.out, captured.err)

    return invoke
