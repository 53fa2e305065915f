"""Models that clipcheck does not build itself: a library's own model is the reference for them.

This module reads which library a folder is of, and its configuration; `clipcheck.families` builds
the library's model.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcheck.checkpoints.configs_of_open_clip import beyond_released, of_open_clip
from clipcheck.checkpoints.configs_of_transformers import note_of, of_transformers
from clipcheck.checkpoints.kinds import CLIP, KINDS, TOWERS, UNSUPPORTED, kind_of, supported
from clipcheck.errors import ArchitectureError, UnavailableError, UnfitError
from clipcheck.system.transformers_logging import quiet

if TYPE_CHECKING:
    from clipcheck.checkpoints.architecture import Architecture

OPEN_CLIP_LIBRARY = "open_clip"
TRANSFORMERS_LIBRARY = "transformers"

PREPROCESSOR_CONFIG = "preprocessor_config.json"
"""Configuration of the preprocessing in a folder of transformers."""

TEXT_CONFIG = "text_config.json"
"""The configuration of a text model of transformers, in a folder of open_clip; open_clip itself
would download it from the hub."""


@dataclass(frozen=True)
class LibraryArchitecture:
    """A library's configuration of a model.

    Attributes:
        library: name of its family in `clipcheck.families`.
        config: its configuration as JSON, with sorted keys.
        beyond: description of the parts that clipcheck's own modules lack.
        files: the library's other configurations by file name, as JSON.
        folder: of these files, which may have a tokenizer too; not compared.
    """

    library: str
    config: str
    beyond: str
    files: tuple[tuple[str, str], ...] = ()
    folder: Path | None = field(default=None, compare=False)

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration as a new object."""
        found: dict[str, Any] = json.loads(self.config)
        return found

    def describe(self) -> str:
        """Describe it in one line."""
        return f"a model of {self.library} with {self.beyond}"

    def unfit(self, path: Path | None = None) -> UnfitError:
        """Return the error for a function that supports only clipcheck's own modules."""
        return UnfitError(
            f"expected a model of OpenAI's architecture, found {self.describe()}",
            remedy="Judge it with another backend, such as export: "
            f"{self.library}'s own model is its reference.",
            path=path,
        )


def read_open_clip(
    config: Mapping[str, Any], path: Path, files: Mapping[str, Mapping[str, Any]] | None = None
) -> Architecture | LibraryArchitecture:
    """Return the architecture of a configuration of open_clip: clipcheck's own if its modules
    support it, else the library's.

    Args:
        config: an ``open_clip_config.json``, or one of the library's ``model_configs``.
        files: other configurations beside it, by file name.

    Raises:
        ArchitectureError: it is for clipcheck's own modules and invalid, or it asks for code that
            is not in the library.
    """
    model = config.get("model_cfg", config)
    beyond = beyond_released(model)
    if not beyond:
        return of_open_clip(model, path)
    others = files or {}
    refuse_code([config, *others.values()], path)
    whole = {"model_cfg": model, "preprocess_cfg": config.get("preprocess_cfg") or {}}
    return LibraryArchitecture(
        OPEN_CLIP_LIBRARY,
        _canonical(whole),
        ", ".join(beyond),
        tuple((name, _canonical(other)) for name, other in sorted(others.items())),
        path.parent if path.is_file() else None,
    )


def read_transformers(
    config: Mapping[str, Any], path: Path, files: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Architecture | LibraryArchitecture, str]:
    """Return the architecture of a ``config.json`` of transformers, and a note for messages: it is
    clipcheck's own for a CLIPModel, else the library's.

    Raises:
        ArchitectureError: the class is not supported, or it asks for code that is not in the
            library.
    """
    others = files or {}
    refuse_code([config, *others.values()], path)
    if config.get("model_type") == "clip":
        return of_transformers(config, path), note_of(config, path)
    kind = kind_of(config)
    if kind is None:
        raise ArchitectureError(
            _named(config.get("model_type"), config.get("architectures")),
            remedy=f"Of transformers, clipcheck supports {supported()}.",
            path=path,
        )
    found = LibraryArchitecture(
        TRANSFORMERS_LIBRARY,
        _canonical(config),
        f"the class {kind.name}",
        tuple((name, _canonical(other)) for name, other in sorted(others.items())),
        path.parent if path.is_file() else None,
    )
    return found, ""


