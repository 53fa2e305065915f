"""A disk that is full, and one that cannot be written to: what is asked for is had, or it is told
why not, and what was there is as before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mounting import ON_A_FULL_DISK, ON_A_READ_ONLY_DISK

pytestmark = pytest.mark.thorough

ALONE = ["unshare", "--user", "--map-root-user", "--mount"]
PROBE = [*ALONE, "sh", "-c", 'mount -t tmpfs none "$0"']


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("disks")
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    allowed = subprocess.run([*PROBE, str(folder)], capture_output=True, text=True, check=False)
    if allowed.returncode != 0:
        pytest.skip(f"the kernel lets nobody mount here: {allowed.stderr.strip()}")
    done = subprocess.run(
        [*ALONE, sys.executable, "-m", "tests.mounting", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("what", ON_A_FULL_DISK)
def test_commands_handle_a_full_disk(found: dict[str, str], what: str) -> None:
    assert found[f"full: {what}"] == ""


@pytest.mark.parametrize("what", ON_A_READ_ONLY_DISK)
def test_commands_handle_a_read_only_disk(found: dict[str, str], what: str) -> None:
    assert found[f"read-only: {what}"] == ""
