"""Known failures of the backends' libraries, which reports name. They do not change the verdict.

The data is in ``known.toml`` in this folder.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Known:
    """A failure that was reported to the library's developers.

    Attributes:
        title: what goes wrong, as a phrase.
        link: to the report.
        remedy: what to do about it, as a sentence.
        packages: distributions that have it; any of these may be installed.
        versions: range of versions, in pip's syntax.
    """

    title: str
    link: str
    remedy: str
    packages: tuple[str, ...]
    versions: str

    def __str__(self) -> str:
        return f"known: {self.title} ({self.packages[0]} {self.versions}, {self.link})"


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A failure, and how it is recognised.

    Attributes:
        known: the failure.
        backends: names of the affected backends.
        symptom: regular expression, see `matching`.
        example: a text that matches it.
        devices: affected kinds of devices; empty for all.
        dtypes: affected dtypes; empty for all.
        vision: affected kinds of image towers; empty for all.
    """

    known: Known
    backends: tuple[str, ...]
    symptom: str
    example: str
    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    vision: tuple[str, ...] = ()


def matching(
    backend: str,
    device: str,
    dtype: str,
    text: str,
    versions: Mapping[str, str],
    *,
    vision: str = "",
) -> list[Known]:
    """Return the known failures that match this one.

    Args:
        device: of the run; only its kind counts.
        dtype: of the run, by name.
        text: the error, or a line ``GATE: message`` for each failed gate.
        versions: of installed distributions, by name.
        vision: kind of image tower, ``ViT`` or ``ResNet``, if known.
    """
    here = {"devices": device.partition(":")[0], "dtypes": dtype, "vision": vision}
    return [
        each.known
        for each in everything()
        if backend in each.backends
        and all(value in (getattr(each, name) or (value,)) for name, value in here.items())
        and any(_within(each.known.versions, versions.get(name)) for name in each.known.packages)
        and re.search(each.symptom, text, re.MULTILINE)
    ]


@cache
def everything() -> tuple[Pattern, ...]:
    """Read all known failures from the file."""
    text = files("clipcheck.backends").joinpath("known.toml").read_text(encoding="utf-8")
    return tuple(_pattern(entry) for entry in tomllib.loads(text)["known"])


def _pattern(entry: Mapping[str, Any]) -> Pattern:
    found: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()
    }
    known = Known(**{field.name: found.pop(field.name) for field in fields(Known)})
    return Pattern(known=known, **found)


def _within(versions: str, version: str | None) -> bool:
    """Tell whether a version is in the range; False if it is missing or invalid."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        return version is not None and SpecifierSet(versions).contains(
            Version(version), prereleases=True
        )
    except InvalidVersion:  # for example of a build from a repository
        return False
