"""Judgements without any run of a model, with everything that a page shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from clipcheck.gates.localisation import Deviation, Place
from clipcheck.gates.measured import Heat, Measured
from clipcheck.gates.modules import Coverage, ModuleError, modules
from clipcheck.gates.result import OUTPUTS, GateResult
from clipcheck.gates.tolerances import LIMITS
from clipcheck.inputs.examples import Example
from clipcheck.results.failing import Failing, Measure
from clipcheck.results.judgement import Judgement, Result

NAMES = (
    "visual.conv1",
    "visual.transformer.resblocks.0.ln_1",
    "visual.transformer.resblocks.0",
    "visual.ln_post",
    "token_embedding",
    "transformer.resblocks.0.ln_1",
    "transformer.resblocks.0.mlp",
    "transformer.resblocks.0",
    "ln_final",
)


def error(module: str, times: float = 1.0, **other: object) -> ModuleError:
    """Return a module whose error is so many times the eager one's."""
    block = module.rpartition(".")[0] if module.count("resblocks.0.") else ""
    made = ModuleError(
        module=module,
        method="forward",
        candidate=times * 2e-7,
        reference=2e-7,
        size=1.0,
        block=block,
    )
    return replace(made, **other)  # type: ignore[arg-type]


def coverage(**times: float) -> Coverage:
    """Return all modules; those in ``times``, with ``__`` for a dot, have so many times the eager
    error."""
    given = {name.replace("__", "."): number for name, number in times.items()}
    return Coverage(errors=[error(name, given.get(name, 1.0)) for name in NAMES], skipped={})


def measured(rows: int = 5, times: float = 1.0, text: str = "a") -> Measured:
    heat = Heat(
        "logits_per_image",
        ["image 0 (black)", "image 1 (white)"],
        ["prompt 0 (empty)", "prompt 1 ('b')", f"prompt 2 ({text})"],
        np.array([[1e-6, -2e-6, 3e-6], [4e-6, -5e-6, 6e-6]]) * times,
        np.array([6e-6, 6e-6]),
    )
    ratios = {name: [times * (1 + row / 10) for row in range(rows)] for name in OUTPUTS}
    return Measured(ratios, dict.fromkeys(OUTPUTS, 8.0), heat)


def gates(dtype: str, ratio: float, found: Coverage) -> tuple[GateResult, ...]:
    worst = {"image_features": {"rmse_ratio": ratio, "allowed": 8.0, "rmse": 1e-6}}
    near = GateResult(
        name="fidelity",
        passed=ratio <= 8,
        message=f"{ratio:g} times as far",
        figures=worst,
        margin=ratio / 8,
    )
    weights = {"compared": 77, "differing": 0, "unused": 0, "changed": 0}
    return (
        GateResult(
            name="integrity",
            passed=True,
            message="77 weights the same",
            figures={"weights": weights},
        ),
        GateResult(
            name="allclose",
            passed=True,
            message="agree",
            figures={"logits_per_image": {"max_abs": 2.4e-6}},
            margin=0.001,
        ),
        *(
            (near, modules(found, LIMITS[dtype]))
            if dtype == "float32"
            else (replace(near, name="precision"),)
        ),
        GateResult(
            name="top1",
            passed=True,
            message="same",
            figures={"rows": {"compared": 9, "clear": 7, "wrong": 0}},
        ),
        GateResult(
            name="repeatability",
            passed=True,
            message="stable",
            figures={"image_features": {"moved": 0.4}},
            margin=0.025,
        ),
    )


PASSED = Judgement(
    checkpoint="model.pt",
    path="/models/model.pt",
    device="cpu",
    sha256="ab" * 32,
    description="archive, tiny-vit",
    dtype="float32",
    seconds={"load": 0.24, "inputs": 0.5, "eager": 1.0, "candidate": 0.5, "run": 2.0},
    examples=30,
    gates=gates("float32", 1.2, coverage()),
    measured=measured(),
    coverage=coverage(),
    peak_memory=1_234_000_000,
)

IN_HALF = replace(PASSED, dtype="float16", gates=gates("float16", 1.2, coverage()), coverage=None)

_FAULTY = coverage(transformer__resblocks__0__mlp=500.0, transformer__resblocks__0=90.0)

_FIRST = Example((Image.new("RGB", (40, 20), (9, 9, 9)),), ("a photo of a dog",))

FAILED = replace(
    PASSED,
    path="/models/my model.pt",
    gates=gates("float32", 400.0, _FAULTY),
    coverage=_FAULTY,
    measured=measured(times=400.0),
    failing=Failing(
        example=Example((Image.new("RGB", (1, 1), (9, 9, 9)),), ("a",)),
        measure=Measure("text_features", 400.0, 8.0, 1e-4, "text features of prompt 0 are far off"),
        shrunk=True,
        first=_FIRST,
        saved="/reports/failing inputs/model",
    ),
    localisation=(
        Place(tower="image"),
        Place(
            tower="text",
            module="transformer.resblocks.0.mlp",
            part="sum behind it",
            figures=Deviation(500, 10, 1e-4, "encode_text"),
            given="prompt 3",
        ),
        Place(tower="logits", reason="its features are off"),
    ),
)

UNJUDGED = Judgement(checkpoint="gone.pt", device="cpu", error="gone.pt: not found. Look again.")

ENVIRONMENT = {"clipcheck": "1.2.3", "torch": "2.9.1", "platform": "Linux", "cpus": "2"}


def result(*judgements: Judgement) -> Result:
    return Result(judgements, ENVIRONMENT)


def showing(text: str, images: tuple[Image.Image, ...] = ()) -> Judgement:
    """Return a judgement that fails on this prompt and these images."""
    assert FAILED.failing is not None
    return replace(
        FAILED, failing=replace(FAILED.failing, example=Example(images, (text,)), first=None)
    )
