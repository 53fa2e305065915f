"""Write and read a result as JSON, by ``schema/results-1.json`` in this folder.

The classes of `clipcheck.results.judgement` are written field by field, and read back.
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
        schema: version of the schema.
        passed: whether something was judged, and all of it passed.
        clipcheck: version that wrote it.
        environment: versions and the machine.
        configuration: options that came from a file, or None.
        results: of each run.
        left_out: backends that did not run, of those requested by ``all``.
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
    """Render the JSON document. Ends with a newline."""
    return to_json(document_of(result))


def document_of(result: Result) -> Document:
    """Return the document of a result: everything but plots and pictures."""
    return Document(
        passed=result.passed,
        clipcheck=result.environment["clipcheck"],
        environment=result.environment,
        configuration=result.configuration if result.configuration.options else None,
        results=tuple(as_record(each) for each in result.judgements),
        left_out=result.left_out,
    )


def as_record(
    record: Record,
    kind: type[_Record] = Record,  # type: ignore[assignment]
    **more: Any,
) -> _Record:
    """Copy a record to another class of records, which may have more fields."""
    return kind(**{f.name: getattr(record, f.name) for f in fields(Record) if f.init}, **more)


def result_of(document: Document) -> Result:
    """Return the result that a document describes."""
    judgements = tuple(as_record(each, Judgement) for each in document.results)
    configuration = document.configuration or Configuration()
    return Result(judgements, document.environment, document.left_out, configuration)


def to_json(document: object, indent: int | None = 2) -> str:
    """Write JSON that ends with a newline; NaN and infinities become null."""
    plain = msgspec.to_builtins(document, enc_hook=lambda number: number.item())  # numpy's
    return json.dumps(writable(plain), indent=indent, allow_nan=False) + "\n"


def writable(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: writable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [writable(item) for item in value]
    return value


def read(data: bytes | str) -> Document:
    """Read a document that `render` wrote.

    Raises:
        ValueError: it is cut off, has another schema, or is no such document.
    """
    plain = parse_json(data)
    if isinstance(plain, dict) and plain.get("schema", SCHEMA) != SCHEMA:
        schema = reprlib.repr(plain["schema"])
        raise ValueError(f"it has schema {schema}; this clipcheck reads schema {SCHEMA}")
    # The classes have defaults, so msgspec accepts missing fields.
    _require_fields(plain, contract())
    document = convert_to(plain, Document)
    if not document.results:
        raise ValueError("it has no results")
    for number, record in enumerate(document.results):
        for gate in record.gates:
            if gate.margin < 0:
                place = f"results[{number}], {gate.name}"
                raise ValueError(f"{place}: a margin is at least 0, found {gate.margin:g}")
    return document


@cache
def contract() -> Any:
    """Return the JSON Schema of the document."""
    text = files("clipcheck.results").joinpath(f"schema/results-{SCHEMA}.json").read_text("utf-8")
    return json.loads(text)


def parse_json(data: bytes | str) -> Any:
    """Parse JSON; null becomes infinity in the figures of a gate or place.

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


def convert_to(plain: Any, kind: type[_Read]) -> _Read:
    """Convert parsed JSON to a class.

    Raises:
        ValueError: a field is missing or has the wrong type.
    """
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        raise ValueError(_in_words(str(error))) from error


def _require_fields(value: Any, schema: Any, place: str = "") -> None:
    """Raise if a field is missing that the schema requires."""
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
    """Read an integer; one that is too large for a float becomes infinite."""
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
    """Reword an error of msgspec such as ``Expected `str`, got `int` - at `$.a[0].b` ``."""
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
