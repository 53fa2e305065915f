"""Run the reference package ``clip``, of openai/CLIP or clip-anytorch."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from clipcheck.backends.base import Backend, Missing
from clipcheck.backends.calling import translating
from clipcheck.backends.modules import ModuleBackend
from clipcheck.backends.source import Source
from clipcheck.gates.integrity import Evidence

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint

_INSTALL = "Install it: pip install clip-anytorch 'setuptools<81'."


class Clip(ModuleBackend):
    """The eager model of the reference package."""

    summary = "the reference package's eager model, clip.model.build_model"
    distributions = ("clip-anytorch", "openai-clip", "clip")
    """Names of its distributions; the last is that of the repository."""

    @classmethod
    def available(cls) -> Missing | None:
        """Require the package; another package has the same name."""
        spec = importlib.util.find_spec("clip")
        folders = spec.submodule_search_locations if spec is not None else None
        if spec is None:
            return Missing("the reference package clip is not installed", _INSTALL)
        if not folders or not (Path(folders[0]) / "simple_tokenizer.py").is_file():
            return Missing("the installed package clip is a different one", _INSTALL)
        return None

    @classmethod
    def version(cls) -> str:
        """Return the version of the package's distribution."""
        for name in cls.distributions:
            try:
                return f"{name} {importlib.metadata.version(name)}"
            except importlib.metadata.PackageNotFoundError:
                continue
        return "clip, of no known version"

    @classmethod
    def unfit(cls, checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:
        """Accept the released models' architecture, in float32, and on a GPU also in float16."""
        other = checkpoint.architecture.departures()
        if other:
            return f"the reference package computes as the released models do, not with {other}"
        if dtype == "float32" or (dtype == "float16" and device.type != "cpu"):
            return None
        where = "float32 on the CPU" if device.type == "cpu" else "float16 or float32"
        return f"the reference package computes in {where}, not in {dtype}"

    @classmethod
    def build(cls, source: Source) -> Backend:
        """Build the model as the package's ``load`` does."""
        with translating("clip", "building the model"):
            model = import_clip().model.build_model(dict(source.checkpoint.tensors))
            model.to(source.device)
            if source.dtype == "float32":
                model.float()
        return cls("clip", model, source.device, evidence=lambda: _evidence(source, model))


def import_clip() -> ModuleType:
    """Import the package, without the deprecation warning of pkg_resources."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
        warnings.filterwarnings(
            "ignore", message=".*declare_namespace", category=DeprecationWarning
        )
        return importlib.import_module("clip")


def _evidence(source: Source, model: Any) -> Evidence:
    from clipcheck.backends.libraries import evidence_of

    doubts = []
    if type(model) is not import_clip().model.CLIP:
        doubts.append(f"its class is {type(model).__name__} and not the reference's CLIP")
    return evidence_of(source.checkpoint, model.state_dict(), source.dtype, doubts)
