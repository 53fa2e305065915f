from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from clipcheck.backends.base import Missing, Option
from clipcheck.backends.registry import Listed, listing
from clipcheck.report.backends import render
from clipcheck.system.width import WIDTH

COMPILE = Listed(
    "compile",
    "the eager model under torch.compile",
    {
        "mode": Option("default", ("default", "max-autotune", "quick"), "torch.compile's mode"),
        "providers": Option("device", (), "what runs it"),
        "fast": Option("yes", ("yes",), "the only way"),
    },
    "torch 2.14.1",
    None,
)
RUNTIME = Listed(
    "onnxruntime",
    "an ONNX program",
    {},
    "",
    Missing("onnxruntime is not installed", "Install it: pip install 'clipcheck[onnx]'."),
)


def test_it_says_what_runs_each_backend_or_what_to_install() -> None:
    assert render([COMPILE, RUNTIME]) == (
        "compile      torch 2.14.1\n"
        "             the eager model under torch.compile\n"
        "               mode=default, or max-autotune, quick: torch.compile's mode\n"
        "               providers=device: what runs it\n"
        "               fast=yes: the only way\n"
        "onnxruntime  cannot run here: onnxruntime is not installed.\n"
        "             Install it: pip install 'clipcheck[onnx]'.\n"
        "             an ONNX program\n"
        "\n"
        "Choose one with --backend NAME or --backend NAME:OPTION=VALUE,...; with\n"
        "--backend all choose all that fit the checkpoint."
    )


def test_the_list_fits_the_screen_and_is_complete() -> None:
    text = render(listing())
    assert all(cell_len(line) <= WIDTH for line in text.splitlines())
    for each in listing():
        assert f"\n{each.name} " in f"\n{text}"
        assert each.missing is None or each.missing.remedy[:20] in text


@given(st.text(max_size=200), st.text(max_size=200), st.lists(st.text(max_size=30), max_size=4))
def test_nothing_runs_over_or_moves_the_cursor(
    reason: str, meaning: str, values: list[str]
) -> None:
    option = Option("a", tuple(values), meaning)
    listed = Listed("x", meaning, {"o": option}, "", Missing(reason, meaning))
    for line in render([listed]).split("\n"):
        assert cell_len(line) <= WIDTH
        assert line.isprintable()
