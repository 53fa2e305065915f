"""How an option of a check is declared, for the command line, the pytest plugin and a catalogue."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, fields
from typing import Any, Literal, TypeAlias

Group: TypeAlias = Literal["Model", "Running it", "Inputs and limits", "Gates", "Output"]
Value: TypeAlias = bool | int | float | str | list[str]


@dataclass(frozen=True, kw_only=True)
class Declared:
    """An option of a check.

    Attributes:
        name: of the field.
        kind: type of its value, or of each of several.
        several: whether it may be given more than once.
        default: None if that depends on the checkpoint or the machine.
        help: sentences.
        group: of the help that has it.
        metavar: stands for the value in a help.
        unset: the default in words, if ``default`` is None.
        path: whether it is a path, or may be one.
        least: smallest number, or None.
        of_checkpoint: whether a catalogue may give another value for each checkpoint.
    """

    name: str
    kind: type[bool | int | float | str]
    several: bool
    default: Any
    help: str
    group: Group
    metavar: str
    unset: str
    path: bool
    least: int | None
    of_checkpoint: bool

    @property
    def key(self) -> str:
        """Its name in a command line and a file."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        """Its name on the command line; for a switch that is on by default also the opposite."""
        switch = self.default is True
        return f"--{self.key}/--no-{self.key}" if switch else f"--{self.key}"

    def sentences(self, unset: str | None = None, again: str = "Repeatable.") -> str:
        """Return its help.

        Args:
            unset: the default in words, if it is another one here.
            again: what to say if it may be given more than once; empty if it may not here.
        """
        meant = self.unset if unset is None else unset
        parts = [self.help, again if self.several else "", f"Default: {meant}." if meant else ""]
        return " ".join(part for part in parts if part)

    def plain(self, value: Any) -> Value:
        """Return a value, which is not None, as JSON can hold it."""
        if self.several:
            single = isinstance(value, str) or not isinstance(value, Iterable)
            return [str(each) for each in ([value] if single else value)]
        return os.fspath(value) if isinstance(value, os.PathLike) else self.kind(value)

    def words(self, value: Value) -> list[str]:
        """Return the words of a command line that give this value."""
        off, on = self.flag.partition("/")[::2]
        if self.kind is bool:
            return [off if value else on]
        several = value if isinstance(value, list) else [value]
        return [word for each in several for word in (off, str(each))]


def about(
    help: str,
    *,
    group: Group,
    metavar: str = "",
    unset: str = "",
    path: bool = False,
    least: int | None = None,
    of_checkpoint: bool = False,
) -> dict[str, Any]:
    """Return metadata of a dataclass's field that declares an option, see `Declared`."""
    return dict(locals())


def declared_by(options: type) -> Mapping[str, Declared]:
    """Return the options that a dataclass declares, by name."""
    return {each.name: _declared(each) for each in fields(options)}


_KINDS: Mapping[str, type[bool | int | float]] = {"bool": bool, "int": int, "float": float}


def documented(options: type, declared: Iterable[Declared]) -> str:
    """Return the docstring of a dataclass with its options as attributes, before its errors."""
    before, raises, after = (options.__doc__ or "").partition("    Raises:")
    told = [f"        {each.name}: {each.sentences(again='One or several.')}" for each in declared]
    return "\n".join([f"{before}    Attributes:", *told, "", f"{raises}{after}"])


def either(names: Iterable[str]) -> str:
    """Return names as a sentence does: a, b or c."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _declared(each: Field[Any]) -> Declared:
    written = str(each.type)
    return Declared(
        name=each.name,
        kind=_KINDS.get(written, str),
        several="Sequence" in written,
        default=each.default,
        **each.metadata,
    )
