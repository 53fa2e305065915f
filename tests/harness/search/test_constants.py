"""The same seed draws the same inputs, wherever it is called from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

from clipcheck.harness.search.constants import without_local_constants
from clipcheck.harness.search.inputs import Wanted, draw
from clipcheck.inputs.batches import Inputs
from clipcheck.inputs.digest import digest

INPUTS = Inputs(resolution=16, context_length=77, vocab_size=49408, grid=2)

MINE = f"""
from clipcheck.inputs.batches import Inputs
from clipcheck.inputs.digest import digest
from clipcheck.harness.search.inputs import Wanted, draw

INPUTS = Inputs(resolution=16, context_length=77, vocab_size=49408, grid=2)
NUMBERS = {list(range(1, 256))}
TEXTS = {[f"word {n}" for n in range(300)]}
for seed in (0, 1):
    print("digest", digest(draw(Wanted(46, False, seed, "x.pt"), INPUTS).batches))
"""


def test_constants_that_hypothesis_has_found_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Constants(integers=set(range(1, 256)), strings={f"word {n}" for n in range(300)})
    wanted = Wanted(46, False, 0, "x.pt")
    digests = []
    for constants in (Constants(), found):
        monkeypatch.setattr(providers, "_get_local_constants", lambda mine=constants: mine)
        providers.CONSTANTS_CACHE.cache.clear()
        digests.append(digest(draw(wanted, INPUTS).batches))
    providers.CONSTANTS_CACHE.cache.clear()
    assert digests[0] == digests[1]


@pytest.mark.thorough
def test_constants_of_a_script_change_nothing(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(MINE)
    environment = {**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path / "kept")}
    printed = subprocess.check_output([sys.executable, script], env=environment, text=True)
    here = [digest(draw(Wanted(46, False, seed, "x.pt"), INPUTS).batches) for seed in (0, 1)]
    assert len(set(here)) == 2
    assert [line.split()[-1] for line in printed.splitlines() if "digest " in line] == here


def test_other_uses_of_hypothesis_are_unchanged() -> None:
    before = providers._get_local_constants, providers.CONSTANTS_CACHE
    with without_local_constants():
        assert len(providers._get_local_constants()) == 0
        assert providers.CONSTANTS_CACHE is not before[1]
    assert (providers._get_local_constants, providers.CONSTANTS_CACHE) == before


def test_a_version_of_hypothesis_without_constants_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(providers, "_get_local_constants")
    with without_local_constants():
        assert not hasattr(providers, "_get_local_constants")
