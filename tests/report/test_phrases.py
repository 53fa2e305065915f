from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from clipcheck.report.phrases import commands, evidence, one_line
from tests.report import PASSED, failed, saved_in, unjudged

ANY_TEXT = st.text(st.characters(exclude_categories=()))
"""With control characters and halves of surrogate pairs, as a file's name may have them."""


@given(ANY_TEXT)
def test_any_text_becomes_one_line_that_can_be_encoded(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert line.isprintable()
    line.encode()


def test_line_ends_become_blanks_and_what_has_no_glyph_is_spelled_out() -> None:
    assert one_line("a\nb\r\nc\rd") == "a b c d"
    assert one_line("\x1b[1m\x00\u202e\udc80") == r"\x1b[1m\x00\u202e\udc80"
    assert one_line("größer 😀") == "größer 😀"


def test_a_title_has_the_dtype_where_one_was_chosen() -> None:
    assert PASSED.title == "release/model.pt, jit on cpu in float32"
    assert unjudged().title == "gone.pt, jit on cpu"


def test_the_evidence_is_each_place_that_departs_and_the_input_that_fails() -> None:
    assert list(evidence(failed())) == [
        "departs first in the text tower: transformer.resblocks.1, the sum behind attn (error "
        "0.5, eager 0.0042 (120x, limit 10x); inputs: the input that fails)",
        "smallest input that fails: the image RGB 3x2, all (0, 0, 0), the prompt 'addo'",
    ]
    assert list(evidence(PASSED)) == []


def test_a_batch_is_not_called_the_smallest_input() -> None:
    one = failed()
    assert one.failing is not None
    batch = replace(one, localisation=None, failing=replace(one.failing, shrunk=False))
    (line,) = evidence(batch)
    assert line.startswith("a batch that fails: ")


def test_the_commands_run_the_input_again_and_help_further() -> None:
    again, following, _ = commands(saved_in("my folder", failed()))
    assert again == "Again: clipcheck replay 'my folder'"
    assert following == "Next: clipcheck convert bad.pt -o fixed.pt"
    assert commands(saved_in(None, failed()))[0] == following
    assert commands(unjudged()) == []