def own_of_transformers(config: Mapping[str, Any]) -> LibraryArchitecture | None:
    """Return the library's own architecture for a CLIPModel, for archives with the library's names;
    None for any other class."""
    if config.get("model_type") != CLIP.model_type:
        return None
    return LibraryArchitecture(TRANSFORMERS_LIBRARY, _canonical(config), f"the class {CLIP.name}")


def of_object(model: Any) -> LibraryArchitecture:
    """Return the architecture of a model of transformers in memory.

    Raises:
        ArchitectureError: its class is not supported.
    """
    name = type(model).__name__
    config = json.loads(model.config.to_json_string(use_diff=False))
    kind = kind_of({**config, "architectures": [name]})
    if kind is None or kind.name != name:
        raise ArchitectureError(
            f"expected a model of transformers with both towers, found {name}",
            remedy=f"clipcheck supports {supported()}. Of another class, give a pair of callables: "
            "(encode_image, encode_text).",
        )
    found = {**config, "architectures": [name]}
    return LibraryArchitecture(TRANSFORMERS_LIBRARY, _canonical(found), f"the class {name}")


def default_config(model_type: str) -> dict[str, Any]:
    """Return transformers' configuration of a model type, with the library's default sizes.

    Raises:
        UnavailableError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UnavailableError(
            "transformers is not installed; it is needed for the default sizes of its models",
            remedy="Install it: pip install 'clipcheck[transformers]'.",
        ) from error
    towers = _TOWERS.get(model_type, {})
    with quiet():  # it would warn of default ids that are beyond SigLIP's vocabulary
        parts = {name: transformers.AutoConfig.for_model(each) for name, each in towers.items()}
        config = {name: part.to_dict() for name, part in parts.items()}
        found: dict[str, Any] = transformers.AutoConfig.for_model(model_type, **config).to_dict()
    return {key: value for key, value in found.items() if value is not None}


_TOWERS = {
    "vision-text-dual-encoder": {
        "vision_config": "vit",
        "text_config": "bert",
    }
}
"""Towers for a class without default ones."""


def _named(model_type: object, architectures: object) -> str:
    reason = UNSUPPORTED.get(model_type) if isinstance(model_type, str) else None
    towers = [kind.name for kind in TOWERS.values() if kind.model_type == model_type]
    if towers:
        return (
            f"its model_type {model_type!r} is of a single tower, and of several classes: "
            f"expected {' or '.join(towers)} under 'architectures', found "
            f"{reprlib.repr(architectures)}"
        )
    if reason:
        return f"it is a model of {reason}"
    for kind in KINDS.values():
        if model_type in (f"{kind.model_type}_text_model", f"{kind.model_type}_vision_model"):
            return (
                f"its model_type {model_type!r} is one tower of {kind.name}, of which only both "
                "together are supported"
            )
    return f"its model_type {reprlib.repr(model_type)} is not supported"


_KINDS = {
    "roberta": "roberta",
    "xlm-roberta": "xlm-roberta",
    "mt5": "mt5",
    "nllb": "m2m_100",
}
"""Model types of transformers, by the prefix of the names of open_clip's text models."""


def with_text_config(architecture: LibraryArchitecture) -> LibraryArchitecture:
    """Add a missing configuration of transformers' text model to an architecture of open_clip: one
    of the same kind, with transformers' default sizes."""
    text = architecture.settings.get("model_cfg", {}).get("text_cfg")
    name = text.get("hf_model_name") if isinstance(text, dict) else None
    if not name or architecture.files:
        return architecture
    kind = next(
        (kind for begin, kind in _KINDS.items() if name.split("/")[-1].startswith(begin)), None
    )
    if kind is None:
        raise ArchitectureError(
            f"the kind of the text model {name!r} of transformers is not known",
            remedy=f"Known are {', '.join(_KINDS)}.",
        )
    import transformers

    config = transformers.AutoConfig.for_model(kind).to_diff_dict()
    return replace(architecture, files=((TEXT_CONFIG, _canonical(config)),))


def refuse_code(configs: Iterable[object], path: Path) -> None:
    """Raise if a configuration, or any part of one, names code that the library would load.

    Args:
        configs: objects; nested ones are included.
        path: the file, for messages.

    Raises:
        ArchitectureError: one does.
    """
    for config in configs:
        if not isinstance(config, dict):
            continue
        for key in ("auto_map", "trust_remote_code"):
            if config.get(key):
                raise ArchitectureError(
                    f"its configuration has {key}: it asks to download code and run it, which "
                    "clipcheck never does",
                    remedy="Judge a model whose class is in the installed library.",
                    path=path,
                )
        refuse_code(config.values(), path)


def _canonical(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)
