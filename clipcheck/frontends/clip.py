"""The reference package: its transform, and its tokenizer with and without truncation."""

from __future__ import annotations

import importlib.util
import warnings
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from clipcheck.backends.base import Missing, translating
from clipcheck.frontends.base import Candidate
from clipcheck.frontends.differences import REFUSED

if TYPE_CHECKING:
    from clipcheck.checkpoints.checkpoint import Checkpoint

_INSTALL = "Run: pip install clip-anytorch 'setuptools<81'"
_DISTRIBUTIONS = ("clip-anytorch", "openai-clip", "clip")


def available() -> Missing | None:
    """Wherever the reference package is, and what it imports."""
    spec = importlib.util.find_spec("clip")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    source = Path(folders[0]) / "clip.py" if folders else None
    if source is None or not source.is_file():
        return Missing("the reference package clip is not installed", _INSTALL)
    old = "pkg_resources" in source.read_text(encoding="utf-8")
    if old and importlib.util.find_spec("pkg_resources") is None:
        return Missing("clip imports pkg_resources, which is not installed", _INSTALL)
    return None


def version() -> str:
    """Of the distribution that brings the package."""
    for name in _DISTRIBUTIONS:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return "clip of unknown version"


def candidates(checkpoint: Checkpoint, scratch: Path) -> list[Candidate]:  # noqa: ARG001
    """The transform that its ``load`` gives, and ``tokenize``.

    Raises:
        RunError: the package cannot be imported.
    """
    with translating("clip", "importing the package"):
        package = _package()
    architecture = checkpoint.architecture
    tokenize = partial(_ids, package, architecture.context_length)
    transform = package._transform(architecture.image_resolution)
    return [
        Candidate("clip", "image", version(), transform),
        Candidate("clip (truncate=True)", "text", version(), partial(tokenize, True)),
        Candidate("clip (by default)", "text", version(), partial(tokenize, False), (REFUSED,)),
    ]


def _package() -> ModuleType:
    with warnings.catch_warnings():
        # Of pkg_resources, which it imports, and of torch's version, which it reads with it.
        warnings.simplefilter("ignore")
        return importlib.import_module("clip.clip")


def _ids(package: Any, length: int, truncate: bool, text: str) -> Any:
    return package.tokenize(text, context_length=length, truncate=truncate)[0]
