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
