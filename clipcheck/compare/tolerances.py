"""Every limit that a gate compares with, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Contract:
    """The limits of the gate ``contract``.

    The defaults are those of the reference implementation's own consistency test, which asserts
    ``np.allclose(jit, eager, atol=0.01, rtol=0.1)`` on probabilities (openai/CLIP,
    tests/test_consistency.py).
    """

    atol: float = 0.01
    rtol: float = 0.1


@dataclass(frozen=True)
class Limits:
    """How far from float64 a candidate may be, in one dtype.

    All but the last two are ratios: the candidate's root mean square error over the eager
    model's, both against float64.

    Attributes:
        roundoff: the dtype's unit roundoff, half the distance from 1 to the next number. An eager
            model that happens to be exact is taken to be wrong by this much.
        features: for the features of a whole batch.
        feature_row: for the features of one image or prompt.
        logits: for the logits of a whole batch.
        logit_row: for the logits of one image or prompt.
        module: for the output of one module.
        cap: for a single logit, in ulps: units in the last place of a number from 16 to 32,
            where logits are, for a logit scale of 100; in proportion for another scale.
    """

    roundoff: float
    features: float
    feature_row: float
    logits: float
    logit_row: float
    module: float
    cap: float

    def logit_cap(self, scale: float) -> float:
        """The greatest error of one logit; ``scale`` is the model's, exp(logit_scale)."""
        return self.cap * 32 * self.roundoff * scale / 100


LIMITS = {
    "float32": Limits(2**-24, features=6, feature_row=8, logits=6, logit_row=8, module=10, cap=64),
    "float16": Limits(2**-11, features=6, feature_row=8, logits=6, logit_row=8, module=10, cap=8),
    "bfloat16": Limits(2**-8, features=6, feature_row=8, logits=6, logit_row=8, module=10, cap=8),
}
