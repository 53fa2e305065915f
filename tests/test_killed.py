"""Commands that write may be killed at any time: files are complete, and the next run recovers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.thorough import parametrize

KILLS = 6

TASKS = ["report", "state-dict", "download", "safetensors", "open_clip", "files", "artefact"]
SLOW = ["archive", "pt2"]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

Kill = Callable[..., int]


@pytest.fixture(scope="module")
def killer() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.killing"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[1],
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == "ready"
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.fixture
def kill(killer: subprocess.Popen[str], tmp_path: Path) -> Kill:
    """Kill tasks in some way; return how many were killed, and fail if they left partial files."""

    def ask(task: str, how: str, *arguments: Any) -> int:
        assert killer.stdin is not None
        assert killer.stdout is not None
        request = {"task": task, "how": how, "arguments": arguments, "folder": str(tmp_path)}
        killer.stdin.write(json.dumps(request) + "\n")
        killer.stdin.flush()
        answer = json.loads(killer.stdout.readline())
        if "problem" in answer:
            pytest.fail(answer["problem"])
        return int(answer["killed"])

    return ask


@parametrize("task", ["finding", *TASKS])
def test_a_kill_before_any_step_leaves_no_partial_file(
    kill: Kill, task: str, thorough: bool
) -> None:
    every, olds = (1, [True, False]) if thorough else (3, [True])
    assert kill(task, "at_each_step", every, *olds) >= 4


@parametrize("task", [*TASKS, *SLOW, "finding"], quick=2)
def test_a_kill_within_a_file_leaves_no_partial_file(kill: Kill, task: str) -> None:
    assert kill(task, "at_sizes", 1, 100, 100_000) >= 1


@pytest.mark.thorough
@pytest.mark.parametrize("task", SLOW)
def test_a_kill_at_any_time_leaves_no_partial_file(kill: Kill, task: str) -> None:
    """Those that take too long for a kill before each step."""
    assert kill(task, "at_random", KILLS, 7) >= 1


@pytest.mark.thorough
@pytest.mark.parametrize("task", ["report", "download", "open_clip", "artefact"])
def test_repeated_kills_do_not_accumulate_files(kill: Kill, task: str) -> None:
    assert kill(task, "again_and_again", KILLS, 8) >= 1
