"""The checkpoints of `test_consistency.py`: seeded ones, unless others are named."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Ask for seeded weights of a small architecture, and of two more if thorough."""
    if config.getoption("--clip-model"):
        return
    if config.getoption("--thorough"):
        config.option.clip_seeded = True
    else:
        config.option.clip_model = ["seeded:tiny-vit"]
