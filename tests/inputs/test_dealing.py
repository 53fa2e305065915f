"""Rows that already ran, put into other batches."""

from __future__ import annotations

import pytest

from clipcheck.inputs.batches import Inputs, batches
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.inputs.dealing import BRIEF, FULL, Call, Effort, Row, deal

DRAWN = list(
    batches(EDGE_CASES, Inputs(resolution=16, context_length=77, vocab_size=100, grid=2), 0)
)
LENGTHS = range(76)


def calls_of(calls: list[Call], method: str) -> list[Call]:
    return [call for call in calls if call.method == method]


@pytest.mark.parametrize("effort", [FULL, BRIEF], ids=["full", "brief"])
def test_every_length_is_run_and_each_size_asked_for(effort: Effort) -> None:
    calls = deal(DRAWN, LENGTHS, effort)
    of_lengths = {row.row for call in calls for row in call.prompts if row.batch == len(DRAWN)}
    assert of_lengths == set(LENGTHS)
    for method, sizes in (("encode_image", effort.images), ("encode_text", effort.prompts)):
        found = [len(call.images) + len(call.prompts) for call in calls_of(calls, method)]
        assert [size for size in found if size > 1] == list(sizes)


def test_more_rows_run_alone_if_lengths_are_left() -> None:
    effort = Effort(images=(), prompts=(2,), squares=(), singles=(0, 3, 0))
    for lengths, calls in ((10, 1 + 8), (3, 1 + 3)):
        assert len(deal(DRAWN, range(lengths), effort)) == calls


def test_a_small_model_gets_over_a_hundred_calls_of_one_row() -> None:
    calls = deal(DRAWN, LENGTHS, FULL)
    alone = [call for call in calls if max(len(call.images), len(call.prompts)) == 1]
    assert len(alone) >= 100
    for start in range(0, len(calls) - 12, 12):
        methods = {call.method for call in calls[start : start + 12]}
        assert methods == {"encode_image", "encode_text", "forward"}


def test_each_tower_of_a_fast_model_is_called_fifty_times() -> None:
    calls = deal(DRAWN, LENGTHS, FULL)
    for method in ("encode_image", "encode_text"):
        assert len(calls_of(calls, method)) + len(DRAWN) >= 50


def test_a_pair_or_a_square_has_the_rows_of_one_batch_alone() -> None:
    for call in calls_of(deal(DRAWN, LENGTHS, FULL), "forward"):
        assert len({row.batch for row in (*call.images, *call.prompts)}) == 1
        for row in call.images:
            assert row.row < len(DRAWN[row.batch].pixels)
        for row in call.prompts:
            assert row.row < len(DRAWN[row.batch].tokens)


def test_a_large_batch_has_rows_of_many_batches_and_no_row_twice_before_all_were_used() -> None:
    effort = Effort(images=(18,), prompts=(), squares=(), singles=(0, 0, 0))
    (call,) = deal(DRAWN, (), effort)
    rows = [Row(n, i) for n, batch in enumerate(DRAWN) for i in range(len(batch.pixels))]
    assert sorted(call.images) == rows
    assert list(call.images) != rows
