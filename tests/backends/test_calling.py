from __future__ import annotations

import pytest

from clipcheck.backends.calling import reason, translating
from clipcheck.errors import RunError, UsageError


def test_an_error_of_a_library_becomes_ours_with_it_as_the_cause() -> None:
    with (
        pytest.raises(RunError, match=r"^clip: loading failed \(no such file\)\. .*--debug") as got,
        translating("clip", "loading"),
    ):
        raise OSError("no such file")
    assert type(got.value.__cause__) is OSError


def test_nested_calls_translate_an_error_once() -> None:
    with (
        pytest.raises(RunError) as got,
        translating("clip", "building"),
        translating("clip", "loading"),
    ):
        raise OSError("no such file")
    assert got.value.problem == "clip: loading failed (no such file)"


def test_our_errors_and_interrupts_are_not_translated() -> None:
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
def test_the_last_readable_line_of_a_message_is_shown(message: str, words: str) -> None:
    assert reason(ValueError(message)) == words
