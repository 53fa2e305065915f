"""open_clip's own list of pretrained checkpoints, as a catalogue.

Entries that cannot be judged are recognised by the model's configuration: they are left out with
the reason, and not fetched. The others are judged with the activation of their tag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from clipcheck.backends.registry import default_for
from clipcheck.checkpoints import registry
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.library import LibraryArchitecture, read_open_clip
from clipcheck.checkpoints.told import OPEN_CLIP, trained
from clipcheck.errors import ArchitectureError
from clipcheck.families.registry import parameters_of, sizes_of
from clipcheck.sweep.catalogue import Entry
from clipcheck.sweep.jobs import DEFAULT, Source

_BYTES = 4
"""Bytes of a weight in most of these files."""

_OF_OPENAI = "openaipublic"
_OF_OPEN_CLIP = "mlfoundations"


def pretrained() -> list[Entry]:
    """Return all entries of the list, in order, as ``MODEL/TAG``."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    return [
        entry_of(
            f"{model}/{tag}", open_clip.get_model_config(model), get_pretrained_cfg(model, tag)
        )
        for model, tag in open_clip.list_pretrained()
    ]


def entry_of(label: str, model: Mapping[str, Any] | None, weights: Mapping[str, Any]) -> Entry:
    """The entry of a catalogue for one of the list.

    Args:
        weights: that of the weights: ``url``, ``hf_hub``, ``quick_gelu``.
    """
    try:
        configured = read_open_clip(model or {}, Path(label))
        if isinstance(configured, LibraryArchitecture):
            return _of_library(label, configured, weights)
    except ArchitectureError as error:
        return Entry(label=label, source=Source("url", ""), unfit=error.problem)
    # The tag tells: 28 of them have another activation than the configuration.
    architecture = trained(configured, quick=bool(weights.get("quick_gelu", False)))
    source = _source(weights, parameters_of(architecture))
    # An archive has its own code; other files have only weights.
    archive = _OF_OPENAI in source.place
    return Entry(
        label=label,
        source=source,
        backends=(DEFAULT,) if archive else (default_for(Format.OPEN_CLIP),),
        architecture=f"{OPEN_CLIP}{label}",
        dimensions=architecture,
    )


def _of_library(label: str, configured: LibraryArchitecture, weights: Mapping[str, Any]) -> Entry:
    """Return the entry of a model that only open_clip computes.

    Raises:
        ArchitectureError: it cannot be judged.
    """
    sizes_of(configured)
    source = _source(weights, parameters_of(configured))
    return Entry(
        label=label,
        source=source,
        backends=(default_for(Format.PT2),),
        architecture=f"{OPEN_CLIP}{label}",
    )


def _source(weights: Mapping[str, Any], parameters: int) -> Source:
    url = weights.get("url", "")
    size = _BYTES * parameters
    if not url:
        return Source("hub", weights["hf_hub"], size=size, estimated=True)
    sha256 = _digest(url)
    released = registry.by_sha256(sha256)
    if released is not None:
        return Source("url", url, sha256, released.size)
    return Source("url", url, sha256, size, estimated=True)


def _digest(url: str) -> str:
    """Return the SHA-256 in a URL, as open_clip reads it, or its first digits."""
    parts = PurePosixPath(urlsplit(url).path)
    told = ""
    if _OF_OPENAI in url:
        told = parts.parent.name
    elif _OF_OPEN_CLIP in url:
        told = parts.stem.rpartition("-")[2]
    return told if re.fullmatch(r"[0-9a-f]{8,64}", told) else ""
