"""Do a job: the function that every engine runs in its workers."""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from clipcheck.backends.registry import default_for_file
from clipcheck.errors import ClipcheckError, first_line
from clipcheck.results.document import as_record, to_json
from clipcheck.results.judgement import Record, Result
from clipcheck.sweep.facts import content_of
from clipcheck.sweep.fetching import brought
from clipcheck.sweep.found import Found, JobCost, Performed
from clipcheck.sweep.identity import versions_for
from clipcheck.sweep.jobs import ALL_THAT_FIT, DEFAULT, Job
from clipcheck.system.variables import variables


def perform(job: Job) -> str:
    """Judge a checkpoint.

    Returns:
        A `Performed` as JSON.
    """
    try:
        performed = _performed(job)
    except ClipcheckError as error:
        performed = Performed(failed=str(error))
    except Exception as error:
        # Any error, such as running out of memory, must not end other jobs, and is no verdict.
        traceback.print_exc()
        performed = Performed(failed=f"{type(error).__name__}: {first_line(error)}")
    return to_json(performed, indent=None)


def _performed(job: Job) -> Performed:
    _require_versions(job)
    from clipcheck.checkpoints.download import without_bar
    from clipcheck.harness.checking import check_files

    _forget_peak()
    started = time.perf_counter()
    with (
        without_bar(),
        # Examples that failed are kept apart from other workers: all judge by the same inputs.
        tempfile.TemporaryDirectory(prefix="clipcheck-") as examples,
        variables({"HYPOTHESIS_STORAGE_DIRECTORY": examples}),
        brought(job.source, job.folder) as (path, fetched),
    ):
        result = check_files(path, job.options)
        units = {backend: _unit(result, backend, job) for backend in job.backends}
        known = next((j.sha256 for j in result.judgements if j.sha256), None)
        sha256 = known or content_of(path)
    cost = JobCost(
        seconds=time.perf_counter() - started,
        bytes=fetched,
        peak_memory=max((j.peak_memory or 0 for j in result.judgements), default=0) or None,
        threads=_threads(),
    )
    return Performed(sha256=sha256 or None, size=fetched, units=units, cost=cost)


def _require_versions(job: Job) -> None:
    """Raise if this worker's versions differ from those in the verdict's key."""
    here = versions_for([ALL_THAT_FIT])
    other = {
        name: (wanted, here.get(name, "none"))
        for name, wanted in job.versions.items()
        if here.get(name) != wanted
    }
    if other:
        told = ", ".join(f"{name} {a} there and {b} here" for name, (a, b) in other.items())
        raise RuntimeError(f"this worker has other versions than the leading process: {told}")


def _unit(result: Result, backend: str, job: Job) -> Found:
    """Return the part of a result that is of one backend, as it was asked for."""
    mine = [j for j in result.judgements if backend in (ALL_THAT_FIT, DEFAULT, j.backend)]
    if not mine and not result.left_out:
        # It came not so far as to tell them apart: what was found is of each.
        mine = [replace(j, backend=backend) for j in result.judgements]
    wild = backend in (ALL_THAT_FIT, DEFAULT)
    found = Found(tuple(map(as_record, mine)), result.left_out if wild else ())
    return found.named(job.label)


def unjudged(job: Job, backend: str, content: str, error: str) -> Found:
    """Return findings with an error, for a job that did not finish."""
    record = Record(
        job.label,
        job.device,
        path=job.source.place if not job.source.fetched else None,
        sha256=content if len(content) == 64 else None,
        backend=backend if backend != DEFAULT else default_for_file(job.source.place),
        dtype=job.dtype or None,
        seed=job.options.seed,
        error=error,
    )
    return Found((record,))


def _forget_peak() -> None:
    """Reset the system's count of peak memory, where possible."""
    if sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _threads() -> int:
    import torch

    return torch.get_num_threads()
