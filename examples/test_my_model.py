"""A pytest suite of one's own: pytest examples/test_my_model.py

`MY_MODEL` is the path of your checkpoint.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch

import clipcheck

MODEL = os.environ.get("MY_MODEL", "")
pytestmark = pytest.mark.skipif(not MODEL, reason="MY_MODEL names no checkpoint")


def test_the_archive_computes_what_its_weights_say() -> None:
    """Its code agrees with the eager model of its weights."""
    clipcheck.assert_consistent(MODEL)


def test_it_computes_the_same_in_another_memory_format() -> None:
    """Two modules in memory agree."""
    model, _ = clipcheck.load(MODEL, device="cpu", jit=False)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    clipcheck.assert_same(model, other)
