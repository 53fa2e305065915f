from __future__ import annotations

from pathlib import Path

import pytest

from clipcheck.backends.base import Missing
from clipcheck.backends.names import BACKENDS
from clipcheck.backends.transformers import Transformers
from clipcheck.errors import UnavailableError
from clipcheck.harness.preprocessing import differences, registry
from clipcheck.harness.preprocessing.differences import Difference
from tests.harness.preprocessing.samples import checkpoint
from tests.thorough import parametrize


def test_every_library_is_a_backend() -> None:
    assert set(registry.LIBRARIES) <= set(BACKENDS)


@pytest.mark.parametrize("name", sorted(set(BACKENDS) - set(registry.LIBRARIES)))
def test_the_other_backends_take_the_pixels_and_ids_of_clipcheck(name: str, tmp_path: Path) -> None:
    assert registry.of(name, checkpoint(), tmp_path) == []


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Transformers, "available", lambda: Missing("it is gone", "Get it."))
    with pytest.raises(UnavailableError, match=r"^transformers: it is gone\. Get it\.$"):
        registry.of("transformers", checkpoint(), tmp_path)


@parametrize("library", registry.LIBRARIES)
def test_another_vocabulary_than_clips_has_no_texts_to_compare(
    library: str, tmp_path: Path
) -> None:
    kinds = {each.kind for each in registry.of(library, checkpoint(vocab_size=100), tmp_path)}
    assert kinds == {"image"}
    assert {each.kind for each in registry.of(library, checkpoint(), tmp_path)} == {"image", "text"}


def test_every_difference_has_a_unique_name_and_a_reference() -> None:
    known = [each for each in vars(differences).values() if isinstance(each, Difference)]
    assert len({each.name for each in known}) == len(known) > 10
    for each in known:
        assert each.link.startswith("https://")
        assert each.meaning
