from __future__ import annotations

from pathlib import Path

from clipcheck.checkpoints.formats import open_checkpoint
from conftest import Run


def test_synthesize_writes_the_requested_checkpoint(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    done = run("synthesize", "tiny-vit", "-o", path, "--format", "safetensors", "--seed", 3)
    assert done.code == 0
    assert "seeded weights (not trained) of tiny-vit" in done.out
    opened = open_checkpoint(path)
    assert (opened.format, opened.architecture.name) == ("safetensors", "tiny-vit")


def test_an_unknown_architecture_is_refused_with_the_nearest_name(run: Run, tmp_path: Path) -> None:
    done = run("synthesize", "ViT-Z", "-o", tmp_path / "t.pt")
    assert done.code == 2
    assert done.err.startswith("clipcheck: ARCH: expected a released name")
    assert "'ViT-Z'" in done.err
    assert "The nearest name is 'ViT-L/14'." in done.err
    assert not list(tmp_path.iterdir())
