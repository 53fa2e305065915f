from __future__ import annotations

from pathlib import Path

import pytest

from clipcheck.checkpoints.checkpoint import Format
from clipcheck.families import eager
from tests.samples import MINUTE, minute_bytes, minute_weights


@pytest.fixture(scope="module")
def model() -> eager.CLIP:
    return eager.build(MINUTE, {key: tensor.float() for key, tensor in minute_weights().items()})


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of the weights of `model`."""
    path = tmp_path_factory.mktemp("archive") / "model.pt"
    path.write_bytes(minute_bytes(Format.ARCHIVE))
    return path
