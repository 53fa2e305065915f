"""From the documents that verdicts are kept as to what reports are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from clipcheck.backends.known import Known, everything
from clipcheck.checkpoints.inspection import Patched
from clipcheck.gates.result import GateResult
from clipcheck.gates.tolerances import Allclose
from clipcheck.results.judgement import Judgement, LeftOut, Result


def result_of(
    results: Iterable[Mapping[str, Any]],
    left_out: Iterable[Mapping[str, Any]],
    environment: Mapping[str, str],
    limits: Allclose,
) -> Result:
    """The result that documents tell of: all but the plots and the inputs themselves.

    Args:
        results: as in the document of a check.
        left_out: the same.
        environment: of who leads the sweep.
        limits: of the gate ``allclose``, that all was judged under.
    """
    return Result(
        tuple(_judgement(each, limits) for each in results),
        environment,
        tuple(LeftOut(**each) for each in left_out),
    )


def _judgement(entry: Mapping[str, Any], limits: Allclose) -> Judgement:
    same = (
        "checkpoint",
        "device",
        "path",
        "sha256",
        "released",
        "backend",
        "reference",
        "reference_checkpoint",
        "dtype",
        "seconds",
        "examples",
        "seed",
        "frontends_problem",
        "artefact_bytes",
        "peak_memory",
        "error",
    )
    return Judgement(
        **{name: entry[name] for name in same},
        origin=entry.get("origin") or "",
        architecture=entry.get("architecture"),
        computes=entry.get("computes") or "",
        asked_architecture=entry.get("asked_architecture"),
        inputs=entry.get("inputs"),
        run=entry.get("run"),
        date=entry.get("date"),
        limits=limits,
        isolation=None if entry["isolation"] is None else tuple(entry["isolation"]),
        absent=tuple(entry.get("absent", ())),
        ignored=tuple(entry.get("ignored", ())),
        patched=Patched(**entry["patched"]) if entry.get("patched") else None,
        gates=tuple(_gate(each) for each in entry["gates"]),
        known=tuple(_known(each["title"]) for each in entry["known"]),
    )


def _gate(entry: Mapping[str, Any]) -> GateResult:
    """With infinity again for null, which stands for it in JSON."""
    margin = math.inf if entry["margin"] is None else entry["margin"]
    return GateResult(entry["name"], entry["passed"], entry["message"], _figures(entry), margin)


def _figures(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: math.inf if value is None else value for key, value in figures.items()}
        for name, figures in entry["figures"].items()
    }


def _known(title: str) -> Known:
    return next(each for each in everything() if each.title == title)
