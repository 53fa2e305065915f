from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext

import pytest

from clipcheck.system.progress import Gauge, Span, Tally, say_import


class Listener:
    """Records the progress that it gets."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.shares: list[float | None] = []

    def __call__(self, what: str, /) -> None:
        self.words.append(what)

    def reach(self, share: float | None, /) -> None:
        self.shares.append(share)

    def apart(self) -> AbstractContextManager[object]:
        return nullcontext("apart")


def test_parts_follow_one_another_in_proportion() -> None:
    parts = Span(Listener(), 0.5, 0.9).split([1, 3])
    assert [(part.start, part.end) for part in parts] == [
        (0.5, pytest.approx(0.6)),
        (pytest.approx(0.6), 0.9),
    ]


def test_parts_of_no_weight_are_alike() -> None:
    assert [part.end for part in Span(Listener()).split([0, 0])] == [0.5, 1.0]


def test_a_gauge_gets_the_share_of_the_whole() -> None:
    listener = Listener()
    _, part = Span(listener).split([1, 3])
    part.say("running")
    part.reach(0.5)
    part.stall()
    assert listener.words == ["running"]
    assert listener.shares == [0.625, None]
    with part.apart() as what:
        assert what == "apart"


def test_a_function_that_takes_words_is_enough() -> None:
    words: list[str] = []
    assert not isinstance(words.append, Gauge)
    span = Span(words.append)
    span.say("running")
    span.reach(0.5)
    span.stall()
    with span.apart():
        pass
    assert words == ["running"]


def test_a_tally_never_counts_more_than_all() -> None:
    told: list[float] = []
    tally = Tally(4, told.append)
    for count in (1, 2, 2):
        tally.add(count)
    Tally(0, told.append).add()
    assert told == [0.25, 0.75, 1.0, 1.0]


def test_the_import_of_torch_is_announced_if_it_is_still_to_be_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = Listener()
    monkeypatch.setitem(sys.modules, "torch", sys)
    say_import(listener)
    assert listener.words == []
    monkeypatch.delitem(sys.modules, "torch")
    say_import(listener)
    assert listener.words == ["importing torch"]
