from __future__ import annotations

import pytest

from clipcheck.backends.calling import reason, translating
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
