"""All limits of the gates, and the measurements that they come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Allclose:
    """The limits of the gate ``allclose``.

    The defaults are those of the reference implementation's own consistency test, which asserts
    ``np.allclose(jit, eager, atol=0.01, rtol=0.1)`` on probabilities (openai/CLIP,
    tests/test_consistency.py).

    Attributes:
        sigmoid: whether probabilities are the sigmoid of single logits, as in a model that was
            trained with sigmoid loss, in place of the softmax of a row.
    """

    atol: float = 0.01
    rtol: float = 0.1
    sigmoid: bool = False


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a candidate's error against float64, in one dtype.

    All but the last two are ratios: the candidate's root mean square error divided by the eager
    model's, both against float64.

    Attributes:
        roundoff: the dtype's unit roundoff, half the distance from 1 to the next number; the least
            error that is assumed for the eager model.
        features: for the features of a whole batch.
        feature_row: for the features of one image or prompt.
        logits: for the logits of a whole batch.
        logit_row: for the logits of one image or prompt, and for a single logit if that is more
            than ``cap``.
        module: for the output of one module.
        cap: for a single logit, in ulps of a number from 16 to 32, for a logit scale of 100; in
            proportion for other scales. It applies if ``logit_row`` times the eager model's error
            is less.
        allclose: greatest distance of the eager model from float64, as a share of `Allclose`, with
            which the gate ``allclose`` still judges; beyond it two correct models may differ by
            more than `Allclose`.
        unit: name of the error that errors are multiples of, for messages.
    """

    roundoff: float
    features: float
    feature_row: float
    logits: float
    logit_row: float
    module: float
    cap: float
    allclose: float
    unit: str = "eager"

    def logit_cap(self, scale: float) -> float:
        """Return the limit of one logit's error; ``scale`` is the model's exp(logit_scale)."""
        return self.cap * 32 * self.roundoff * scale / 100


_RATIOS: dict[str, Any] = {
    "features": 6.0,
    "feature_row": 8.0,
    "logits": 6.0,
    "logit_row": 8.0,
    "module": 10.0,
}

LIMITS = {
    "float32": Limits(roundoff=2**-24, **_RATIOS, cap=64, allclose=0.5),
    "float16": Limits(roundoff=2**-11, **_RATIOS, cap=8, allclose=0.5),
    "bfloat16": Limits(roundoff=2**-8, **_RATIOS, cap=8, allclose=0),
}
"""Limits by dtype.

Measured in float32 with `python -m benchmarks.calibration`, over five seeds of both small
architectures and one of full-size ViT-B/32 and RN50 (docs/evidence/tables/limits.md has the table):
the greatest ratio of a clean variant, and the least ratio of the faults for which this limit is the
most sensitive.

- ``features``: 1.19 and 129; ``feature_row``: 1.38 and 275
- ``logits``: 2.37 and 86; ``logit_row``: 2.85 and 186
- ``module``: 1.43 and 161

Models that a library computes were within these limits by trace, export and ONNX Runtime: clean
variants of thirteen small models took at most 0.42 of one (docs/evidence/power.md), and what was
judged of open_clip's list at most 0.30 of that for features or logits (docs/evidence/zoo.md).

In half precision and bfloat16 sound archives of both small architectures with seeded weights
measured up to 1.33 (a row of features), and their logits were off by up to 2.8 and 2.9 ulps; 4 ulps
were reported of a sound model on a GPU (openai/CLIP#283). With trained weights (`python -m
benchmarks.sound`, two seeds of each architecture and ten of inputs) they were off by more than 8
ulps in 14 and 12 of 40 runs, and a single logit by up to 3.4 and 3.1 times the eager model's error.
Clean variants in trained weights (`python -m benchmarks.power`) took at most half of a limit in
float32 and 0.84 in bfloat16; in float16 one was beyond: a BatchNorm written out rounds after each
step, and a row of features was 12 times as far off as the eager model's.
Probabilities of two sound models were up to 0.55 of `Allclose` apart in float16, and in bfloat16 up
to 2.4 times as far apart as it allows.
"""

