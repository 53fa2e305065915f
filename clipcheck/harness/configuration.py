"""Read the options of a check from ``[tool.clipcheck]`` of a ``pyproject.toml``.

The keys are the names of the command line, such as ``fail-fast``. Only the nearest file with this
table is read, from the working directory upwards.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipcheck.errors import ClipcheckError, UsageError, nearest
from clipcheck.harness.declarations import OPTIONS
from clipcheck.harness.options import CheckOptions
from clipcheck.results.configuration import Configuration

FILE = "pyproject.toml"
_TABLE = "[tool.clipcheck]"

_TYPES: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    str | list[str]: "a string or a list of strings",
}
"""The names of types in messages."""

KEYS = {each.key: each for each in OPTIONS.values()}
"""The keys of the table: all options of a check."""


def read_configuration(start: Path) -> Configuration:
    """Return the options in the nearest file upwards; none if no file has the table.

    Args:
        start: folder to begin with.

    Raises:
        UsageError: a file is not TOML, or an option in it is invalid; the message names the file
            and the key.
    """
    for folder in (start.absolute(), *start.absolute().parents):
        path = folder / FILE
        if path.is_file():
            tools = _parse(path).get("tool", {})
            if isinstance(tools, dict) and "clipcheck" in tools:
                return _validated(path, tools["clipcheck"])
    return Configuration()


def options_of(configuration: Configuration, given: Mapping[str, Any]) -> CheckOptions:
    """Return the options of a check: the given ones, and for the others those of the file.

    Args:
        configuration: of `read_configuration`.
        given: by field of `CheckOptions`.

    Raises:
        ClipcheckError: the combination is invalid.
    """
    folder = Path(configuration.file).parent
    fields = {
        KEYS[key].name: _from_folder(folder, value) if KEYS[key].path else value
        for key, value in configuration.options.items()
    }
    return CheckOptions(**{**fields, **given})


def without_overruled(configuration: Configuration, given: Mapping[str, Any]) -> Configuration:
    """Return the configuration without the options that the caller gave."""
    options = {k: v for k, v in configuration.options.items() if KEYS[k].name not in given}
    return replace(configuration, options=options)


def _from_folder(folder: Path, value: str) -> str:
    """Return the path if the file exists, else the value as it is, such as a released name."""
    path = folder / value
    return str(path) if path.exists() else value


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"expected a file in TOML, found one that cannot be read ({error})",
            remedy="Fix the file, or run clipcheck in another folder.",
            path=path,
        ) from error


def _validated(path: Path, table: object) -> Configuration:
    if not isinstance(table, dict):
        raise UsageError(
            f"expected tool.clipcheck to be a table, found {table!r}",
            remedy=f"Write {_TABLE}, and an option on each line after it.",
            path=path,
        )
    for key, value in table.items():
        _require_option(path, key, value)
    configuration = Configuration(str(path), table)
    own = {key: table[key] for key in ("images", "prompts") if key in table}
    for key in (*own, *(key for key in table if key not in own)):
        try:
            # With these, as some options need them.
            options_of(replace(configuration, options={**own, key: table[key]}), {})
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
    from clipcheck.results.document import convert_to

    kind: Any = str | list[str] if KEYS[key].several else KEYS[key].kind
    words = _TYPES[kind]
    try:
        convert_to(value, kind)
    except ValueError as error:
        raise UsageError(
            f"expected {key} in {_TABLE} to be {words}, found {value!r}",
            remedy=f"Write {words}, or leave it out for the default.",
            path=path,
        ) from error
    if key == "isolation" and value == "none":
        # The file may come from the author of the checkpoint, and must not turn the sandbox off.
        raise UsageError(
            f"expected isolation in {_TABLE} to be 'process', found 'none': only the command line "
            "can turn the sandbox off",
            remedy="Use the command line: --isolation none.",
            path=path,
        )
