"""Programs of ExecuTorch are judged; files that others made run in the sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest

import clipcheck
from clipcheck.backends.registry import find
from clipcheck.checkpoints.artefacts import kind_of
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.report.text import render


def test_a_program_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(b"<\0\0\0ET12eh00" + bytes(100))
    assert kind_of(path) is Format.EXECUTORCH


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # of what executorch imports
def test_a_file_that_others_made_runs_in_the_sandbox(minute_archive: Path, tmp_path: Path) -> None:
    if find("executorch").available() is not None:
        pytest.skip("executorch is not installed")
    import torch

    from clipcheck.backends.executorch import _lowered
    from clipcheck.checkpoints.formats import open_checkpoint
    from clipcheck.models.loader import load_eager

    model = load_eager(open_checkpoint(minute_archive), torch.device("cpu"), torch.float32)
    path = tmp_path / "model.pte"
    path.write_bytes(_lowered(model, "portable"))
    result = clipcheck.check(path, reference=minute_archive, examples=4, device="cpu")
    assert result, render(result)
    (judgement,) = result.judgements
    assert judgement.backend == "executorch"
    assert judgement.isolation
    assert "input 1 -> pixels (float32)" in judgement.mapping
