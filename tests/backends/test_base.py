from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from clipcheck.backends import base
from clipcheck.backends.registry import find

OLDEST = {
    "transformers": "transformers",
    "open_clip_torch": "open_clip",
    "onnxruntime": "onnxruntime",
    "onnx": "onnxruntime",
    "onnxscript": "onnxruntime",
}
"""By distribution, the backend that asks for it."""


def bound(distribution: str) -> str:
    """The oldest version that the project declares."""
    path = Path(__file__).parents[2] / "pyproject.toml"
    project = tomllib.loads(path.read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = [each for group in groups for each in group]
    return next(
        each.removeprefix(f"{distribution}>=")
        for each in declared
        if each.startswith(f"{distribution}>=")
    )


@pytest.mark.parametrize(("distribution", "backend"), OLDEST.items())
@pytest.mark.parametrize("old", [True, False])
def test_a_library_that_is_too_old_has_to_be_upgraded(
    distribution: str, backend: str, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    oldest, version_of = bound(distribution), base.version
    other = "0.0.1rc1" if old else oldest
    monkeypatch.setattr(
        base, "version", lambda name: other if name == distribution else version_of(name)
    )
    missing = find(backend).available()
    assert (missing is not None) == old
    if missing is not None:
        assert missing.reason == (
            f"{distribution} 0.0.1rc1 is installed, and {oldest} is the oldest that works"
        )
        told = f"Upgrade it: pip install --upgrade '{distribution}>={oldest}'."
        assert missing.remedy == told


def test_a_library_of_unknown_version_is_accepted() -> None:
    assert base.too_old("no-such-distribution", "1.0") is None
