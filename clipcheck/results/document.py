"""A result as JSON, schema 1, which ``schema/results-1.json`` beside this file describes.

The classes of `clipcheck.results.judgement` are the document: what they hold is written field by
field, and read back into them.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any, NoReturn, TypeVar

import msgspec

from clipcheck.results.configuration import Configuration
from clipcheck.results.judgement import Judgement, LeftOut, Record, Result

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Document:
    """Document that `clipcheck check --json` writes.

    Attributes:
        schema: the version of the schema.
        passed: whether something was judged, and all of it passed.
        clipcheck: the version that wrote it.
        environment: versions and the machine.
        configuration: the options that came from a file; None where none did.
        results: of each run.
        left_out: what was not run, of all that might have been.
    """

    schema: int = SCHEMA
    passed: bool
    clipcheck: str
    environment: Mapping[str, str]
    configuration: Configuration | None = None
    results: tuple[Record, ...]
    left_out: tuple[LeftOut, ...] = ()


_Read = TypeVar("_Read")
_Record = TypeVar("_Record", bound=Record)

_NAMES = {
    "object": "an object",
    "array": "a list",
    "str": "a text",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
}


def render(result: Result) -> str:
    """The document, with a newline at its end."""
    return to_json(document_of(result))


def document_of(result: Result) -> Document:
    """Return what is written of a result: all but its plots and pictures."""
    return Document(
        passed=result.passed,
        clipcheck=result.environment["clipcheck"],
        environment=result.environment,
        configuration=result.configuration if result.configuration.options else None,
        results=tuple(recorded(each) for each in result.judgements),
        left_out=result.left_out,
    )


def recorded(
    record: Record,
    kind: type[_Record] = Record,  # type: ignore[assignment]
    **more: Any,
) -> _Record:
    """Return the fields of a record alone, as another kind of one that may have more."""
    return kind(**{f.name: getattr(record, f.name) for f in fields(Record) if f.init}, **more)


def result_of(document: Document) -> Result:
    """Return the result that a document tells of."""
    judgements = tuple(recorded(each, Judgement) for each in document.results)
    configuration = document.configuration or Configuration()
    return Result(judgements, document.environment, document.left_out, configuration)


def to_json(document: object, indent: int | None = 2) -> str:
    """JSON with a newline at its end.

    Numbers that JSON cannot write, NaN and infinities, become null.
    """
    plain = msgspec.to_builtins(document, enc_hook=lambda number: number.item())  # numpy's
    return json.dumps(writable(plain), indent=indent, allow_nan=False) + "\n"


def writable(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: writable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [writable(item) for item in value]
    return value


def read(data: bytes | str) -> Document:
    """Read what `render` wrote.

    Raises:
        ValueError: it is cut off, of another schema, or no such document.
    """
    plain = parsed(data)
    if isinstance(plain, dict) and plain.get("schema", SCHEMA) != SCHEMA:
        schema = reprlib.repr(plain["schema"])
        raise ValueError(f"it is of schema {schema}; this clipcheck reads schema {SCHEMA}")
    # The classes have defaults, so that a result can be made bit by bit.
    _require_fields(plain, contract())
    document = converted(plain, Document)
    if not document.results:
        raise ValueError("there are no results in it")
    for number, record in enumerate(document.results):
        for gate in record.gates:
            if gate.margin < 0:
                place = f"results[{number}], {gate.name}"
                raise ValueError(f"{place}: {gate.margin:g} is no margin, which is at least 0")
    return document


@cache
def contract() -> Any:
    """Return the JSON Schema of the document."""
    text = files("clipcheck.results").joinpath(f"schema/results-{SCHEMA}.json").read_text("utf-8")
    return json.loads(text)


def parsed(data: bytes | str) -> Any:
    """Parse JSON, with infinity in place of null where a number of a gate or place is meant.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(
            data,
            parse_int=_number,
            parse_constant=_not_a_number,
            object_pairs_hook=_object,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"it is no JSON, or cut off ({error})") from error


def converted(plain: Any, kind: type[_Read]) -> _Read:
    """Convert what was parsed to a class.

    Raises:
        ValueError: a field is missing, or not of the type that the class says.
    """
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        raise ValueError(_in_words(str(error))) from error


def _require_fields(value: Any, schema: Any, place: str = "") -> None:
    """See that all is there that a part of the schema says is always there."""
    for part in schema.get("oneOf", [schema]):
        if "$ref" in part:
            part = contract()["$defs"][part["$ref"].rpartition("/")[2]]
        if isinstance(value, dict):
            for name in part.get("required", ()):
                if name not in value:
                    raise ValueError(f"the field {place}{name} is missing")
            for name in part.get("properties", {}).keys() & value.keys():
                _require_fields(value[name], part["properties"][name], f"{place}{name}.")
        elif isinstance(value, list):
            for number, item in enumerate(value):
                _require_fields(item, part.get("items", {}), f"{place[:-1]}[{number}].")


def _number(digits: str) -> int | float:
    """Read a number. One that no float holds is beyond any limit, and no count of anything."""
    return int(digits) if len(digits) < 300 else float(digits)


def _not_a_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number that JSON has")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the field {name!r} is there twice")
    return _unbounded(found) if {"margin", "rmse_ratio"} & found.keys() else found


def _unbounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unbounded(item) for key, item in value.items()}
    return math.inf if value is None else value


def _in_words(error: str) -> str:
    """Say in words what msgspec says in types: ``Expected `str`, got `int` - at `$.a[0].b` ``."""
    what, _, place = error.partition(" - at ")
    place = place.strip("`").removeprefix("$").removeprefix(".")
    if missing := re.fullmatch("Object missing required field `(.*)`", what):
        return f"the field {'.'.join(filter(None, (place, missing[1])))} is missing"
    if types := re.fullmatch("Expected `(.*)`, got `(.*)`", what):
        expected, found = (_types(each.split(" | ")) for each in types.groups())
        return f"{place or 'it'} is {found} in place of {expected}"
    return f"{place or 'it'} is wrong: {what}"


def _types(names: Iterable[str]) -> str:
    return " or ".join(_NAMES.get(name, name) for name in names)
