"""The pytest plugin: options that choose what is judged, fixtures that give it, and workers.

A run that has none of its options, and does not name the suite, is left alone. Nothing heavy is
imported before it is needed: all who have clipcheck installed import this module.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from clipcheck.backends.base import Backend
    from clipcheck.plugin.choices import Choices
    from clipcheck.plugin.needs import Needs
    from clipcheck.plugin.run import Pair, Run
    from clipcheck.plugin.sharing import Case, Finding, Findings
    from clipcheck.results.judgement import Judgement, Result

SUITE = "clipcheck.suite"
"""The module of tests, for ``--pyargs``."""

_AUTO = "PYTEST_XDIST_AUTO_NUM_WORKERS"
"""Variable that pytest-xdist reads before it counts."""

_SUITE_FILE = Path(__file__).parents[1] / "suite.py"

OPTIONS = {
    "--clip-model": (
        "M",
        "a path, a released name (downloaded if need be), 'all' for the nine of them, or "
        "'seeded:' and an architecture, such as seeded:ViT-B/32",
    ),
    "--clip-architecture": (
        "ARCH",
        "what weights are of that do not tell: a released name, open_clip:NAME, or the path of an "
        "open_clip_config.json or a config.json",
    ),
    "--clip-device": (
        "D",
        "cpu, cuda, cuda:1, mps (default: cpu). 'cuda' gives each worker a GPU of its own",
    ),
    "--clip-backend": (
        "B",
        "what is compared with the eager model, as `clipcheck backends` lists (default: jit)",
    ),
    "--clip-dtype": (
        "T",
        "float32, float16, bfloat16 (default: float32, and elsewhere than on the CPU float16 too)",
    ),
    "--clip-atol": ("A", "absolute tolerance on probabilities (default: 0.01)"),
    "--clip-rtol": ("R", "relative tolerance on probabilities (default: 0.1)"),
    "--clip-examples": ("N", "number of images and prompts (default: as `clipcheck check`)"),
    "--clip-seed": ("S", "of the images and prompts (default: 0)"),
    "--clip-isolation": (
        "I",
        "process or none: where a file's own code runs (default: process, but for released files)",
    ),
    "--clip-key": (
        "NAME",
        "which model to read of a training checkpoint that holds several, such as model_ema",
    ),
    "--clip-report": ("DIR", "write results.json, report.txt and the inputs that failed there"),
}
"""Placeholder of the value and help of each option."""

FLAGS = {
    "--clip-seeded": "judge seeded weights, not trained ones, of each architecture that "
    "--clip-model names (default: tiny-vit, tiny-resnet and ViT-B/32)",
}
"""Help of each option without a value."""

REPEATABLE = ("--clip-model", "--clip-device", "--clip-backend", "--clip-dtype")

_CHOICES = pytest.StashKey["Choices"]()
_RUN = pytest.StashKey["Run"]()
_NEEDS: pytest.StashKey[Needs] = pytest.StashKey()
_NOTES = pytest.StashKey[list[str]]()
_GITHUB = pytest.StashKey[tuple[list[str], str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, in a group of their own."""
    group = parser.getgroup("clipcheck", "consistency of CLIP checkpoints")
    for name, (metavar, text) in OPTIONS.items():
        # As they were written: `Choices` reads them, and says what is wrong in one line.
        if name in REPEATABLE:
            group.addoption(name, action="append", metavar=metavar, help=f"{text}; repeatable")
        else:
            group.addoption(name, metavar=metavar, help=text)
    for name, text in FLAGS.items():
        group.addoption(name, action="store_true", default=None, help=text)


def in_use(config: pytest.Config) -> bool:
    """Whether this run has to do with checkpoints: else it is somebody else's, and left alone."""
    given = any(config.getoption(name) is not None for name in (*OPTIONS, *FLAGS))
    return given or _runs_suite(config)


def _runs_suite(config: pytest.Config) -> bool:
    return any(_names_suite(argument) for argument in config.args)


def _names_suite(argument: str) -> bool:
    module = argument.partition("::")[0]
    return module == SUITE or Path(module).absolute() == _SUITE_FILE


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, Any, Any]:
    """Have all tests of a checkpoint on a device go to one worker, where nothing else is asked for.

    As a wrapper it comes before pytest-xdist, which takes ``load`` where it finds nothing.
    """
    if _dist(config) == "no" and config.option.numprocesses and in_use(config):
        config.option.dist = "loadgroup"
        # Large checkpoints first, not those that have the most tests.
        config.option.loadscopereorder = False
    return (yield)


def _dist(config: pytest.Config) -> str | None:
    if config.getoption("distload", False):
        return "load"
    dist: str | None = config.getoption("dist", None)  # None is: there is no pytest-xdist
    return dist


