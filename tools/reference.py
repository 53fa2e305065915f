"""Write the reference pages of the documentation from the code, as Markdown.

`docs/conf.py` puts each part where a page has ``<!-- generated: NAME -->``, or with an argument
``<!-- generated: NAME ARGUMENT -->``.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import clipcheck

if TYPE_CHECKING:
    from clipcheck.gates.registry import Gate

SCHEMA = Path(clipcheck.__file__).parent / "results" / "schema" / "results-1.json"

_PLACE = re.compile(r"^<!-- generated: ([\w-]+) ?(.*?) -->$", re.MULTILINE)


def fill(text: str) -> str:
    """Put the generated parts into a page.

    Raises:
        KeyError: no part has the name that the page asks for.
    """
    return _PLACE.sub(lambda found: PARTS[found[1]](*found[2].split()), text)


def command_line() -> str:
    """List every command with its usage, arguments and options."""
    from clipcheck.cli.app import app

    group: Any = typer.main.get_command(app)
    root = typer.Context(group, info_name="clipcheck")
    told = [_command(group, root, "clipcheck")]
    for name, command in sorted(group.commands.items()):
        if not command.hidden:
            context = typer.Context(command, info_name=name, parent=root)
            told.append(_command(command, context, name))
    return "\n\n".join(told)


def _command(command: Any, context: typer.Context, heading: str) -> str:
    usage = command.get_usage(context).removeprefix("Usage: ")
    told = [
        f"## {heading}",
        f"```text\n{usage}\n```",
        _escaped(inspect.cleandoc(command.help or "")),
    ]
    # Parameters without a group first, such as arguments.
    groups: dict[str, list[str]] = {"": []}
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            panel = getattr(parameter, "rich_help_panel", None) or ""
            groups.setdefault(panel, []).append(_definition(*record))
    for panel, several in groups.items():
        told += [f"**{panel}**", *several] if panel else several
    return "\n\n".join([*told, *_epilog(command.epilog or "")])


def _epilog(text: str) -> list[str]:
    if "\n" in text:  # examples, line by line
        return [f"```text\n{text}\n```"]
    return [_escaped(text)] if text else []


def pytest_options() -> str:
    """List the options that the pytest plugin adds."""
    from clipcheck.plugin.offered import FLAGS, OPTIONS

    told = [_definition(f"{name} {value}", text) for name, (value, text) in OPTIONS.items()]
    told += [_definition(name, text) for name, text in FLAGS.items()]
    return "\n\n".join(told)


def fixtures() -> str:
    """List the fixtures that the pytest plugin gives to tests."""
    from clipcheck.plugin import hooks

    found = {name: each for name, each in vars(hooks).items() if name.startswith("clip_")}
    return "\n\n".join(
        _definition(name, inspect.getdoc(each) or "") for name, each in found.items()
    )


def backends() -> str:
    """List the backends with their options."""
    from clipcheck.backends.registry import listing

    rows = []
    for each in listing():
        options = [
            f"`{name}={option.default}`: {_escaped(option.meaning)}"
            + (f" (one of {', '.join(option.values)})" if option.values else "")
            for name, option in each.options.items()
        ]
        rows.append((f"`{each.name}`", _escaped(each.summary), "<br>".join(options)))
    return _table(("backend", "what it runs", "options with their defaults"), rows)


def gates() -> str:
    """List the gates, with links to their pages."""
    from clipcheck.gates.registry import GATES

    rows = [
        (f"[{each.name}]({each.name}.md)", _escaped(each.title), _judges(each)) for each in GATES
    ]
    return _table(("gate", "in short", "judges"), rows)


def gate(name: str) -> str:
    """Describe a gate as `clipcheck explain` does."""
    from clipcheck.gates.registry import GATES

    (found,) = (each for each in GATES if each.name == name)
    parts = {
        "Judges": _judges(found),
        "Passes when": found.passes_when,
        "Why, and what its limit is based on": found.explanation,
        "If it fails": found.remedy,
    }
    told = [f"## {heading}\n\n{_escaped(text)}" for heading, text in parts.items()]
    return "\n\n".join([f"**{_escaped(found.title)}**", *told])


def _judges(gate: Gate) -> str:
    what = ["with --reference"] if gate.needs_reference else []
    what += ["with --budget"] if gate.needs_budget else []
    what += ["archives"] if gate.needs_modules else []
    return ", ".join([*what, *gate.dtypes])


def limits() -> str:
    """Show every limit of the gates, by dtype."""
    from clipcheck.gates.tolerances import LIMITS, Limits

    names = [field.name for field in fields(Limits) if field.name != "unit"]  # for messages
    rows = [
        (f"`{name}`", *(_number(getattr(each, name)) for each in LIMITS.values())) for name in names
    ]
    return _table(("limit", *LIMITS), rows)


def schema() -> str:
    """Show the fields of the result document, from its JSON Schema."""
    document = json.loads(SCHEMA.read_text("utf-8"))
    named = document["$defs"]
    told = [_fields("The document", document, named)]
    told += [_fields(name, part, named) for name, part in named.items() if "properties" in part]
    return "\n\n".join(told)


def _fields(heading: str, part: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    rows = [
        (f"`{path}`", _type(each, named), "yes" if always else "", _escaped(_about(each)))
        for path, each, always in _flat(part)
    ]
    about = [_escaped(part["description"])] if "description" in part else []
    table = _table(("field", "type", "always there", "about"), rows)
    return "\n\n".join([f"## {heading}", *about, table])


def _flat(part: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Yield each field, whether it is always there, and then the fields inside it."""
    for name, each in part.get("properties", {}).items():
        path = f"{above}{name}"
        yield path, each, name in part.get("required", ())
        yield from _flat(each, f"{path}.")
        yield from _flat(each.get("items", {}), f"{path}[].")
        values = each.get("additionalProperties")
        yield from _flat(values if isinstance(values, dict) else {}, f"{path}.*.")


def _type(field: Mapping[str, Any], named: Mapping[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name})" if "properties" in named[name] else _type(named[name], named)
    if "const" in field:
        return f"always `{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{each}`" for each in field["enum"])
    if "oneOf" in field:
        return " or ".join(_type(each, named) for each in field["oneOf"])
    if field.get("type") == "array" and "items" in field:
        return f"list of {_type(field['items'], named)}"
    types = field.get("type", "any")
    return " or ".join([types] if isinstance(types, str) else types)


def _about(field: Mapping[str, Any]) -> str:
    told: str = field.get("description", "")
    return told


def _definition(term: str, text: str) -> str:
    """Write an entry of a definition list."""
    return f"`{' '.join(term.split())}`\n: {_escaped(' '.join(text.split()))}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(head), *(tuple(row) for row in rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """Escape text for Markdown, except inside backticks."""
    parts = text.replace("``", "`").split("`")
    parts[::2] = [re.sub(r"([\\*_<>|\[\]])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [part.replace("|", r"\|") for part in parts[1::2]]
    return "`".join(parts)


def _number(value: float) -> str:
    return f"2^{value.hex().rpartition('p')[2]}" if 0 < value < 1e-2 else f"{value:g}"


PARTS: Mapping[str, Callable[..., str]] = {
    "command-line": command_line,
    "pytest-options": pytest_options,
    "fixtures": fixtures,
    "backends": backends,
    "gates": gates,
    "gate": gate,
    "limits": limits,
    "schema": schema,
}
"""The parts that a page can ask for, by name."""
