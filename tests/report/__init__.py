"""Results of every kind, for the tests of reports."""

from __future__ import annotations

import math
from dataclasses import replace

from PIL import Image

from clipcheck.backends.known import Known
from clipcheck.gates.localisation import Deviation, Place
from clipcheck.gates.preprocessing import Known as KnownDifference
from clipcheck.gates.preprocessing import PreprocessingResult, Unknown, Unlike
from clipcheck.gates.result import GateResult
from clipcheck.inputs.examples import Example
from clipcheck.results.failing import Failing, Measure
from clipcheck.results.judgement import Judgement, LeftOut, Result

ENVIRONMENT = {"clipcheck": "0.1.0", "python": "3.11.7", "torch": "2.9.1"}

PASSED = Judgement(
    checkpoint="release/model.pt",
    path="release/model.pt",
    device="cpu",
    sha256="ab" * 32,
    description="archive, tiny-vit",
    dtype="float32",
    seconds={"load": 0.25, "run": 1.5, "candidate": 1.0},
    examples=8,
    gates=(
        GateResult(name="integrity", passed=True, message="77 weights the same"),
        GateResult(name="fidelity", passed=True, message="near", margin=0.37),
    ),
)


def failed(name: str = "bad.pt", prompt: str = "addo") -> Judgement:
    """Return a judgement that fails on an image and a prompt, with a place in both towers."""
    failing = Failing(
        example=Example((Image.new("RGB", (3, 2)),), (prompt,)),
        measure=Measure("text_features", 12.0, 8.0, 0.5, f"text features of {prompt!r} differ"),
        shrunk=True,
        saved="found/failing-inputs/bad",
    )
    places = (
        Place(tower="image"),
        Place(
            tower="text",
            module="transformer.resblocks.1",
            part="the sum behind attn",
            figures=Deviation(120.0, 10.0, 0.5, "forward"),
            given="the input that fails",
        ),
        Place(tower="logits", reason="the method is not there"),
    )
    gates = (
        PASSED.gates[0],
        GateResult(name="fidelity", passed=False, message="12 times further", margin=12.3),
    )
    return replace(
        PASSED,
        checkpoint=name,
        path=name,
        gates=gates,
        failing=failing,
        localisation=places,
    )


def saved_in(folder: str | None, judgement: Judgement) -> Judgement:
    """Return the same with its failing input in another folder, or in none."""
    assert judgement.failing is not None
    return replace(judgement, failing=replace(judgement.failing, saved=folder))


def unjudged(name: str = "gone.pt") -> Judgement:
    """Return the judgement of a missing file."""
    return Judgement(name, "cpu", error=f"expected a file, found '{name}'. Look again.")


def failing_result() -> Result:
    """Return a result of three: passed, failed, and could not be judged."""
    return Result((PASSED, failed(), unjudged()), ENVIRONMENT)


KNOWN = Known(
    "a sign is lost",
    "https://example.org/issues/1",
    "Take a newer one.",
    packages=("transformers",),
    versions="<6",
)

PREPROCESSINGS = (
    PreprocessingResult(
        name="transformers (slow)",
        kind="image",
        version="transformers 5.24.0",
        compared=30,
        same=28,
        known={"on white": KnownDifference(1, "RGBA 3x4", "puts it on white", KNOWN.link)},
        unknown=[Unknown("LA 1x1", Unlike("1 level apart", {"levels": 1.0, "share": math.nan}))],
    ),
)


def several_backends() -> Result:
    """Return one checkpoint in four backends, one of which passes, and two that were skipped."""
    release = replace(PASSED, artefact_bytes=1000)
    slow = replace(
        failed(PASSED.checkpoint),
        backend="transformers:attention=eager",
        reference="eager of single.pt",
        reference_checkpoint="single.pt",
        known=(KNOWN,),
        preprocessing=PREPROCESSINGS,
    )
    broken = replace(
        unjudged(PASSED.checkpoint), backend="onnxruntime", dtype="float32", known=(KNOWN,)
    )
    shy = replace(PASSED, backend="clip", preprocessing_problem="clip: no vocabulary. Give one.")
    left_out = [
        LeftOut(PASSED.checkpoint, "compile:mode=default", "cpu", dtype, "there is no compiler")
        for dtype in ("float32", "float16")
    ]
    return Result((release, slow, broken, shy), ENVIRONMENT, tuple(left_out))
