"""Check several checkpoints at the same time, each in its own process."""

from __future__ import annotations

import os
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from clipcheck.backends.registry import default_for_file
from clipcheck.errors import Notice, first_line
from clipcheck.harness.checking import (
    check_files,
    environment,
    new_run,
    size_of_named,
    stopped_after,
)
from clipcheck.harness.named_files import Names, files_named
from clipcheck.harness.options import CheckOptions
from clipcheck.results.judgement import Judgement, Result
from clipcheck.system import memory
from clipcheck.system.processes import Outcome, Processes
from clipcheck.system.progress import Progress, Span, silent
from clipcheck.system.workers import dealt, may_have_cuda, visible, wanted_gpus


@dataclass(frozen=True)
class _Job:
    """A checkpoint to check, with an estimate of its memory in bytes."""

    number: int
    memory: int
    name: str
    options: CheckOptions


@dataclass(frozen=True)
class _Found:
    """Result of a process, and its notices for the user."""

    result: Result
    notices: tuple[str, ...] = ()


def check_in_processes(
    checkpoints: Names, options: CheckOptions, jobs: int, progress: Progress | None = None
) -> Result:
    """Check as `check_files` does, in several processes that share the cores and GPUs.

    If a process dies, only its checkpoint cannot be judged.

    Args:
        checkpoints: paths of files, or released names; one or several.
        jobs: number of processes.
        progress: called with a text as each check starts and ends.

    Raises:
        UsageError: an object is not the name of a file.
    """
    names = files_named(checkpoints)
    if min(jobs, len(names)) < 2:
        return check_files(names, options, progress)
    with tempfile.TemporaryDirectory(prefix="clipcheck-") as scratch:
        processes = Processes(min(jobs, len(names)), Path(scratch), _perform, _gpus(options))
        with closing(processes):
            found = _check_all(names, options, processes, Span(progress or silent))
    run, date = new_run()
    judgements = [
        replace(judgement, run=run, date=date)
        for number in sorted(found)
        for judgement in found[number].judgements
    ]
    left_out = [each for number in sorted(found) for each in found[number].left_out]
    if len(found) < len(names):
        failed = next(names[number] for number in sorted(found) if not found[number].passed)
        others = [name for number, name in enumerate(names) if number not in found]
        left_out += stopped_after(failed, others)
    return Result(tuple(judgements), environment(), tuple(left_out))


def _check_all(
    names: Sequence[str], options: CheckOptions, processes: Processes, span: Span
) -> dict[int, Result]:
    """Return results by the checkpoint's number; with fail_fast, only up to a failure."""
    sizes = [size_of_named(name) for name in names]
    waiting = [
        _Job(number, memory.estimate(int(size)), name, options)
        for number, (name, size) in enumerate(zip(names, sizes, strict=True))
    ]
    running: dict[int, _Job] = {}
    found: dict[int, Result] = {}
    while waiting or running:
        while waiting and processes.has_room(waiting[0]):
            job = waiting.pop(0)
            running[job.number] = job
            processes.submit(job)
        now = ", ".join(job.name for job in running.values())
        span.say(f"{len(found)} of {len(names)} checked; now {now}")
        for outcome in processes.wait():
            job = running.pop(outcome.job)
            found[job.number] = _result(job, outcome)
            if options.fail_fast and not found[job.number].passed:
                return found
        span.reach(sum(sizes[number] for number in found) / (sum(sizes) or 1.0))
    return found


def _result(job: _Job, outcome: Outcome) -> Result:
    """Return the result of a process; if it died, the checkpoint could not be judged."""
    if outcome.fate == "done":
        for notice in outcome.found.notices:
            warnings.warn(notice, Notice, stacklevel=2)
        result: Result = outcome.found.result
        return result
    return _unjudged(
        job,
        f"expected a result, but the process that checked it died: {outcome.reason}",
        "Check it alone, without --jobs, to see the cause.",
    )


def _perform(job: _Job) -> _Found:
    """Check a checkpoint; runs in the process."""
    from clipcheck.checkpoints.download import without_bar

    with warnings.catch_warnings(record=True) as caught, without_bar():
        warnings.simplefilter("always", Notice)
        try:
            result = check_files(job.name, job.options)
        except Exception as error:
            # Any error, such as running out of memory, must not end the other checks.
            traceback.print_exc()
            result = _unjudged(
                job,
                f"expected a result, found {type(error).__name__}: {first_line(error)}",
                "The traceback is on stderr; unless memory ran out, please report it.",
            )
    notices = dict.fromkeys(str(each.message) for each in caught if each.category is Notice)
    return _Found(result, tuple(notices))


def _unjudged(job: _Job, problem: str, remedy: str) -> Result:
    judgement = Judgement(
        job.name,
        str(job.options.devices[0] or "default"),
        backend=", ".join(job.options.backends) or default_for_file(job.name),
        seed=job.options.seed,
        limits=job.options.limits,
        options=job.options.asked,
        error=f"{problem}. {remedy}",
        remedy=remedy,
    )
    return Result((judgement,), environment())


def _gpus(options: CheckOptions) -> list[str]:
    """Return the names of the GPUs to divide among the processes; none if no check uses a GPU."""
    devices = [str(device or "cuda") for device in options.devices]
    if not may_have_cuda() or not dealt(devices):
        return []
    return visible(wanted_gpus(devices), os.environ)
