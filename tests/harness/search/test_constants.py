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

DRAWS = """
from clipcheck.inputs.batches import Inputs
from clipcheck.inputs.digest import digest
from clipcheck.harness.search.inputs import Wanted, draw

for seed in (0, 1):
    drawn = draw(Wanted(46, False, seed, "x.pt"), Inputs(16, 77, 49408, 2))
    print("digest", digest(drawn.batches))
"""
MINE = f"NUMBERS = {list(range(1, 256))}\nTEXTS = {[f'word {n}' for n in range(300)]}\n"
IMPORTS = "import constants_of_mine\n"


def started(folder: Path, name: str, source: str) -> subprocess.Popen[str]:
    """Run a script of that source, or a file of tests, in a folder of its own."""
    folder.mkdir()
    (folder / name).write_text(source)
    (folder / "constants_of_mine.py").write_text(MINE)
    command = [sys.executable, name]
    if name.startswith("test_"):
        command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", name]
    path = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    kept = str(folder / "kept")
    environment = {**os.environ, "PYTHONPATH": path, "HYPOTHESIS_STORAGE_DIRECTORY": kept}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def test_constants_that_hypothesis_has_found_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Constants(integers=set(range(1, 256)), strings={f"word {n}" for n in range(300)})
    inputs = Inputs(16, 77, 49408, 2)
    wanted = Wanted(46, False, 0, "x.pt")
    digests = []
    for constants in (Constants(), found):
        monkeypatch.setattr(providers, "_get_local_constants", lambda mine=constants: mine)
        providers.CONSTANTS_CACHE.cache.clear()
        digests.append(digest(draw(wanted, inputs).batches))
    providers.CONSTANTS_CACHE.cache.clear()
    assert digests[0] == digests[1]


@pytest.mark.thorough
def test_constants_of_the_caller_and_other_modules_change_nothing(tmp_path: Path) -> None:
    test = "def test_it():" + DRAWS.replace("\n", "\n    ")
    runs = [
        started(tmp_path / "plain", "script.py", DRAWS),
        started(tmp_path / "mine", "script.py", MINE + IMPORTS + DRAWS),
        started(tmp_path / "pytest", "test_it.py", IMPORTS + test),
    ]
    printed = [run.communicate()[0] for run in runs]
    plain, *others = [
        [line.split()[-1] for line in text.splitlines() if "digest " in line] for text in printed
    ]
    assert len(set(plain)) == 2
    assert others == [plain, plain], printed


def test_what_hypothesis_does_elsewhere_is_as_it_was() -> None:
    before = providers._get_local_constants, providers.CONSTANTS_CACHE
    with without_local_constants():
        assert len(providers._get_local_constants()) == 0
        assert providers.CONSTANTS_CACHE is not before[1]
    assert (providers._get_local_constants, providers.CONSTANTS_CACHE) == before


def test_a_version_that_has_none_of_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(providers, "_get_local_constants")
    with without_local_constants():
        assert not hasattr(providers, "_get_local_constants")
