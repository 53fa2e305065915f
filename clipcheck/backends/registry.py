"""The names of all backends, and how one is chosen: ``NAME`` or ``NAME:OPTION=VALUE,...``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from clipcheck.backends.base import Missing, Option
from clipcheck.backends.source import DefaultWay, Way
from clipcheck.errors import UnavailableError, UsageError, first_line, nearest

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
"""Backends of clipcheck, in the order in which they run and are reported: each is a file beside
this one. Other packages bring more, see `GROUP`."""

GROUP = "clipcheck.backends"
"""The group of entry points that packages bring backends in: the name of each is that of its
backend, and what it loads is a `Way`, or a class of one."""

ALL = "all"
"""Stands for every backend that fits."""


_LISTED = "`clipcheck backends` lists all."


@dataclass(frozen=True)
class Choice:
    """A backend and its options.

    Attributes:
        name: of `names`.
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
        name: of `names`.
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
    """All backends, in the order of `names`."""
    return [_listed(name) for name in names()]


def _listed(name: str) -> Listed:
    found = way(name)
    missing = found.available()
    version = found.version() if missing is None else ""
    return Listed(name, found.SUMMARY, found.OPTIONS, version, missing)


def names() -> tuple[str, ...]:
    """All backends: those of clipcheck, then those of other packages by name."""
    return (*BACKENDS, *sorted(_brought()))


@cache
def _brought() -> Mapping[str, EntryPoint]:
    """Return the backends of other packages, by name. They cannot take a name that clipcheck
    has."""
    return {each.name: each for each in entry_points(group=GROUP) if each.name not in BACKENDS}


@cache
def way(name: str) -> Way:
    """Import and return the way that makes the backend."""
    if name in BACKENDS:
        return cast(Way, importlib.import_module(f"clipcheck.backends.{name}"))
    entry = _brought()[name]
    try:
        loaded = entry.load()
        return cast(Way, loaded() if isinstance(loaded, type) else loaded)
    # It is the code of others, which may raise anything; what stops Python itself is no Exception.
    except Exception as error:
        return _Broken(entry, f"{type(error).__name__}: {first_line(error)}")


class _Broken(DefaultWay):
    """Stands for a backend of another package that cannot be imported."""

    SUMMARY = "cannot be imported"

    def __init__(self, entry: EntryPoint, reason: str) -> None:
        self._entry, self._reason = entry, reason

    def available(self) -> Missing:
        """Why it could not be imported, and who brings it."""
        owner = self._entry.dist.name if self._entry.dist else self._entry.value
        return Missing(
            f"{self._entry.value} could not be imported ({self._reason})",
            f"Mend or uninstall the package that brings it, {owner}.",
        )


def parse(written: str) -> Choice:
    """Read what was written for ``--backend``, but for ``all``.

    Raises:
        UsageError: there is no such backend, option or value; the message names what there is.
    """
    name, _, rest = written.partition(":")
    if name not in names():
        raise UsageError(
            f"expected a backend, found {name!r}",
            remedy=f"{nearest(name, (*names(), ALL))}; all of them: {', '.join(names())}.",
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
        Choice(name, variant, optional=True) for name in names() for variant in way(name).VARIANTS
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
