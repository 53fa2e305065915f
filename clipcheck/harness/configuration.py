"""Read the options of a check from ``[tool.clipcheck]`` of a ``pyproject.toml``.

The keys are the names of the command line, such as ``fail-fast``. The nearest file upwards from the
working directory that has the table is read, and no other.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from clipcheck.errors import ClipcheckError, UsageError, nearest
from clipcheck.harness.options import CheckOptions
from clipcheck.results.configuration import Configuration

FILE = "pyproject.toml"
_TABLE = "[tool.clipcheck]"

_TYPES: Mapping[str, tuple[str, Any]] = {
    "int": ("a whole number", int),
    "float": ("a number", float),
    "bool": ("true or false", bool),
}
"""By annotation of a field, how its type is called in messages, and the type. Others are strings,
and may be lists where a field takes a sequence."""


def _type_of(annotation: str) -> tuple[str, Any]:
    several = ("a string or a list of strings", str | list[str])
    return _TYPES.get(annotation, several if "Sequence" in annotation else ("a string", str))


KEYS = {each.name.replace("_", "-"): _type_of(str(each.type)) for each in fields(CheckOptions)}
"""The keys of the table, and the type of each value. They are the fields of `CheckOptions`."""

_PATHS = ("reference", "architecture", "download-root")
"""Values that may be paths. These start from the folder of the file."""


def read_configuration(start: Path) -> Configuration:
    """Return the options in the nearest file upwards; none where no file has the table.

    Args:
        start: the folder to begin with.

    Raises:
        UsageError: a file is no TOML, or an option in it makes no sense; the message names the
            file and the key.
    """
    for folder in (start.absolute(), *start.absolute().parents):
        path = folder / FILE
        if path.is_file():
            tools = _parsed(path).get("tool", {})
            if isinstance(tools, dict) and "clipcheck" in tools:
                return _checked(path, tools["clipcheck"])
    return Configuration()


def options_of(configuration: Configuration, given: Mapping[str, Any]) -> CheckOptions:
    """Return the options of a check: those that were given, else those of the file.

    Args:
        configuration: of `read_configuration`.
        given: by field of `CheckOptions`.

    Raises:
        ClipcheckError: they make no sense together.
    """
    folder = Path(configuration.file).parent
    fields = {
        _field(key): _from_folder(folder, value) if key in _PATHS else value
        for key, value in configuration.options.items()
    }
    return CheckOptions(**{**fields, **given})


def without_overruled(configuration: Configuration, given: Mapping[str, Any]) -> Configuration:
    """Return what is left to be taken from the file where these fields were given."""
    options = {k: v for k, v in configuration.options.items() if _field(k) not in given}
    return replace(configuration, options=options)


def _field(key: str) -> str:
    return key.replace("-", "_")


def _from_folder(folder: Path, value: str) -> str:
    """Return the path of a file that is there, and other values as they are: released names."""
    path = folder / value
    return str(path) if path.exists() else value


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"expected a file in TOML, found that it cannot be read ({error})",
            remedy="Mend it, or run clipcheck in another folder.",
            path=path,
        ) from error


def _checked(path: Path, table: object) -> Configuration:
    if not isinstance(table, dict):
        raise UsageError(
            f"expected tool.clipcheck to be a table, found {table!r}",
            remedy=f"Write {_TABLE}, and an option on each line after it.",
            path=path,
        )
    for key, value in table.items():
        _require_option(path, key, value)
    configuration = Configuration(str(path), table)
    for key in table:
        try:
            options_of(replace(configuration, options={key: table[key]}), {})
        except ClipcheckError as error:
            problem = f"{key} in {_TABLE}: {error.problem.removeprefix(f'--{key}: ')}"
            raise type(error)(problem, remedy=error.remedy, path=path) from error
    return configuration


def _require_option(path: Path, key: str, value: object) -> None:
    if key not in KEYS:
        raise UsageError(
            f"expected an option of `clipcheck check` in {_TABLE}, found {key!r}",
            remedy=f"{nearest(key, KEYS)}; all of them: {', '.join(KEYS)}.",
            path=path,
        )
    # Imported here because it imports numpy, which other commands do not need.
    from clipcheck.results.document import converted

    words, kind = KEYS[key]
    try:
        converted(value, kind)
    except ValueError as error:
        raise UsageError(
            f"expected {key} in {_TABLE} to be {words}, found {value!r}",
            remedy="Write it so, or leave it out for the default.",
            path=path,
        ) from error
    if key == "isolation" and value == "none":
        # The file may have come with the checkpoint, and must not decide that it is trusted.
        raise UsageError(
            f"expected isolation in {_TABLE} to be 'process', found 'none': a file cannot say that "
            "checkpoints are trusted",
            remedy="Say it on the command line: --isolation none.",
            path=path,
        )
