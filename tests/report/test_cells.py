from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from clipcheck.report.cells import command, padded, quoted, shortened, visible, wrapped
from clipcheck.system.width import WIDTH, lines_of

TEXTS = st.text(max_size=300) | st.text("ab/ \x1b\n\u202e日❤\ufe0f\u0301'\\$", max_size=300)


@given(TEXTS)
def test_all_that_is_visible_can_be_printed(text: str) -> None:
    assert visible(text).isprintable()


def test_what_can_be_printed_stays_and_the_rest_is_escaped() -> None:
    assert visible("a 日 é") == "a 日 é"
    assert visible("a\x1b[31m\n\u202e\udc80") == r"a\x1b[31m\n\u202e\udc80"


@given(TEXTS, st.integers(10, WIDTH))
def test_what_is_shortened_fits(text: str, width: int) -> None:
    assert cell_len(shortened(visible(text), width)) <= width


def test_the_end_of_a_long_name_is_kept() -> None:
    assert shortened("releases/2024/model-a.pt", 24) == "releases/2024/model-a.pt"
    assert shortened("releases/2024/model-a.pt", 20) == "relea...4/model-a.pt"
    assert shortened("日" * 20, 20) == "日日...日日日日日日"


def test_padding_counts_cells() -> None:
    assert padded("日", 4) == "日  "


@given(TEXTS, st.sampled_from(["", "  ", "  pass  allclose   "]))
def test_wrapped_lines_fit_and_lose_no_word(text: str, first: str) -> None:
    lines = wrapped(text, first)
    assert all(cell_len(line) <= WIDTH for line in lines)
    assert all(line == line.rstrip() and line.isprintable() for line in lines)
    kept = "".join(lines).removeprefix(first.rstrip()).replace(" ", "")
    blank = str.maketrans("", "", " \t\r\n")
    assert kept == visible(text.translate(blank))


def test_wrapped_lines_go_on_below_the_first() -> None:
    assert wrapped("word " * 16, "  a  ") == ["  a  " + "word " * 14 + "word", "     word"]
    assert wrapped("x" * 100, "  ") == ["  " + "x" * 78, "  " + "x" * 22]
    assert wrapped("日" * 50, "  ") == ["  " + "日" * 39, "  " + "日" * 11]


@given(TEXTS, st.integers(60, 100))
def test_lines_have_the_requested_width(text: str, cells: int) -> None:
    with lines_of(cells):
        lines = wrapped(text, "  error  ")
        assert all(cell_len(line) <= cells for line in lines)
        assert len(lines) == 1 or cell_len(wrapped("x" * 200)[0]) == cells
    assert cell_len(wrapped("x" * 200)[0]) == WIDTH


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_a_command_fits(arguments: list[str]) -> None:
    lines = command(["clipcheck", *arguments], "Next: ")
    assert all(cell_len(line) <= WIDTH and line.isprintable() for line in lines)


@pytest.mark.parametrize(
    "argument",
    [
        "model.pt",
        "my model.pt",
        "it's \\ $HOME `x`",
        "a\x1b[31m\n'b\\c\u202e",
        "long/" * 40,
        "long and 'quoted' " * 20,
        "日\n本" * 70,
        "two",
    ],
)
def test_a_shell_reads_a_command_as_it_was_meant(argument: str) -> None:
    words = ["printf", "%s\\0", argument, "-o", argument * 2]
    script = "\n".join(command(words))
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().split("\0") == [argument, "-o", argument * 2, ""]


def test_a_command_is_on_one_line_if_it_fits() -> None:
    assert command(["clipcheck", "replay", "a b"], "  again: ") == [
        "  again: clipcheck replay 'a b'"
    ]


def test_quoting_keeps_bytes_that_are_no_text() -> None:
    assert quoted("a\udcff") == r"$'a\xff'"
