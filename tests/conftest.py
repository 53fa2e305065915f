"""The checkpoints of `test_consistency.py`: seeded ones, unless others are named."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Ask for seeded weights."""
    if not config.getoption("--clip-model"):
        config.option.clip_seeded = True
