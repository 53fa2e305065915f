"""Layout of the help of the command and its subcommands."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

import clipcheck
from clipcheck.cli.app import app
from conftest import Run

COMMANDS = typer.main.get_group(app).commands
FOLDER = Path(clipcheck.__file__).parent / "cli"


def test_each_command_has_a_file_and_none_is_long() -> None:
    lines = {path.stem: len(path.read_text().splitlines()) for path in FOLDER.glob("*.py")}
    assert COMMANDS.keys() <= lines.keys()
    assert {name: count for name, count in lines.items() if count > 150} == {}


def test_the_help_lists_each_command_in_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = run("--help").out
    for name, command in COMMANDS.items():
        summary = (command.help or "").split("\n\n")[0].replace("\n", " ")
        assert 20 < len(summary) <= 60
        assert f" {name}{' ' * (12 - len(name))}{summary} " in out
    assert "0 consistent, 1 inconsistent, 2 could not be judged" in out


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_h_is_the_help_everywhere(run: Run, name: str) -> None:
    done = run(*name.split(), "-h")
    assert done.code == 0
    assert done.out == run(*name.split(), "--help").out
    assert "Usage: " in done.out


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("check", "CHECKPOINT..."),
        ("convert", "CHECKPOINT"),
        ("diff", "OLD.json NEW.json"),
        ("sweep", "[CATALOGUE]"),
    ],
)
def test_the_usage_names_the_arguments(run: Run, name: str, arguments: str) -> None:
    assert f" {name} [OPTIONS] {arguments} " in run(name, "-h").out


@pytest.mark.parametrize("name", ["check", "convert", "sweep"])
def test_there_are_examples_that_the_command_takes(run: Run, name: str) -> None:
    _, _, told = run(name, "-h").out.partition("Examples:")
    examples = [line.split() for line in told.strip().splitlines()]
    assert len(examples) >= 3
    for program, command, *arguments in examples:
        assert (program, command) == ("clipcheck", name)
        COMMANDS[name].make_context(name, arguments)


def test_options_are_in_groups(run: Run) -> None:
    out = run("check", "-h").out
    groups = ["Model", "Running it", "Inputs and limits", "Output"]
    places = [out.index(f"─ {group} ─") for group in groups]
    assert places == sorted(places)
    inputs = out[places[2] : places[3]]
    assert all(option in inputs for option in ("--examples", "--seed", "--atol", "--rtol"))


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("ch", ["check"]),
        ("explain fid", ["fidelity"]),
        ("check x.pt --ignore re", ["repeatability"]),
    ],
)
def test_a_shell_can_complete_commands_and_gates(
    run: Run, monkeypatch: pytest.MonkeyPatch, typed: str, completed: list[str]
) -> None:
    assert "--show-completion" in run("-h").out
    monkeypatch.setenv("_CLIPCHECK_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"clipcheck {typed}")
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split())))
    assert run().out.split() == completed
