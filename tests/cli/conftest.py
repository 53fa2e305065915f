from __future__ import annotations

from pathlib import Path

import pytest

from tests.samples import (
    minute_weights,
    saved,
)


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """Return a training checkpoint of two models; the second has one weight negated."""
    weights = minute_weights()
    other = {key: -tensor if key == "visual.proj" else tensor for key, tensor in weights.items()}
    path = tmp_path / "several.ckpt"
    path.write_bytes(saved({"model": weights, "model_ema": other}))
    return path
