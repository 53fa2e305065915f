"""The commands that repeat a check, from the options that it had."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from clipcheck.harness.declarations import OPTIONS, words_of
from clipcheck.harness.declared import Value
from clipcheck.results.judgement import Judgement

_OF_A_FILE = ("key", "architecture", "download_root")
"""Options that say which model a file has and where it is, for commands that read it as well."""


class _Asked(Protocol):
    """A check that had options, such as a `Judgement`."""

    @property
    def checkpoint(self) -> str: ...
    @property
    def path(self) -> str | None: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


def repeat(found: _Asked, **changed: Value | None) -> list[str]:
    """Return the words of the command that checks a file again, with all options that were given.

    Args:
        changed: values of options in place of these; None for the default.
    """
    values = {**found.options, **changed}
    given = {name: value for name, value in values.items() if value is not None}
    return ["clipcheck", "check", found.path or found.checkpoint, *words_of(given)]


def repeat_run(judgement: Judgement) -> list[str]:
    """Return the words of the command that repeats one run of a check: with its backend, device and
    dtype, and with the number and the seed of its inputs, whose defaults may change."""
    if judgement.dtype is None:  # it ended before they were known
        return repeat(judgement)
    own = {} if judgement.pinned else {name: OPTIONS[name].default for name in ("examples", "seed")}
    run = {"backend": judgement.backend, "device": judgement.device, "dtype": judgement.dtype}
    return repeat(judgement, **{**own, **judgement.options, **run})


def of_file(found: _Asked, names: Iterable[str] = _OF_A_FILE) -> list[str]:
    """Return the words that tell another command which model in the file it is about."""
    return words_of({name: value for name, value in found.options.items() if name in names})
