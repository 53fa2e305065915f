"""How alike two models are to whoever uses them: the cosine of features, and the best match.

They judge nothing: a fault may be real and small. They say whether one matters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipcheck.gates.metrics import Array
from clipcheck.gates.result import FEATURES, LOGITS, Case, judged


def agreement(cases: Sequence[Case]) -> dict[str, float | int | str]:
    """Compare with float64: the least cosine of any row of features, and in how many rows of logits
    the best match is the same. What the candidate does not have is left out."""
    cosines = [
        float(_cosines(case.candidate[name], case.exact[name]).min())
        for case in cases
        for name in judged([case], FEATURES)
    ]
    same = [
        np.argmax(case.candidate[name], axis=1) == np.argmax(case.exact[name], axis=1)
        for case in cases
        for name in judged([case], LOGITS)
    ]
    found: dict[str, float | int | str] = {"cosine": min(cosines)} if cosines else {}
    if same:
        found |= {"top1": sum(int(each.sum()) for each in same), "rows": sum(map(len, same))}
    return found


def _cosines(these: Array, those: Array) -> Array:
    """Of each row; 0 where it is no number: an infinite or empty vector points nowhere."""
    a, b = these.astype(np.float64), those.astype(np.float64)
    with np.errstate(all="ignore"):
        found = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.asarray(np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0))
