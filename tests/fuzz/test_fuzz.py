"""A short search in each run: some altered inputs of each target, from a fixed seed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clipcheck.errors import DamagedError
from tests.fuzz import mutate
from tests.fuzz.__main__ import NAMES
from tests.fuzz.search import Search, blindly
from tests.fuzz.targets import TARGETS, Target

RUNS = {"archive": 40, "archive-pickle": 60, "state-dict": 60, "code": 60}
"""Fewer of those that take long."""

SHARE = 4
"""A plain run makes that part of them."""


@pytest.mark.parametrize("name", TARGETS)
def test_only_our_own_errors_are_raised(name: str, tmp_path: Path, thorough: bool) -> None:
    search = Search(TARGETS[name], None, tmp_path)
    runs = RUNS.get(name, 150) // (1 if thorough else SHARE)
    blindly(search, seed=0, runs=runs)
    assert search.tally.finds == {}
    assert search.tally.runs == runs


@pytest.mark.parametrize("name", TARGETS)
def test_a_search_starts_from_valid_inputs(name: str, tmp_path: Path) -> None:
    search = Search(TARGETS[name], None, tmp_path)
    for data in TARGETS[name].seeds():
        search.run(data)
    assert search.tally.finds == {}
    # These have no whole model, and are refused for that at the very end.
    assert search.tally.accepted or name in ("archive-pickle", "legacy")
    assert not {"UnknownFormatError", "UnsafeError"} & search.tally.refused.keys()


def test_the_command_line_has_all_targets() -> None:
    assert list(NAMES) == list(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_alterations_are_the_same_for_the_same_seed(name: str) -> None:
    target = TARGETS[name]
    data = target.seeds()[0]
    one, other = (target.alter(data, random.Random(7)) for _ in range(2))
    assert one == other
    assert any(target.alter(data, random.Random(seed)) != data for seed in range(5))


def of(run: object) -> Target:
    return Target("own", lambda: [b"seed"], run, mutate.in_bytes)  # type: ignore[arg-type]


def test_a_finding_is_minimised_and_reported_with_its_place(tmp_path: Path) -> None:
    def parse(data: bytes, _: Path) -> None:
        if b"!" in data:
            raise KeyError("not ours")

    search = Search(of(parse), tmp_path / "finds", tmp_path)
    search.run(b"a long input! with more than it takes")
    (outcome,) = search.tally.finds
    assert outcome.startswith("KeyError at test_fuzz.py:")
    told, found = sorted((tmp_path / "finds").iterdir(), key=lambda path: path.suffix, reverse=True)
    assert told.read_text().strip() == outcome
    assert found.read_bytes() == b"!"


def test_running_out_of_memory_is_a_finding_even_if_our_error_hides_it(tmp_path: Path) -> None:
    def parse(*_: object) -> None:
        try:
            raise MemoryError
        except MemoryError as error:
            raise DamagedError("cut off", remedy="Copy it again.") from error

    search = Search(of(parse), None, tmp_path)
    search.run(b"")
    assert [outcome.partition(" within")[0] for outcome in search.tally.finds] == ["MemoryError"]


def test_a_timeout_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(*_: object) -> None:
        while True:
            pass

    monkeypatch.setattr("tests.fuzz.search.MOST_SECONDS", 0.05)
    search = Search(of(parse), None, tmp_path)
    search.run(b"")
    assert [outcome.partition(" at")[0] for outcome in search.tally.finds] == [
        "tests.fuzz.search.Hang"
    ]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_our_own_errors_are_counted_by_kind(tmp_path: Path) -> None:
    def parse(*_: object) -> None:
        raise DamagedError("cut off", remedy="Copy it again.")

    search = Search(of(parse), None, tmp_path)
    search.run(b"")
    assert json.loads(search.tallied())["refused"] == {"DamagedError": 1}
    assert search.tally.finds == {}


@pytest.mark.thorough
def test_the_command_searches_and_says_what_it_did(tmp_path: Path) -> None:
    arguments = ["--minutes", "0.05", "--target", "onnx", "--finds", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *arguments],
        cwd=Path(__file__).parent.parent.parent,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done
    name, runs, *_, finds = done.stdout.splitlines()[2].split()
    assert (name, finds) == ("onnx", "0")
    assert int(runs) > 50
