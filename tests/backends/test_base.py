from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from clipcheck.backends import base
from clipcheck.backends.base import reason, translating
from clipcheck.backends.registry import way
from clipcheck.errors import RunError, UsageError


def test_a_librarys_error_becomes_ours_and_is_kept_as_the_cause() -> None:
    with (
        pytest.raises(RunError, match=r"^clip: loading failed \(no such file\)\. .*--debug") as got,
        translating("clip", "loading"),
    ):
        raise OSError("no such file")
    assert type(got.value.__cause__) is OSError


def test_it_is_translated_once_however_deep() -> None:
    with (
        pytest.raises(RunError) as got,
        translating("clip", "building"),
        translating("clip", "loading"),
    ):
        raise OSError("no such file")
    assert got.value.problem == "clip: loading failed (no such file)"


def test_an_error_of_ours_and_what_stops_python_are_left_alone() -> None:
    ours = UsageError("expected one", remedy="Give one.")
    for error in (ours, KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)) as got, translating("clip", "loading"):
            raise error
        assert got.value is error


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("sizes do not fit", "sizes do not fit"),
        ("The following operation failed:\nTraceback\n  sizes do not fit\n\n", "sizes do not fit"),
        (
            "index out of bounds\nException raised from f at f.cpp:1 (most recent call first):\n#0",
            "index out of bounds",
        ),
        ("", "ValueError"),
        (" \n ", "ValueError"),
    ],
)
def test_of_a_message_the_last_line_is_told_that_is_for_people(message: str, words: str) -> None:
    assert reason(ValueError(message)) == words


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
def test_one_that_is_too_old_is_to_be_upgraded(
    distribution: str, backend: str, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    oldest, version_of = bound(distribution), base.version
    other = "0.0.1rc1" if old else oldest
    monkeypatch.setattr(
        base, "version", lambda name: other if name == distribution else version_of(name)
    )
    missing = way(backend).available()
    assert (missing is not None) == old
    if missing is not None:
        assert missing.reason == (
            f"{distribution} 0.0.1rc1 is installed, and {oldest} is the oldest that works"
        )
        told = f"Upgrade it: pip install --upgrade '{distribution}>={oldest}'."
        assert missing.remedy == told


def test_one_whose_version_is_not_known_is_taken() -> None:
    assert base.too_old("no-such-distribution", "1.0") is None