def pytest_configure(config: pytest.Config) -> None:
    """Add the marker. Refuse bad options, and the suite without a checkpoint, before any test."""
    config.addinivalue_line("markers", "clipcheck: judges a CLIP checkpoint, or runs one")
    if not hasattr(config, "workerinput") and in_use(config):
        from clipcheck.plugin.choices import GIVE_A_MODEL, require_there

        choices = _choices(config)
        if _runs_suite(config) and not choices.models:
            raise pytest.UsageError(GIVE_A_MODEL)
        with _usage_errors():
            require_there(choices, config.invocation_params.dir)


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn our errors into usage errors, which pytest prints in one line without a traceback."""
    from clipcheck.errors import ClipcheckError

    try:
        yield
    except ClipcheckError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Limit the workers of ``-n auto`` to those that have a part, and on GPUs to one for each: more
    would run out of their memory."""
    if not in_use(config) or _AUTO in os.environ:
        return None
    from clipcheck.system import workers

    gpus, cores = workers.wanted_gpus(_choices(config).devices), workers.cores()
    most = _busy(config, gpus or cores)
    return most if gpus or most < cores else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: Sequence[Any]) -> None:
    """Divide cores and GPUs among the workers, before they start."""
    if in_use(config):
        from clipcheck.system import workers

        devices = _choices(config).devices
        workers.divide_cores(specs, _busy(config, len(specs)))
        if workers.dealt(devices):
            workers.deal_gpus(specs, workers.wanted_gpus(devices))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """Tell groups of tests by their checkpoint and device."""
    return make_scheduler(config, log) if in_use(config) else None


def make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """Return the scheduler of tests where ``--dist loadgroup`` is chosen, by this plugin or by the
    user."""
    if _dist(config) != "loadgroup":
        return None
    from clipcheck.plugin.scheduling import CheckpointScheduling

    return CheckpointScheduling(config, log, _choices(config))


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport, sched: Any) -> None:
    """Say what it may mean that a worker died over a test, below the name of that test."""
    if in_use(sched.config):
        report.location = (report.location[0], None, crashitem.partition("::")[2])
        report.longrepr = f"{report.longrepr}: it crashed, or the machine ran out of memory"


def _busy(config: pytest.Config, workers: int) -> int:
    """How many workers compute: where nothing but the suite is run, no more than have a part."""
    if not all(_names_suite(argument) for argument in config.args):
        return workers
    return max(1, min(workers, len(_choices(config).pairs())))