ASSUMED = {"float32": 1e-6, "float16": 1.5e-3, "bfloat16": 1.2e-2}
"""Relative root mean square error that is assumed for a reference without a float64 copy, by dtype:
that of an engine, a service or a function. Candidates may be further from it by the ratios of
`LIMITS`.

Measured with `python -m benchmarks.assumed`, with seeded weights: the greatest median error of the
features of tiny-vit, tiny-resnet, ViT-B/32 and RN50 was 8.8e-7 in float32, 1.2e-3 in float16 and
1.0e-2 in bfloat16.
"""


def assuming(limits: Limits, error: float) -> Limits:
    """Return the limits for a reference whose own error is assumed, not measured.

    Args:
        error: relative root mean square error of its features.
    """
    return replace(limits, roundoff=error, unit="assumed")


EXTREME = 10.0
"""Factor for the limit of a program's modules on extreme inputs. Where all numbers are 50 or -50,
ONNX Runtime's LayerNorm is 9.5 times as far from float64 as torch's for 768 numbers, 24 times for
1,664 and 39 times for 4,096 (onnxruntime 1.32, 1 December 2026), as if it added them one by one."""

SAME_BLOCK = 1.5
"""Greatest ratio of a block with which the errors of its modules do not count: clean variants
measured up to 1.43."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of a candidate that is lossy on purpose, such as an int8 program.

    Each is a least value over random inputs, and is compared with the lower end of a 95 % interval;
    None is not judged.

    Attributes:
        cosine: of the features of a row with those of float64, the least of all rows.
        median: the median of all rows.
        top1: share of rows whose best match is float64's.
        top5: share of float64's five best matches that are among the candidate's.
        spearman: correlation of the ranks of all matches of a row, the mean of all rows.
        levels: number of values that a quantised weight can have, the least of all weights; does
            not depend on inputs, and only presets set it.
    """

    cosine: float | None = None
    median: float | None = None
    top1: float | None = None
    top5: float | None = None
    spearman: float | None = None
    levels: int | None = None


LOGIT_SCALE = 0.02
"""Largest relative difference of a candidate's logit scale from the reference's. Correct static
int8 programs of tiny-resnet and clipa, which also quantise logits, were at most 0.007 off; one
whose logarithm is rounded down to a step of 1/16 was 0.042 off."""

BUDGETS = {
    "fp16": Budget(cosine=0.999, median=0.9999, top1=0.85, top5=0.85, spearman=0.999),
    "bf16": Budget(cosine=0.99, median=0.999, top1=0.65, top5=0.8, spearman=0.99),
    "int8": Budget(cosine=0.8, median=0.998, top1=0.6, top5=0.7, spearman=0.99, levels=64),
    "int4": Budget(cosine=0.75, median=0.98, top1=0.4, top5=0.5, spearman=0.9),
}
"""By name. Measured with `python -m benchmarks.budgets`, over six models with two seeds each
(docs/evidence/tables/budgets.md has the table): the least of sound programs, of cosine, median,
top1, top5 and spearman, by the end of the interval that counts.

- ``fp16``: 1.0000, 1.0000, 0.93, 0.95 and 1.0000
- ``bf16``: 0.9997, 1.0000, 0.85, 0.92 and 0.9995; by ``clipcheck audit --family AlignModel``, seeds
  0 to 2, also 0.9999, 1.0000, 0.72, 0.90 and 0.9934
- ``int8``: 0.9316, 0.9985, 0.67, 0.80 and 0.9911; an earlier run, with tiny-resnet trained anew,
  had a least cosine of 0.8614
- ``int4``: 0.9650, 0.9864, 0.49, 0.63 and 0.9344

Shares of matches are low where features are close together, as those of seeded weights are.
"""
