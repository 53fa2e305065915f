from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pytest
import typer

import clipcheck.cli.app
from clipcheck.gates.registry import NAMES
from tools import reference

DOCS = Path(reference.__file__).parents[1] / "docs"


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """Return a command line to use in place of ours."""
    app = typer.Typer(rich_markup_mode=None, help="Weigh and measure.")
    monkeypatch.setattr(clipcheck.cli.app, "app", app)
    app.command(hidden=True)(lambda: None)
    return app


def test_a_command_is_shown_with_its_usage_and_options(app: typer.Typer) -> None:
    @app.command(epilog="An end.")
    def weigh(
        file: Annotated[str, typer.Argument(metavar="FILE", help="A file_of_names.")],
        unit: Annotated[str, typer.Option(metavar="UNIT", help="As `kg_*`; <g> | *t*.")] = "kg",
    ) -> None:
        """Weigh a file."""

    told = reference.command_line().partition("## weigh\n\n")[2]
    assert told.startswith("```text\nclipcheck weigh [OPTIONS] ")
    assert "FILE" in told.splitlines()[1]
    assert "\n```\n\nWeigh a file.\n\n`FILE" in told
    assert r": A file\_of\_names." in told
    assert "`--unit UNIT`\n: As `kg_*`; \\<g\\> \\| \\*t\\*. \\[default: kg\\]" in told
    assert told.endswith("\n\nAn end.")


def test_examples_are_shown_line_by_line(app: typer.Typer) -> None:
    app.command(name="seen", epilog="Examples:\n\n  clipcheck *.pt\n  clipcheck a.pt")(lambda: None)
    block = "```text\nExamples:\n\n  clipcheck *.pt\n  clipcheck a.pt\n```"
    assert reference.command_line().endswith(f"\n\n{block}")


def test_options_stand_below_the_name_of_their_group(app: typer.Typer) -> None:
    @app.command()
    def weigh(
        one: Annotated[bool, typer.Option("--one", rich_help_panel="Last")] = False,
        two: Annotated[bool, typer.Option("--two", rich_help_panel="First")] = False,
    ) -> None:
        """Weigh a file."""

    told = reference.command_line()
    order = ["## weigh", "**Last**", "`--one`", "**First**", "`--two`"]
    assert sorted(order, key=told.rindex) == order


def test_a_hidden_command_is_not_shown(app: typer.Typer) -> None:
    app.command(name="seen")(lambda: None)
    told = reference.command_line()
    assert [line for line in told.splitlines() if line.startswith("## ")] == [
        "## clipcheck",
        "## seen",
    ]


def test_every_command_and_option_is_shown() -> None:
    told = reference.command_line()
    commands = typer.main.get_command(clipcheck.cli.app.app).commands
    assert len(commands) > 10
    for name, command in commands.items():
        section = told.partition(f"## {name}\n")[2].partition("\n## ")[0]
        options = [each.opts[0] for each in command.params if each.opts[0].startswith("-")]
        assert [option for option in options if option not in section] == []


def test_a_field_of_the_schema_is_shown_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = {"type": ["string", "null"]}
    inner = {"type": "object", "required": ["b"], "properties": {"b": {"$ref": "#/$defs/text"}}}
    document = {
        "properties": {
            "a": {"type": "array", "items": inner, "description": "All_of it."},
            "c": {"type": "object", "additionalProperties": inner},
            "d": {"oneOf": [{"type": "null"}, {"$ref": "#/$defs/place"}]},
            "e": {"enum": ["x", "y"]},
            "f": {"const": 1},
        },
        "required": ["a"],
        "$defs": {"text": text, "place": {"properties": {"g": {"type": "integer"}}}},
    }
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(document))
    monkeypatch.setattr(reference, "SCHEMA", path)
    rows = [line for line in reference.schema().splitlines() if line.startswith("| `")]
    assert rows == [
        r"| `a` | list of object | yes | All\_of it. |",
        "| `a[].b` | string or null | yes |  |",
        "| `c` | object |  |  |",
        "| `c.*.b` | string or null | yes |  |",
        "| `d` | null or [place](#place) |  |  |",
        "| `e` | `x` or `y` |  |  |",
        "| `f` | always `1` |  |  |",
        "| `g` | integer |  |  |",
    ]


def test_the_limits_are_those_that_gates_compare_with() -> None:
    assert "| `cap` | 64 | 8 | 8 |" in reference.limits()
    assert "| `roundoff` | 2^-24 | 2^-11 | 2^-8 |" in reference.limits()


def test_an_option_of_the_plugin_says_whether_it_may_be_repeated() -> None:
    told = dict(each.split("\n: ") for each in reference.pytest_options().split("\n\n"))
    assert told["`--clip-model M`"].endswith("Repeatable.")
    assert not told["`--clip-seed N`"].endswith("Repeatable.")
    assert "`--clip-seeded`" in told


def test_a_fixture_is_shown_with_what_it_gives() -> None:
    assert "`clip_reference`\n: The eager model, numpy in and out." in reference.fixtures()


def test_a_backend_is_shown_with_its_options() -> None:
    (row,) = (line for line in reference.backends().splitlines() if "`transformers`" in line)
    assert "`attention=sdpa`: " in row
    assert "(one of sdpa, eager)" in row


def test_a_part_is_put_where_the_page_has_its_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "PARTS", {"one-part": lambda: "It."})
    assert reference.fill("a\n<!-- generated: one-part -->\nb") == "a\nIt.\nb"


def test_an_argument_of_a_part_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "PARTS", {"part": str.upper})
    assert reference.fill("<!-- generated: part it -->") == "IT"


def test_a_part_that_there_is_not_is_an_error() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        reference.fill("<!-- generated: nonsense -->")


def test_every_part_has_its_place_in_a_page() -> None:
    pages = "\n".join(page.read_text("utf-8") for page in DOCS.rglob("*.md"))
    assert [name for name in reference.PARTS if f"<!-- generated: {name}" not in pages] == []


def test_a_gate_is_shown_with_the_text_of_explain() -> None:
    told = reference.gate("modules")
    assert told.startswith("**Each module as close to float64 as the eager one.**\n\n## Judges\n\n")
    assert "\n\narchives, float32\n\n" in told
    assert [heading for heading in told.splitlines() if heading.startswith("## ")] == [
        "## Judges",
        "## Passes when",
        "## Why, and what its limit is based on",
        "## If it fails",
    ]


def test_every_gate_has_its_page_and_its_line() -> None:
    for name in NAMES:
        page = (DOCS / "reference" / "gates" / f"{name}.md").read_text("utf-8")
        assert page.startswith(f"# {name}\n\n<!-- generated: gate {name} -->\n")
        assert f"| [{name}]({name}.md) |" in reference.gates()
