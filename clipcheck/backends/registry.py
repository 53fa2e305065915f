"""The names of all backends, and the parser of ``NAME`` and ``NAME:OPTION=VALUE,...``."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from clipcheck.backends.base import Backend, Missing, Option
from clipcheck.backends.factories import FORM, is_factory, load
from clipcheck.backends.names import BACKENDS, CLASSES, OF_ARCHIVES
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.opening import format_of_program
from clipcheck.errors import ClipcheckError, UnavailableError, UsageError, first_line, nearest

GROUP = "clipcheck.backends"
"""Group of entry points for other packages' backends: each loads a class derived from `Backend`,
under the backend's name."""

ALL = "all"
"""Stands for every backend that fits."""


_LISTED = "`clipcheck backends` lists all."


@dataclass(frozen=True)
class Choice:
    """A backend and its options.

    Attributes:
        name: of `names`.
        options: given options, with their values.
        optional: whether it comes from ``all``, so that it is left out if it does not fit.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False

    def __str__(self) -> str:
        given = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}:{given}" if given else self.name

    @property
    def backend(self) -> type[Backend]:
        """Return the class of the backend."""
        return find(self.name)

    @property
    def settings(self) -> dict[str, str]:
        """A value for each option of the backend."""
        known = self.backend.options
        return {key: self.options.get(key, option.default) for key, option in known.items()}


@dataclass(frozen=True)
class Listed:
    """A backend on this machine.

    Attributes:
        name: of `names`.
        version: of its library; empty if it cannot run.
        missing: why it cannot run, or None.
    """

    name: str
    summary: str
    options: Mapping[str, Option]
    version: str
    missing: Missing | None


def listing() -> list[Listed]:
    """List all backends, in the order of `names`."""
    return [_listed(name) for name in names()]


def _listed(name: str) -> Listed:
    found = find(name)
    missing = found.available()
    version = found.version() if missing is None else ""
    return Listed(name, found.summary, found.options, version, missing)


def names() -> tuple[str, ...]:
    """Return all backends: those of clipcheck, then those of other packages by name."""
    return (*BACKENDS, *sorted(_brought()))


@cache
def _brought() -> Mapping[str, EntryPoint]:
    """Return the backends of other packages, by name, without names that clipcheck has."""
    return {each.name: each for each in entry_points(group=GROUP) if each.name not in BACKENDS}


@cache
def find(name: str) -> type[Backend]:
    """Import and return the class of a backend: one of `names`, or a user's own as
    ``package.module:factory``.

    Raises:
        UsageError: a user's own cannot be imported.
    """
    if is_factory(name):
        return load(name)
    if name in BACKENDS:
        module = importlib.import_module(f"clipcheck.backends.{name}")
        own: type[Backend] = getattr(module, CLASSES[name])
        return own
    entry = _brought()[name]
    try:
        loaded = entry.load()
    # Other packages' code may raise any error; an interrupt is no Exception.
    except Exception as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        return _broken(entry, f"could not be imported ({what})")
    if isinstance(loaded, type) and issubclass(loaded, Backend):
        return loaded
    return _broken(entry, f"is no class derived from {Backend.__module__}.{Backend.__name__}")


def _broken(entry: EntryPoint, reason: str) -> type[Backend]:
    """Return a class that stands for a backend of another package that cannot be used."""
    owner = entry.dist.name if entry.dist else entry.value
    told = Missing(
        f"{entry.value} {reason}", f"Fix or uninstall the package that provides it, {owner}."
    )

    class Broken(Backend):
        summary = "cannot be used"

        @classmethod
        def available(cls) -> Missing:
            return told

    return Broken


def backend_named(written: str) -> type[Backend]:
    """Return the class of a backend as `Choice` writes it, or `Backend` itself if this machine does
    not have it: results of other machines may name others."""
    name = written.partition(":")[0]
    return find(name) if name in names() else Backend


def default_for(form: Format) -> str:
    """Return the default backend of a file format, or an empty string."""
    return next((name for name in BACKENDS if form in find(name).default_for), "")


def default_for_file(name: str | os.PathLike[str]) -> str:
    """Return the default backend of a checkpoint that could not be judged, by its first bytes; that
    of archives if these tell no other."""
    form = None
    with suppress(ClipcheckError):  # the check reports it
        form = format_of_program(Path(name))
    return default_for(form) if form else OF_ARCHIVES


def eager_backend() -> str:
    """Return the backend that is the eager model itself."""
    return next(name for name in BACKENDS if find(name).needs_reference)


def showing_modules() -> list[str]:
    """Return the backends that show the modules of any checkpoint."""
    return [name for name in names() if find(name).runs_modules]


def parse(written: str, *, own: bool = True) -> Choice:
    """Parse a value of ``--backend`` other than ``all``.

    Args:
        own: whether it may be a user's own, as ``package.module:factory``, which is imported: not
            where a file names it.

    Raises:
        UsageError: there is no such backend, option or value; the message lists the known ones.
    """
    name, _, rest = written.partition(":")
    if name not in names() and is_factory(written):
        if not own:
            raise UsageError(
                f"expected a backend, found {written!r}, which is code of a user's own",
                remedy="It runs only where the command line or Python names it: clipcheck check "
                f"FILE --backend {FORM}.",
            )
        find(written)
        return Choice(written)
    if name not in names():
        raise UsageError(
            f"expected a backend, found {name!r}",
            remedy=f"{nearest(name, (*names(), ALL))}; all of them: {', '.join(names())}, or your "
            f"own as {FORM}.",
        )
    options = dict(_pair(name, each) for each in rest.split(",") if rest)
    return Choice(name, dict(sorted(options.items())))


def chosen(written: Sequence[str], *, own: bool = True) -> tuple[Choice, ...]:
    """Parse all values of ``--backend``, each once; ``all`` means every backend.

    Args:
        own: as for `parse`.
    """
    found: dict[str, Choice] = {}
    # Named backends first: a backend that is named as well as in ``all`` is not optional.
    for each in sorted(written, key=lambda each: each == ALL):
        for choice in _everything() if each == ALL else [parse(each, own=own)]:
            found.setdefault(str(choice), choice)
    return tuple(found.values())


def require_available(choice: Choice) -> None:
    """Raise if a backend cannot run on this machine.

    Raises:
        UnavailableError: the message says why, and what to do.
    """
    missing = choice.backend.available()
    if missing is not None:
        raise UnavailableError(f"{choice.name}: {missing.reason}", remedy=missing.remedy)


def _everything() -> list[Choice]:
    return [
        Choice(name, variant, optional=True) for name in names() for variant in find(name).variants
    ]


def _pair(name: str, written: str) -> tuple[str, str]:
    known = find(name).options
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
