"""The commands that repeat a check have all of its options, and can be pasted."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from clipcheck.backends.sandboxes import ISOLATIONS
from clipcheck.cli import options
from clipcheck.cli.app import app
from clipcheck.harness.declarations import OPTIONS, words_of
from clipcheck.harness.declared import Declared
from clipcheck.harness.options import CheckOptions
from clipcheck.report.repeat import repeat, repeat_run
from clipcheck.results.judgement import PinnedTo
from tests.report.html.judgements import PASSED, UNJUDGED

CHECK: Any = typer.main.get_group(app).commands["check"]


def parse(words: list[str]) -> dict[str, Any]:
    """Return the options of a check that a shell and the command line read from these words."""
    program, command, *arguments = shlex.split(shlex.join(words))
    assert (program, command) == ("clipcheck", "check")
    context = CHECK.make_context("check", arguments)
    found = options.given(context, context.params)
    return {name: OPTIONS[name].plain(value) for name, value in found.items()}


def values_of(declared: Declared) -> st.SearchStrategy[Any]:
    """Values that are not the default."""
    if declared.kind is bool:
        return st.just(not declared.default)
    if declared.kind is int:
        return st.integers(min_value=declared.least)
    if declared.kind is float:
        return st.floats(min_value=0, allow_infinity=False)
    if declared.name == "isolation":
        return st.sampled_from(ISOLATIONS)
    # A path without parts that Python removes, such as "//".
    letters = st.sampled_from("a-=:,$'* ") if declared.path else st.characters(codec="utf-8")
    text = st.text(letters, min_size=1)
    return st.lists(text, min_size=1, max_size=3) if declared.several else text


ANY = st.fixed_dictionaries({}, optional={name: values_of(OPTIONS[name]) for name in OPTIONS})


@given(ANY)
def test_a_command_line_gives_the_options_that_it_was_made_of(values: dict[str, Any]) -> None:
    assert parse(["clipcheck", "check", "a.pt", *words_of(values)]) == values


def other_values(folder: Path) -> dict[str, Any]:
    """A value of each option that is not its default."""
    (folder / "photos").mkdir()
    (folder / "photos" / "a.png").write_bytes(b"")
    (folder / "labels.txt").write_text("a dog")
    return {
        "backend": ["trace", "compile:dynamic=auto"],
        "key": "model_ema",
        "reference": folder / "model.pt",
        "pinned": "model.pin",
        "architecture": "ViT-B/32",
        "map": "a=pixels",
        "require": ["dynamic-batch"],
        "device": ["cpu", "cuda:1"],
        "dtype": "float16",
        "examples": 0,
        "images": folder / "photos",
        "prompts": folder / "labels.txt",
        "exhaustive": True,
        "seed": 3,
        "atol": 1e-05,
        "rtol": 0.0,
        "budget": "cosine=0.9",
        "select": ["top1", "fidelity"],
        "ignore": "top1",
        "keep_outputs": "kept",
        "fail_fast": True,
        "cache": False,
        "isolation": "none",
        "download_root": "my files",
    }


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_of_a_check_is_in_the_command(name: str, tmp_path: Path) -> None:
    values = other_values(tmp_path)
    needed = {"images": values["images"]} if name == "examples" else {}
    asked = CheckOptions(**{**needed, name: values[name]}).asked
    assert set(asked) == {*needed, name}
    judgement = replace(PASSED, options=asked)
    assert parse(repeat(judgement)) == asked
    run = {"device": ["cpu"], "dtype": ["float32"], "backend": [PASSED.backend]}
    inputs = {"examples": CheckOptions.examples, "seed": CheckOptions.seed}
    assert parse(repeat_run(judgement)) == {**inputs, **asked, **run}


def test_options_that_are_defaults_are_in_no_command() -> None:
    assert CheckOptions().asked == {}
    assert repeat(PASSED) == ["clipcheck", "check", PASSED.path]


def test_a_run_that_ended_early_is_repeated_as_it_was_asked_for() -> None:
    asked = replace(UNJUDGED, device="default", dtype=None, options={"backend": ["jit", "trace"]})
    assert repeat_run(asked)[3:] == ["--backend", "jit", "--backend", "trace"]


def test_a_run_with_a_pin_has_its_inputs() -> None:
    pinned = PinnedTo("a.pin", "a.pt", "ab", "1", "2")
    words = repeat_run(replace(PASSED, pinned=pinned, options={"pinned": "a.pin"}))
    assert parse(words).keys() == {"pinned", "backend", "device", "dtype"}


def test_a_changed_option_is_in_the_command_and_none_is_the_default() -> None:
    judgement = replace(PASSED, options={"pinned": "a.pin", "seed": 3, "exhaustive": True})
    words = repeat(judgement, pinned=None, budget="int8")
    assert parse(words) == {"seed": 3, "exhaustive": True, "budget": "int8"}
