"""Failures that the libraries of backends are known to have, so that a verdict can name them.

They excuse nothing: what fails has failed. They are data, in ``known.toml`` beside this file.
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
        packages: distributions that have it, any of which may be installed.
        versions: of the package, as pip takes them.
    """

    title: str
    link: str
    remedy: str
    packages: tuple[str, ...]
    versions: str

    def __str__(self) -> str:
        return f"known: {self.title} ({self.packages[0]} {self.versions}, {self.link})"


@dataclass(frozen=True)
class Pattern:
    """A failure, and how it is recognised.

    Attributes:
        known: the failure.
        backends: names of those that it shows in.
        symptom: a regular expression, see `matching`.
        example: of a text that the symptom is found in.
        devices: kinds of devices that it shows on; all where there is none.
        dtypes: names of those that it shows in; all where there is none.
        vision: kinds of image towers that it shows in; all where there is none.
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
    """The known failures that this one may be.

    Args:
        device: where it ran; of ``cuda:1``, the kind counts.
        dtype: what it computed in, by name.
        text: the error; where there is none, a line ``GATE: message`` for each gate that failed.
        versions: of what is installed, by the name of the distribution.
        vision: the kind of image tower, ``ViT`` or ``ResNet``, where that is known.
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
    """All that are known, as they are in the file."""
    text = files("clipcheck.backends").joinpath("known.toml").read_text(encoding="utf-8")
    return tuple(_pattern(entry) for entry in tomllib.loads(text)["known"])


def _pattern(entry: Mapping[str, Any]) -> Pattern:
    found: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()
    }
    known = Known(**{field.name: found.pop(field.name) for field in fields(Known)})
    return Pattern(known, **found)


def _within(versions: str, version: str | None) -> bool:
    """Whether a version is one of those; what is not installed, or has none that is one, is not."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        return version is not None and SpecifierSet(versions).contains(
            Version(version), prereleases=True
        )
    except InvalidVersion:  # as of a build from a repository
        return False
