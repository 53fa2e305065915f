from __future__ import annotations

from pathlib import Path

from clipcheck.checkpoints import registry
from conftest import Run


def test_models_lists_names_sizes_and_what_is_in_the_cache(run: Run, tmp_path: Path) -> None:
    done = run("models", "--download-root", tmp_path)
    lines = done.out.splitlines()
    assert lines[0] == f"cache: {tmp_path}"
    assert [line.split()[0] for line in lines[1:]] == registry.available_models()
    assert lines[6].split()[1:] == ["354.0", "MB", "not", "in", "the", "cache"]
