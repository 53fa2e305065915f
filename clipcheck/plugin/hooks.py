"""The hooks and fixtures of the pytest plugin.

They do nothing in a run without the plugin's options and the suite. Heavy imports stand in
functions: every run of pytest imports this module where clipcheck is installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clipcheck.plugin.offered import FLAGS, OPTIONS, REPEATABLE

if TYPE_CHECKING:
    from clipcheck.backends.base import Backend
    from clipcheck.plugin.choices import Choices
    from clipcheck.plugin.needs import Needs
    from clipcheck.plugin.run import Pair, Run
    from clipcheck.plugin.sharing import Case, Finding, Findings
    from clipcheck.results.judgement import Judgement, Result

SUITE = "clipcheck.suite"
"""The suite's module, for ``--pyargs``."""

_AUTO = "PYTEST_XDIST_AUTO_NUM_WORKERS"
"""Environment variable by which the user sets the number of workers of ``-n auto``."""

_SUITE_FILE = Path(__file__).parents[1] / "suite.py"

_CHOICES = pytest.StashKey["Choices"]()
_RUN = pytest.StashKey["Run"]()
_NEEDS: pytest.StashKey[Needs] = pytest.StashKey()
_NOTES = pytest.StashKey[list[str]]()
_GITHUB = pytest.StashKey[tuple[list[str], str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the plugin's group of options."""
    group = parser.getgroup("clipcheck", "consistency of CLIP checkpoints")
    for name, (metavar, text) in OPTIONS.items():
        # No type here: `Choices` parses the text, and reports an error in one line.
        if name in REPEATABLE:
            group.addoption(name, action="append", metavar=metavar, help=text)
        else:
            group.addoption(name, metavar=metavar, help=text)
    for name, text in FLAGS.items():
        group.addoption(name, action="store_true", default=None, help=text)


def in_use(config: pytest.Config) -> bool:
    """Tell whether this run has an option of the plugin or names the suite."""
    given = any(config.getoption(name) is not None for name in (*OPTIONS, *FLAGS))
    return given or _runs_suite(config)


def _runs_suite(config: pytest.Config) -> bool:
    return any(_names_suite(argument) for argument in config.args)


def _names_suite(argument: str) -> bool:
    module = argument.partition("::")[0]
    return module == SUITE or Path(module).absolute() == _SUITE_FILE


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, Any, Any]:
    """Set ``--dist loadgroup`` unless the user chose otherwise: a worker for each checkpoint.

    As a wrapper it runs before pytest-xdist, which sets ``load`` by default.
    """
    if _dist(config) == "no" and config.option.numprocesses and in_use(config):
        config.option.dist = "loadgroup"
        # Keep the largest checkpoints first: xdist would sort by the number of tests.
        config.option.loadscopereorder = False
    return (yield)


def _dist(config: pytest.Config) -> str | None:
    if config.getoption("distload", False):
        return "load"
    dist: str | None = config.getoption("dist", None)  # None without pytest-xdist
    return dist


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and raise for invalid options and for the suite without a checkpoint."""
    config.addinivalue_line("markers", "clipcheck: judges a CLIP checkpoint, or runs one")
    if in_use(config):
        _keep_ids_of_suite(config)
    if not hasattr(config, "workerinput") and in_use(config):
        from clipcheck.plugin.choices import GIVE_A_MODEL, require_available_choices

        choices = _choices(config)
        if _runs_suite(config) and not choices.models:
            raise pytest.UsageError(GIVE_A_MODEL)
        with _usage_errors():
            require_available_choices(choices, config.invocation_params.dir)


def _keep_ids_of_suite(config: pytest.Config) -> None:
    """Have pytest print the ids of the suite unchanged, so that they can be pasted: it takes their
    first part for a path, relative to its root, which may be another folder than the current one.
    """
    relative = config.cwd_relative_nodeid

    def unchanged(nodeid: Any) -> Any:  # a text before pytest 9.2
        return nodeid if str(nodeid).partition("::")[0] == SUITE else relative(nodeid)

    config.cwd_relative_nodeid = unchanged  # type: ignore[method-assign]


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn our errors into pytest's usage errors, printed in one line without a traceback."""
    from clipcheck.errors import ClipcheckError

    try:
        yield
    except ClipcheckError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Limit ``-n auto`` to as many workers as there are tasks, and to one for each GPU, whose
    memory two could exceed."""
    if not in_use(config) or _AUTO in os.environ:
        return None
    from clipcheck.system import workers

    gpus, cores = workers.wanted_gpus(_choices(config).devices), workers.cores()
    most = _computing_workers(config, gpus or cores)
    return most if gpus or most < cores else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: Sequence[Any]) -> None:
    """Divide cores and GPUs among the workers before they start."""
    if in_use(config):
        from clipcheck.system import workers

        devices = _choices(config).devices
        workers.divide_cores(specs, _computing_workers(config, len(specs)))
        if workers.dealt(devices):
            workers.deal_gpus(specs, workers.wanted_gpus(devices))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """Group tests by their checkpoint and device."""
    return make_scheduler(config, log) if in_use(config) else None


def make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """Return our scheduler if ``--dist loadgroup`` is set, by this plugin or by the user."""
    if _dist(config) != "loadgroup":
        return None
    from clipcheck.plugin.scheduling import CheckpointScheduling

    return CheckpointScheduling(config, log, _choices(config))


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport, sched: Any) -> None:
    """Report a dead worker under the name of its test, with the possible causes."""
    if in_use(sched.config):
        report.location = (report.location[0], None, crashitem.partition("::")[2])
        report.longrepr = f"{report.longrepr}: it crashed, or the machine ran out of memory"


def _computing_workers(config: pytest.Config, workers: int) -> int:
    """Return how many workers compute: in a run of the suite alone, at most one for each task."""
    if not all(_names_suite(argument) for argument in config.args):
        return workers
    return max(1, min(workers, len(_choices(config).pairs())))


def _workers(config: pytest.Config) -> int:
    if _dist(config) in (None, "no") or not config.getoption("tx"):
        return 0
    # "popen", or "3*popen" for several.
    specs = [spec.partition("*") for spec in config.getoption("tx")]
    return sum(int(number) if number.isdigit() and rest else 1 for number, _, rest in specs)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Print the checkpoints, devices and workers of the run."""
    if not in_use(config) or not _choices(config).models:
        return None
    from clipcheck.plugin.summary import header

    workers = _workers(config)
    return header(_choices(config), workers, _computing_workers(config, workers))


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module | None:
    """Give the suite's tests the ids that ``pytest --pyargs`` accepts, the same in every folder.

    pytest's own ids are empty for a file outside the current folder, and long inside it.
    """
    if module_path != _SUITE_FILE:
        return None
    return pytest.Module.from_parent(parent, path=module_path, nodeid=SUITE)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize the tests that use our fixtures, from the options."""
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
    """Sort tests by checkpoint and device, the largest first; not with pytest-randomly."""
    if _CHOICES in config.stash and not config.pluginmanager.hasplugin("randomly"):
        choices = _choices(config)
        order = {pair: at for at, pair in enumerate(choices.pairs())}
        items.sort(key=lambda item: order.get(_pair(item, choices), len(order)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Record which gates the collected tests need, so that no other gate runs."""
    if _CHOICES in session.config.stash:
        from clipcheck.plugin.needs import gates_needed

        session.config.stash[_NEEDS] = gates_needed(session.items, SUITE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Print a failed gate without a traceback, and as one line in the summary."""
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
    """Name of a gate: each gate of ``clip_dtype`` in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def clip_model(request: pytest.FixtureRequest) -> str:
    """Checkpoint as given to ``--clip-model``, each in turn."""
    from clipcheck.plugin.choices import GIVE_A_MODEL, NO_MODEL

    if request.param == NO_MODEL:
        pytest.fail(GIVE_A_MODEL, pytrace=False)
    return str(request.param)


@pytest.fixture(scope="session")
def clip_backend(request: pytest.FixtureRequest) -> str:
    """Backend that is compared with the eager model: each of ``--clip-backend`` in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def clip_device(request: pytest.FixtureRequest) -> str:
    """Device of the check: each of ``--clip-device`` in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def clip_dtype(request: pytest.FixtureRequest) -> str:
    """dtype of the check: each of ``--clip-dtype`` in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def clip_case(clip_model: str, clip_backend: str, clip_device: str, clip_dtype: str) -> Case:
    """Checkpoint, backend, device and dtype of one check."""
    from clipcheck.plugin.sharing import Case

    return Case(clip_model, clip_backend, clip_device, clip_dtype)


@pytest.fixture(scope="session")
def clip_run(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Judges and loads checkpoints, each once in a run."""
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
    """Result of the check of the checkpoint, computed once in a run."""
    return clip_run.judgement(clip_case)


@pytest.fixture(scope="session")
def clip_reference(clip_run: Run, clip_case: Case) -> Backend:
    """The eager model, numpy in and out."""
    return _loaded(clip_run, clip_case).reference


@pytest.fixture(scope="session")
def clip_candidate(clip_run: Run, clip_case: Case) -> Backend:
    """The checkpoint in ``clip_backend``, numpy in and out."""
    return _loaded(clip_run, clip_case).candidate


def _loaded(run: Run, case: Case) -> Pair:
    from clipcheck.errors import ClipcheckError

    try:
        return run.pair(case)
    except ClipcheckError as error:
        pytest.fail(f"{case}: could not be loaded\n{error}", pytrace=False)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Add the run and the versions to pytest's JUnit XML before it is written, then write the
    reports for ``--clip-report``, and the job's summary on GitHub Actions."""
    config = session.config
    if hasattr(config, "workerinput"):
        return (yield)
    found = _all_findings(config)
    result = _result(config, found) if found or config.getoption("--clip-report") else None
    if result is not None:
        _add_to_junit(config, result)
    yield
    passed = session.exitstatus == pytest.ExitCode.OK
    if passed and not found and _runs_suite(config) and not config.option.collectonly:
        _note(config, "the suite ran, but no checkpoint was judged")
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
    if result is None:
        return
    if found:
        from clipcheck.plugin.summary import write_for_github

        config.stash[_GITHUB] = write_for_github(result)
    folder = _choices(config).report
    if folder is not None:
        _write_reports(session, result, folder)


def _result(config: pytest.Config, found: Sequence[Finding]) -> Result:
    from clipcheck.plugin.summary import result_of

    return result_of(found, _choices(config))


def _add_to_junit(config: pytest.Config, result: Result) -> None:
    """Add properties to the file of ``--junit-xml``. A property of a test is not in its schema, and
    the fixture for those of the suite does not work with pytest-xdist."""
    for plugin in config.pluginmanager.get_plugins():
        if hasattr(plugin, "add_global_property"):
            from clipcheck.report.junit import properties

            for name, value in properties(result).items():
                plugin.add_global_property(name, value)


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
    """Print where each checkpoint came from, the report of all gates, and where the reports are."""
    notes = config.stash.get(_NOTES, [])
    annotations, problem = config.stash.get(_GITHUB, ([], ""))
    if problem:
        print(f"clipcheck: {problem}", file=sys.stderr)
    if _findings(config) or notes:
        from clipcheck.plugin.summary import final_report, source_lines

        found = _all_findings(config)
        terminalreporter.section("clipcheck")
        told = [*source_lines(found), *final_report(found, _choices(config))]
        for line in [*told, *notes, *annotations]:
            terminalreporter.write_line(line)


def _all_findings(config: pytest.Config) -> list[Finding]:
    findings = _findings(config)
    return findings.all() if findings else []


def _findings(config: pytest.Config) -> Findings | None:
    """Return the findings of this process or of all workers, or None if nothing was judged."""
    if _RUN in config.stash:
        return config.stash[_RUN].findings
    # Private, but there is no public access outside of a fixture; pytest-xdist uses it as well.
    factory = getattr(config, "_tmp_path_factory", None)
    if not _workers(config) or factory is None or not _shared(factory.getbasetemp()).is_dir():
        return None
    from clipcheck.plugin.sharing import Findings

    return Findings(_shared(factory.getbasetemp()))


def _shared(base: Path) -> Path:
    return base / "clipcheck"
