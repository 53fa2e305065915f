from __future__ import annotations

from pathlib import Path

import pytest

from clipcheck.checkpoints import download
from clipcheck.checkpoints.architecture import ARCHITECTURES
from clipcheck.checkpoints.keys import count_parameters
from clipcheck.plugin import subjects
from clipcheck.plugin.subjects import Subject, find, size
from conftest import SeededArchive


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the requested seeded archives instead of writing them."""
    asked: list[str] = []

    def pretend(name: str, folder: Path) -> Path:
        asked.append(name)
        return folder / "seeded.pt"

    monkeypatch.setattr(subjects, "seeded_archive", pretend)
    return asked


def test_a_path_starts_where_pytest_was_started(tmp_path: Path) -> None:
    found = find("new.pt", tmp_path, tmp_path / "shared")
    assert found == Subject(str(tmp_path / "new.pt"), "new.pt", "the file given")
    assert find("/somewhere/new.pt", tmp_path, tmp_path).checkpoint == "/somewhere/new.pt"


@pytest.mark.parametrize("name", ["tiny-vit", "ViT-B/32"])
def test_seeded_weights_are_never_taken_for_released_ones(
    name: str, written: list[str], tmp_path: Path
) -> None:
    found = find(f"seeded:{name}", tmp_path, tmp_path)
    assert written == [name]
    assert found.label == f"{name} (seeded weights)"
    assert found.source == "seeded weights, NOT the released weights"


def test_a_released_name_never_stands_for_seeded_weights(
    written: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path))  # which is empty
    found = find("ViT-B/32", tmp_path, tmp_path)
    assert found == Subject("ViT-B/32", "ViT-B/32", "the released file")
    assert written == []


def test_the_size_is_that_of_the_file_or_of_a_released_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path))
    (tmp_path / "new.pt").write_bytes(bytes(1234))
    assert size("new.pt", tmp_path) == 1234
    assert size("gone.pt", tmp_path) == 0
    assert size("tiny-vit", tmp_path) == 0
    assert size("seeded:tiny-vit", tmp_path) == 2 * count_parameters(ARCHITECTURES["tiny-vit"])
    assert size("ViT-B/32", tmp_path) == 2 * count_parameters(ARCHITECTURES["ViT-B/32"])


def test_an_archive_is_written_once(seeded_archive: SeededArchive) -> None:
    path = seeded_archive("tiny-vit")
    before = path.stat().st_mtime_ns
    assert subjects.seeded_archive("tiny-vit", path.parent) == path
    assert path.stat().st_mtime_ns == before
