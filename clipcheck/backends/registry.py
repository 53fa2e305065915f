"""The names of all backends, and how one is chosen: ``NAME`` or ``NAME:OPTION=VALUE,...``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import cast

from clipcheck.backends.base import Missing, Option
from clipcheck.backends.source import Way
from clipcheck.errors import UnavailableError, UsageError, nearest

BACKENDS = (
    "jit",
    "eager",
    "trace",
    "script",
    "compile",
    "export",
    "aotinductor",
    "onnxruntime",
    "open_clip",
    "transformers",
    "clip",
)
"""All, in the order in which they are run and told of: each is a file beside this one."""

ALL = "all"
"""Stands for every backend that fits."""


_LISTED = "`clipcheck backends` lists all."


@dataclass(frozen=True)
class Choice:
    """A backend and its options.

    Attributes:
        name: of `BACKENDS`.
        options: those that were given, with their values.
        optional: whether it was not named, and may be left out where it does not fit.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False

    def __str__(self) -> str:
        given = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}:{given}" if given else self.name

    @property
    def settings(self) -> dict[str, str]:
        """One value for each option that there is."""
        known = way(self.name).OPTIONS
        return {key: self.options.get(key, option.default) for key, option in known.items()}


@dataclass(frozen=True)
class Listed:
    """A backend, as it is on this machine.

    Attributes:
        name: of `BACKENDS`.
        summary: what it is, in a line.
        options: what can be chosen, by name.
        version: of the library that runs it; nothing where it cannot run.
        missing: why it cannot run, or None.
    """

    name: str
    summary: str
    options: Mapping[str, Option]
    version: str
    missing: Missing | None


def listing() -> list[Listed]:
    """All backends, in the order of `BACKENDS`."""
    return [_listed(name) for name in BACKENDS]


def _listed(name: str) -> Listed:
    found = way(name)
    missing = found.available()
    version = found.version() if missing is None else ""
    return Listed(name, found.SUMMARY, found.OPTIONS, version, missing)


@cache
def way(name: str) -> Way:
    """The backend's file, imported."""
    return cast(Way, importlib.import_module(f"clipcheck.backends.{name}"))


def parse(written: str) -> Choice:
    """Read what was written for ``--backend``, but for ``all``.

    Raises:
        UsageError: there is no such backend, option or value; the message names what there is.
    """
    name, _, rest = written.partition(":")
    if name not in BACKENDS:
        raise UsageError(
            f"expected a backend, found {name!r}",
            remedy=f"{nearest(name, (*BACKENDS, ALL))}; all of them: {', '.join(BACKENDS)}.",
        )
    options = dict(_pair(name, each) for each in rest.split(",") if rest)
    return Choice(name, dict(sorted(options.items())))


def chosen(written: Sequence[str]) -> tuple[Choice, ...]:
    """Read all of them, each once; ``all`` stands for every backend.

    Raises:
        UsageError: see `parse`.
    """
    found: dict[str, Choice] = {}
    # Those that are named first: of one that is asked for by name as well, no reason is an excuse.
    for each in sorted(written, key=lambda each: each == ALL):
        for choice in _everything() if each == ALL else [parse(each)]:
            found.setdefault(str(choice), choice)
    return tuple(found.values())


def require_available(choice: Choice) -> None:
    """See that a backend can run on this machine.

    Raises:
        UnavailableError: it cannot; the message tells why, and what to do.
    """
    missing: Missing | None = way(choice.name).available()
    if missing is not None:
        raise UnavailableError(f"{choice.name}: {missing.reason}", remedy=missing.remedy)


def _everything() -> list[Choice]:
    return [
        Choice(name, variant, optional=True) for name in BACKENDS for variant in way(name).VARIANTS
    ]


def _pair(name: str, written: str) -> tuple[str, str]:
    known: Mapping[str, Option] = way(name).OPTIONS
    key, equals, value = written.partition("=")
    if not known:
        raise UsageError(
            f"{name} has no options, found {written!r}", remedy=f"Write --backend {name}. {_LISTED}"
        )
    if key not in known:
        raise UsageError(
            f"{name}: expected an option, found {key!r}",
            remedy=f"{nearest(key, known)}; all of them: {', '.join(known)}. {_LISTED}",
        )
    values = known[key].values
    if not equals or (values and value not in values):
        wanted = f"{key} to be one of {', '.join(values)}" if values else f"{key}=VALUE"
        near = f"{nearest(value, values)}. " if values and value else ""
        raise UsageError(
            f"{name}: expected {wanted}, found {(value or written)!r}",
            remedy=f"{near}Leave it out for {known[key].default!r}. {_LISTED}",
        )
    return key, value
