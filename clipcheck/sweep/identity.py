"""The key of a verdict: content, backend, conditions, versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from clipcheck.backends.registry import backend_named, names
from clipcheck.harness.checking import environment
from clipcheck.harness.options import CheckOptions
from clipcheck.sweep.jobs import ALL_THAT_FIT, DEFAULT

_OF_ALL = ("clipcheck", "torch", "torchvision", "numpy", "pillow", "hypothesis")


def versions_for(backends: Sequence[str]) -> dict[str, str]:
    """Return the versions of the libraries of these backends on this machine.

    Args:
        backends: as requested, with their options.
    """
    asked = {backend.partition(":")[0] for backend in backends}
    if asked & {ALL_THAT_FIT, DEFAULT}:
        asked.update(names())
    wanted = [each for name in sorted(asked) for each in backend_named(name).distributions]
    known = {**environment(), **{name: _version(name) for name in ("hypothesis", *wanted)}}
    return {name: known[name] for name in (*_OF_ALL, *wanted)}


def key_of(
    content: str,
    reference: str,
    options: CheckOptions,
    versions: Mapping[str, str],
    architecture: str = "",
) -> str:
    """Return the key of a verdict in the ledger, in hexadecimal.

    Args:
        content: SHA-256 of the file, or its source if the hash is unknown.
        reference: SHA-256 or source of the reference; empty for the file itself.
        options: of the check.
        versions: of the backends' libraries.
        architecture: content of the configuration that determines the architecture.
    """
    parts = {
        "content": content,
        "reference": reference,
        "backends": options.backends,
        "devices": [str(device) for device in options.devices],
        "dtypes": options.dtypes,
        "examples": options.examples,
        "seed": options.seed,
        "atol": options.atol,
        "rtol": options.rtol,
        "versions": dict(versions),
        "architecture": architecture,
    }
    if options.names:
        parts["map"] = dict(options.names)
    if options.budget is not None:
        parts["budget"] = options.budget
    if options.images is not None or options.prompts is not None:
        parts["own"] = options.own.stamp()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
