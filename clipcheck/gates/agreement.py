"""Cosine of features and top-1 agreement, which show whether a fault matters to users.

They do not change the verdict: a fault may be real and small.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipcheck.gates.metrics import Array
from clipcheck.gates.result import FEATURES, LOGITS, Case, expected_outputs, unusable
from clipcheck.gates.tolerances import Limits


def agreement_with_float64(cases: Sequence[Case], limits: Limits) -> dict[str, float | int | str]:
    """Return the `agreement`, or as ``problem`` why there is none."""
    if limits.unit != Limits.unit:
        return {"problem": "the reference has no copy in float64"}
    problem = unusable(cases)
    return {"problem": problem} if problem else agreement(cases)


def agreement(cases: Sequence[Case]) -> dict[str, float | int | str]:
    """Return the least cosine of any row of features, and the number of rows of logits with the
    same best match, both against float64."""
    cosines = [
        float(_cosines(case.candidate[name], case.exact[name]).min())
        for case in cases
        for name in expected_outputs([case], FEATURES)
    ]
    same = [
        np.argmax(case.candidate[name], axis=1) == np.argmax(case.exact[name], axis=1)
        for case in cases
        for name in expected_outputs([case], LOGITS)
    ]
    found: dict[str, float | int | str] = {"cosine": min(cosines)} if cosines else {}
    if same:
        found |= {"top1": sum(int(each.sum()) for each in same), "rows": sum(map(len, same))}
    return found


def _cosines(these: Array, those: Array) -> Array:
    """Return the cosine of each row; 0 for a zero vector or one that is not finite."""
    a, b = these.astype(np.float64), those.astype(np.float64)
    with np.errstate(all="ignore"):
        found = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.asarray(np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0))