def _workers(config: pytest.Config) -> int:
    if _dist(config) in (None, "no") or not config.getoption("tx"):
        return 0
    # "popen", or several at once, as in "3*popen".
    specs = [spec.partition("*") for spec in config.getoption("tx")]
    return sum(int(number) if number.isdigit() and rest else 1 for number, _, rest in specs)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Name what is going to be judged, and what with."""
    if not in_use(config) or not _choices(config).models:
        return None
    from clipcheck.plugin.summary import header

    workers = _workers(config)
    return header(_choices(config), workers, _busy(config, workers))


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module | None:
    """Give the suite's tests an id that ``pytest --pyargs`` takes back, the same in every folder:
    pytest has no name for a file outside of the one that it is run in, and a long one for a file in
    an environment inside of it."""
    if module_path != _SUITE_FILE:
        return None
    return pytest.Module.from_parent(parent, path=module_path, nodeid=SUITE)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize tests that ask for a checkpoint from the options."""
    if not any(name.startswith("clip_") for name in metafunc.fixturenames):
        return
    from clipcheck.plugin.choices import NAMES

    asked = [name for name in NAMES if name in metafunc.fixturenames]
    if asked:
        combinations = _choices(metafunc.config).combinations(asked)
        metafunc.parametrize(
            asked,
            [pytest.param(*each.values(), marks=pytest.mark.clipcheck) for each in combinations],
            ids=["-".join(each.values()) for each in combinations],
            indirect=True,
            scope="session",
        )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Bring tests of one checkpoint and device together, large checkpoints first.

    Where pytest-randomly is, its order stays.
    """
    if _CHOICES in config.stash and not config.pluginmanager.hasplugin("randomly"):
        choices = _choices(config)
        order = {pair: at for at, pair in enumerate(choices.pairs())}
        items.sort(key=lambda item: order.get(_pair(item, choices), len(order)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note the gates that are tested of each case: no other gate's work is done."""
    if _CHOICES in session.config.stash:
        from clipcheck.plugin.needs import gates_needed

        session.config.stash[_NEEDS] = gates_needed(session.items, SUITE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Print a gate that failed without a traceback, and in the summary in one line."""
    report = yield
    if call.excinfo is not None and "clipcheck.plugin.failing" in sys.modules:
        from clipcheck.plugin.failing import NotPassedError, shorten

        if isinstance(call.excinfo.value, NotPassedError):
            shorten(report, call.excinfo, call.excinfo.value.line)
    return report


def _pair(item: pytest.Item, choices: Choices) -> tuple[str, str]:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return parameters.get("clip_model", ""), parameters.get("clip_device", choices.devices[0])


def _choices(config: pytest.Config) -> Choices:
    if _CHOICES not in config.stash:
        from clipcheck.plugin.choices import Choices

        with _usage_errors():
            config.stash[_CHOICES] = Choices.of(config.getoption, config.invocation_params.dir)
    return config.stash[_CHOICES]


@pytest.fixture(scope="session")
def clip_gate(request: pytest.FixtureRequest) -> str:
    """The name of a gate, each in turn that is judged in ``clip_dtype``."""
    return str(request.param)


@pytest.fixture(scope="session")
def clip_model(request: pytest.FixtureRequest) -> str:
    """A checkpoint as it was asked for, each of ``--clip-model`` in turn."""
    from clipcheck.plugin.choices import GIVE_A_MODEL, NO_MODEL

    if request.param == NO_MODEL:
        pytest.fail(GIVE_A_MODEL, pytrace=False)
    return str(request.param)


@pytest.fixture(scope="session")
def clip_backend(request: pytest.FixtureRequest) -> str:
    """The backend compared with the eager model, each of ``--clip-backend`` in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def clip_device(request: pytest.FixtureRequest) -> str:
    """The device that it runs on, each of ``--clip-device`` in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def clip_dtype(request: pytest.FixtureRequest) -> str:
    """The dtype that it computes in, each of ``--clip-dtype`` in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def clip_case(clip_model: str, clip_backend: str, clip_device: str, clip_dtype: str) -> Case:
    """The four in one: what is judged at once."""
    from clipcheck.plugin.sharing import Case

    return Case(clip_model, clip_backend, clip_device, clip_dtype)


@pytest.fixture(scope="session")
def clip_run(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Judges and loads checkpoints, each once in a run, however often it is asked for them."""
    from clipcheck.plugin.run import Run

    if _RUN not in pytestconfig.stash:
        base = tmp_path_factory.getbasetemp()
        folder = _shared(base.parent if hasattr(pytestconfig, "workerinput") else base)
        start = pytestconfig.invocation_params.dir
        needs = pytestconfig.stash.get(_NEEDS, {})
        pytestconfig.stash[_RUN] = Run(_choices(pytestconfig), start, folder, needs)
    return pytestconfig.stash[_RUN]


@pytest.fixture(scope="session")
def clip_judgement(clip_run: Run, clip_case: Case) -> Judgement:
    """Result of a check of the checkpoint. It is checked once in a run, whatever asks for it."""
    return clip_run.judgement(clip_case)


@pytest.fixture(scope="session")
def clip_reference(clip_run: Run, clip_case: Case) -> Backend:
    """The eager model, numpy in and out."""
    return _loaded(clip_run, clip_case).reference


@pytest.fixture(scope="session")
def clip_candidate(clip_run: Run, clip_case: Case) -> Backend:
    """The same checkpoint run as the archive that it is, numpy in and out."""
    return _loaded(clip_run, clip_case).candidate


def _loaded(run: Run, case: Case) -> Pair:
    from clipcheck.errors import ClipcheckError

    try:
        return run.pair(case)
    except ClipcheckError as error:
        pytest.fail(f"{case}: not loaded\n{error}", pytrace=False)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the reports, where they are asked for, and the summary of a job on GitHub Actions."""
    config = session.config
    if hasattr(config, "workerinput"):
        return
    found = _found(config)
    passed = session.exitstatus == pytest.ExitCode.OK
    if passed and not found and _runs_suite(config) and not config.option.collectonly:
        _note(config, "the suite was asked for, but no checkpoint was judged")
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
    asked = config.getoption("--clip-report") is not None
    if not found and not asked:
        return
    from clipcheck.plugin.summary import result_of, tell_github

    result = result_of(found, _choices(config))
    if found:
        config.stash[_GITHUB] = tell_github(result)
    folder = _choices(config).report
    if folder is not None:
        _write_reports(session, result, folder)


def _write_reports(session: pytest.Session, result: Result, folder: Path) -> None:
    from clipcheck.errors import OutputError
    from clipcheck.plugin.summary import write_reports

    try:
        _note(session.config, write_reports(result, folder))
    except OutputError as error:
        _note(session.config, str(error))
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def _note(config: pytest.Config, line: str) -> None:
    config.stash.setdefault(_NOTES, []).append(line)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say of each checkpoint whether it was a file or seeded weights and what every gate found,
    and where the reports are."""
    notes = config.stash.get(_NOTES, [])
    annotations, problem = config.stash.get(_GITHUB, ([], ""))
    if problem:
        print(f"clipcheck: {problem}", file=sys.stderr)
    if _findings(config) or notes:
        from clipcheck.plugin.summary import lines, told

        found = _found(config)
        terminalreporter.section("clipcheck")
        for line in [*lines(found), *told(found, _choices(config)), *notes, *annotations]:
            terminalreporter.write_line(line)


def _found(config: pytest.Config) -> list[Finding]:
    findings = _findings(config)
    return findings.all() if findings else []


def _findings(config: pytest.Config) -> Findings | None:
    """Return the findings of this process, or of all workers; None where nothing was judged."""
    if _RUN in config.stash:
        return config.stash[_RUN].findings
    # There is no public way to it outside of a fixture; pytest-xdist takes this one as well.
    factory = getattr(config, "_tmp_path_factory", None)
    if not _workers(config) or factory is None or not _shared(factory.getbasetemp()).is_dir():
        return None
    from clipcheck.plugin.sharing import Findings

    return Findings(_shared(factory.getbasetemp()))


def _shared(base: Path) -> Path:
    return base / "clipcheck"
