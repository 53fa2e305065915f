"""The options of a check are declared once: all that offer them take theirs from there."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any, get_args

import pytest
import typer

import clipcheck
from clipcheck.backends.sandboxes import ISOLATIONS
from clipcheck.cli import options
from clipcheck.cli.app import app
from clipcheck.errors import UsageError
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness import comparing, localising, pinning
from clipcheck.harness.configuration import KEYS
from clipcheck.harness.declarations import OPTIONS
from clipcheck.harness.options import CheckOptions
from clipcheck.plugin import offered
from clipcheck.sweep.catalogue import Entry

COMMANDS: dict[str, Any] = typer.main.get_group(app).commands  # type: ignore[assignment]

OWN_HELP = {("localize", "reference"), ("localize", "backend"), ("pin", "budget")}
"""Options that mean another thing for a command than for a check."""

NOT_OF_A_CHECK = {"audit", "backends", "convert", "demo", "synthesize"}
"""Commands whose seed, dtype, backend or architecture are not those of a check."""

IN_PYTHON = [clipcheck.check, comparing.compare, localising.localize, pinning.make_pin]


def of_commands() -> list[Any]:
    return [
        pytest.param(parameter, OPTIONS[parameter.name], id=f"{name} {parameter.name}")
        for name, command in COMMANDS.items()
        for parameter in command.params
        if parameter.name in OPTIONS
        and name not in NOT_OF_A_CHECK
        and (name, parameter.name) not in OWN_HELP
        and parameter.param_type_name == "option"
    ]


def test_a_check_takes_every_option() -> None:
    assert set(OPTIONS) == {each.name for each in dataclasses.fields(CheckOptions)}
    assert set(OPTIONS) <= {each.name for each in COMMANDS["check"].params}
    assert {each.name for each in KEYS.values()} == set(OPTIONS)


@pytest.mark.parametrize(("parameter", "declared"), of_commands())
def test_a_command_has_the_default_the_type_and_the_help_of_the_declaration(
    parameter: Any, declared: Any
) -> None:
    assert parameter.opts + parameter.secondary_opts == declared.flag.split("/")
    assert parameter.help.startswith(declared.help)
    assert parameter.metavar in (declared.metavar, None)
    # A default of another command is none, and its help says what it is.
    again = parameter.default is None and "Default: " in parameter.help
    assert parameter.default == declared.default or again


@pytest.mark.parametrize("name", offered.OF_A_CHECK)
def test_the_plugin_has_the_default_and_the_help_of_the_declaration(name: str) -> None:
    metavar, told = offered.OPTIONS[f"--clip-{name}"]
    assert metavar == OPTIONS[name].metavar
    assert told.startswith(OPTIONS[name].help)
    default = OPTIONS[name].default
    assert default is None or told.endswith(f" Default: {default}.")


@pytest.mark.parametrize("function", IN_PYTHON, ids=lambda each: each.__name__)
def test_a_function_has_the_defaults_of_the_declaration(function: Any) -> None:
    taken = inspect.signature(function).parameters
    found = {name: taken[name].default for name in OPTIONS if name in taken}
    found = {
        name: default for name, default in found.items() if default is not inspect.Parameter.empty
    }
    assert found == {name: OPTIONS[name].default for name in found}


def test_a_catalogue_has_a_field_for_each_option_of_a_checkpoint() -> None:
    names = {each.name.removesuffix("s") for each in dataclasses.fields(Entry)}
    found = {each.name.removesuffix("s") for each in OPTIONS.values() if each.of_checkpoint}
    assert found <= names


def test_choices_on_the_command_line_are_those_that_there_are() -> None:
    assert get_args(options.DtypeName) == tuple(LIMITS)
    assert get_args(options.IsolationName) == ISOLATIONS
    assert OPTIONS["isolation"].metavar == "|".join(ISOLATIONS)


@pytest.mark.parametrize("name", [each.name for each in OPTIONS.values() if each.least is not None])
def test_the_least_number_is_the_least_that_is_taken(name: str) -> None:
    least: Any = OPTIONS[name].least
    given: dict[str, Any] = {} if name != "examples" else {"prompts": __file__}
    assert getattr(CheckOptions(**given, **{name: least}), name) == least
    with pytest.raises(UsageError, match="expected"):
        CheckOptions(**given, **{name: least - 1})
    with pytest.raises(typer.BadParameter):
        COMMANDS["check"].make_context("check", ["a.pt", f"--{name}", str(least - 1)])


def test_the_docstring_has_every_option_in_words() -> None:
    told = inspect.getdoc(CheckOptions) or ""
    attributes, _, errors = told.partition("Attributes:\n")[2].partition("Raises:\n")
    assert re.findall(r"^    (\w+): [A-Zcdf]", attributes, re.MULTILINE) == list(OPTIONS)
    assert "    device: cpu, cuda, cuda:1 or mps. One or several. Default: the GPU" in attributes
    assert "UsageError: an option is invalid" in errors
