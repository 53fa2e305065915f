from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from clipcheck.backends.calling import Array, Named
from clipcheck.backends.dealing import fixed_sizes
from clipcheck.errors import RunError


def running_where(takes: Callable[..., bool]) -> Callable[..., Named]:
    def run(*arrays: Array) -> Named:
        if not takes(*map(len, arrays)):
            raise RunError("a size is wrong", remedy="")
        return {}

    return run


@pytest.mark.parametrize(
    ("takes", "expected"),
    [
        (lambda images, texts: (images, texts) == (8, 2), {"image": 8, "prompt": 2}),
        (lambda images, _: images == 4, {"image": 4, "prompt": None}),
        (lambda images, _: images != 5, {}),
        (lambda images, texts: images < 16 and texts < 16, {}),
        (lambda *_: False, {}),
    ],
)
def test_a_size_is_fixed_if_no_other_runs(
    takes: Callable[[int, int], bool], expected: dict[str, int | None]
) -> None:
    given = {"image": np.zeros((5, 3)), "prompt": np.zeros((1, 2))}
    assert fixed_sizes(running_where(takes), given) == expected
