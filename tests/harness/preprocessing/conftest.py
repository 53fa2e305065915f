"""The candidates of each library, made once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from clipcheck.harness.preprocessing import registry
from clipcheck.harness.preprocessing.base import Candidate
from tests.harness.preprocessing.samples import checkpoint

Candidates = dict[str, Candidate]


@pytest.fixture(scope="package")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Candidates:
    """Return the candidates of all libraries for a checkpoint that is not a folder, by kind and
    name."""
    folder = tmp_path_factory.mktemp("preprocessing")
    return {
        f"{each.kind} {each.name}": each
        for library in registry.LIBRARIES
        for each in registry.of(library, checkpoint(), folder)
    }


@pytest.fixture
def candidate(candidates: Candidates) -> Callable[[str], Candidate]:
    return candidates.__getitem__
