"""A result as JSON, schema 1, which ``schema/results-1.json`` beside this file describes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from clipcheck.gates.localisation import Localisation
from clipcheck.inputs.examples import describe_image
from clipcheck.results.judgement import Judgement, Result

SCHEMA = 1


def render(result: Result) -> str:
    """The document, with a newline at its end.

    Numbers that JSON cannot write, NaN and infinities, become null.
    """
    document = {
        "schema": SCHEMA,
        "passed": result.passed,
        "clipcheck": result.environment["clipcheck"],
        "environment": dict(result.environment),
        "configuration": asdict(result.configuration) if result.configuration.options else None,
        "results": [_entry(judgement) for judgement in result.judgements],
        "left_out": [asdict(each) for each in result.left_out],
    }
    return json.dumps(writable(document), indent=2, allow_nan=False) + "\n"


def _entry(judgement: Judgement) -> dict[str, Any]:
    return {
        "checkpoint": judgement.checkpoint,
        "path": judgement.path,
        "sha256": judgement.sha256,
        "architecture": judgement.architecture and dict(judgement.architecture),
        "released": judgement.released,
        "origin": judgement.origin or None,
        "backend": judgement.backend,
        "reference": judgement.reference,
        "reference_checkpoint": judgement.reference_checkpoint,
        "asked_architecture": judgement.asked_architecture,
        "computes": judgement.computes,
        "device": judgement.device,
        "dtype": judgement.dtype,
        "passed": judgement.passed,
        "error": judgement.error,
        "seconds": dict(judgement.seconds),
        "examples": judgement.examples,
        "seed": judgement.seed,
        "inputs": judgement.inputs,
        "run": judgement.run,
        "date": judgement.date,
        "peak_memory": judgement.peak_memory,
        "artefact_bytes": judgement.artefact_bytes,
        "isolation": None if judgement.isolation is None else list(judgement.isolation),
        "absent": list(judgement.absent),
        "ignored": list(judgement.ignored),
        "alternative": judgement.alternative and asdict(judgement.alternative)["towers"],
        "patched": None if judgement.patched is None else asdict(judgement.patched),
        "known": [
            {"title": known.title, "link": known.link, "remedy": known.remedy}
            for known in judgement.known
        ],
        "frontends": [asdict(found) for found in judgement.frontends],
        "frontends_problem": judgement.frontends_problem,
        "gates": [
            {
                "name": g.name,
                "passed": g.passed,
                "margin": g.margin,
                "message": g.message,
                "figures": g.figures,
            }
            for g in judgement.gates
        ],
        "failing_example": _failing(judgement),
        "localisation": places(judgement.localisation) if judgement.localisation else None,
    }


def _failing(judgement: Judgement) -> dict[str, Any] | None:
    failing = judgement.failing
    if failing is None:
        return None
    return {
        "images": [describe_image(image) for image in failing.example.images],
        "prompts": list(failing.example.prompts),
        "shrunk": failing.shrunk,
        "output": failing.measure.output,
        "message": failing.measure.message,
        "saved": judgement.saved,
    }


def writable(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: writable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [writable(item) for item in value]
    return value


def places(localisation: Localisation) -> list[dict[str, Any]]:
    """One for each tower; ``module`` is None where nothing departs."""
    return [
        {
            "tower": place.tower,
            "module": place.module,
            "part": place.part,
            "figures": {
                "rmse_ratio": place.ratio,
                "allowed": place.allowed,
                "rmse": place.error,
                "method": place.method,
            },
            "given": place.given,
            "reason": place.reason,
        }
        for place in localisation.places
    ]
