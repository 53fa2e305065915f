"""Do one job, in whatever process: the same function for every engine."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipcheck.errors import ClipcheckError, first_line
from clipcheck.results.judgement import Judgement, Result
from clipcheck.sweep.facts import content_of
from clipcheck.sweep.fetching import brought
from clipcheck.sweep.identity import versions_for
from clipcheck.sweep.jobs import ALL_THAT_FIT, DEFAULT, Job

SURROUNDINGS = ("DownloadError", "OutputError", "UnavailableError", "UnknownModelError")
"""Errors that say nothing of a checkpoint: another time, or elsewhere, it may be judged. Those of
what is not made for it (`UnfitError`) are none of these."""

CELL = "IsolationError"
"""Error of a checkpoint whose own code ended the process that ran it: that counts as if it had
ended ours."""


def perform(job: Job) -> str:
    """Judge a checkpoint, and tell what was found as JSON.

    Returns:
        An object. ``failed`` is the reason where nothing was found for the surroundings. Else
        ``sha256`` is that of the file, or null; ``size`` the bytes that were fetched; ``units`` by
        backend, as it was asked for, ``results`` and ``left_out`` as in the document of a check,
        ``failed``, which is not null where the surroundings kept it from being judged, and
        ``ended``, not null where the checkpoint ended what ran its code; ``cost`` as in
        `clipcheck.sweep.ledger.Verdict`.
    """
    try:
        return json.dumps(_performed(job))
    except ClipcheckError as error:
        return json.dumps({"failed": str(error)})
    except Exception as error:
        # Of want of memory, of a library, or our own: it must neither end the others nor count.
        traceback.print_exc()
        return json.dumps({"failed": f"{type(error).__name__}: {first_line(error)}"})


def _performed(job: Job) -> dict[str, Any]:
    _require_versions(job)
    from clipcheck.checkpoints.download import without_bar
    from clipcheck.harness.checking import check_files

    _forget_peak()
    started = time.perf_counter()
    with without_bar(), _own_examples(), brought(job.source, job.folder) as (path, fetched):
        result = check_files(path, job.options)
        units = {backend: _unit(result, backend, job) for backend in job.backends}
        known = next((j.sha256 for j in result.judgements if j.sha256), None)
        sha256 = known or content_of(path)
    return {
        "sha256": sha256 or None,
        "size": fetched,
        "units": units,
        "cost": {
            "seconds": time.perf_counter() - started,
            "bytes": fetched,
            "peak_memory": max((j.peak_memory or 0 for j in result.judgements), default=0) or None,
            "threads": _threads(),
        },
    }


def _require_versions(job: Job) -> None:
    """A verdict is kept under the versions of who leads the sweep: they have to be ours."""
    here = versions_for([ALL_THAT_FIT])
    other = {
        name: (wanted, here.get(name, "none"))
        for name, wanted in job.versions.items()
        if here.get(name) != wanted
    }
    if other:
        told = ", ".join(f"{name} {a} there and {b} here" for name, (a, b) in other.items())
        raise RuntimeError(f"this worker has other versions than who leads the sweep: {told}")


def _unit(result: Result, backend: str, job: Job) -> dict[str, Any]:
    """Return the part of a result that is of one backend, as it was asked for."""
    mine = [j for j in result.judgements if backend in (ALL_THAT_FIT, DEFAULT, j.backend)]
    if not mine and not result.left_out:
        # It came not so far as to tell them apart: what was found is of each.
        mine = [replace(j, backend=backend) for j in result.judgements]
    wild = backend in (ALL_THAT_FIT, DEFAULT)
    left_out = result.left_out if wild else ()
    document = _document(Result(tuple(mine), result.environment, left_out))
    failed = [j.error for j in mine if j.error_type in SURROUNDINGS]
    ended = [j.error for j in mine if j.error_type == CELL]
    return {
        "results": [_named(each, job.label) for each in document["results"]],
        "left_out": [_named(each, job.label) for each in document["left_out"]],
        "failed": failed[0] if failed else None,
        "ended": ended[0] if ended else None,
    }


def unjudged(job: Job, backend: str, content: str, error: str) -> dict[str, Any]:
    """Return the entry that stands in place of results where a job never came to its end."""
    from clipcheck.harness.checking import environment

    judgement = Judgement(
        job.label,
        job.device,
        path=job.source.place if not job.source.fetched else None,
        sha256=content if len(content) == 64 else None,
        backend=backend if backend != DEFAULT else Judgement.backend,
        dtype=job.dtype or None,
        seed=job.options.seed,
        error=error,
    )
    document = _document(Result((judgement,), environment()))
    return {"results": document["results"], "left_out": []}


def _document(result: Result) -> dict[str, Any]:
    from clipcheck.results.document import render

    document: dict[str, Any] = json.loads(render(result))
    return document


def _named(entry: dict[str, Any], label: str) -> dict[str, Any]:
    return {**entry, "checkpoint": label}


@contextmanager
def _own_examples() -> Iterator[None]:
    """Keep failed examples apart from other workers: all judge by the same inputs."""
    name = "HYPOTHESIS_STORAGE_DIRECTORY"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(prefix="clipcheck-") as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


def _forget_peak() -> None:
    """Have the system count the most memory from here on, where it can."""
    if sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _threads() -> int:
    import torch

    return torch.get_num_threads()
