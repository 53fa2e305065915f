"""Folders with a checkpoint: a configuration in JSON, and weights in one or several files.

The configuration tells the library: transformers' ``save_pretrained`` writes ``config.json``, and
open_clip ``open_clip_config.json``. If both exist, as in open_clip's folders on the hub,
transformers' takes precedence.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.kinds import kind_of
from clipcheck.checkpoints.library import (
    PREPROCESSOR_CONFIG,
    TEXT_CONFIG,
    LibraryArchitecture,
    read_open_clip,
    read_transformers,
)
from clipcheck.errors import (
    ArchitectureError,
    CheckpointError,
    DamagedError,
    UnknownFormatError,
)

TRANSFORMERS_CONFIG = "config.json"
TRANSFORMERS_WEIGHTS = "model.safetensors"
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"

_INDEX = ".index.json"
"""Suffix of an index: it tells which of several files has which tensor."""

_WEIGHTS = {
    # transformers/modeling_utils.py, `_get_resolved_checkpoint_files`: in its order.
    Format.TRANSFORMERS: (
        TRANSFORMERS_WEIGHTS,
        f"{TRANSFORMERS_WEIGHTS}{_INDEX}",
        "pytorch_model.bin",
        f"pytorch_model.bin{_INDEX}",
    ),
    # open_clip/factory.py, `_find_checkpoint_in_dir`: in its order.
    Format.OPEN_CLIP: (
        OPEN_CLIP_WEIGHTS,
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
        "open_clip_pytorch_model.pth",
        "model.safetensors",
        "pytorch_model.bin",
        "pytorch_model.pth",
        "model.pth",
    ),
}

_MOST_JSON = 32 << 20
"""Most bytes of a configuration or an index. Models with many billions of weights have 1 MB."""

_COPY_AGAIN = "Copy or download the folder again, or write it anew."


@dataclass(frozen=True, kw_only=True)
class Directory:
    """A folder with a checkpoint.

    Attributes:
        path: the folder.
        format: `Format.TRANSFORMERS` or `Format.OPEN_CLIP`.
        config_path: path of the configuration.
        config: its content.
        weights: files with the weights.
        index: path of the index, or None.
        file_of: by key, the name of its file; empty without an index.
    """

    path: Path
    format: Format
    config_path: Path
    config: Mapping[str, Any]
    weights: Sequence[Path]
    index: Path | None
    file_of: Mapping[str, str]

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the model, sorted by name."""
        index = () if self.index is None else (self.index,)
        texts = (self.path / name for name in self._texts)
        return tuple(sorted([self.config_path, *texts, *index, *self.weights]))

    @property
    def model(self) -> Architecture | LibraryArchitecture:
        """Architecture that the configuration describes.

        Raises:
            ArchitectureError: neither clipcheck nor a library builds it.
        """
        if self.format is Format.TRANSFORMERS:
            return read_transformers(self.config, self.config_path, self._texts)[0]
        return read_open_clip(self.config, self.config_path, self._texts)

    @cached_property
    def _texts(self) -> dict[str, dict[str, Any]]:
        return configs_beside(self.config_path, self.format)

    @property
    def note(self) -> str:
        """Note on the configuration for the user; empty for none."""
        known = self.format is Format.TRANSFORMERS
        return read_transformers(self.config, self.config_path)[1] if known else ""

    def require_indexed(self, keys: Mapping[Path, Sequence[str]]) -> None:
        """Raise if a file lacks tensors of the index, or has others.

        Args:
            keys: by file, its tensors.

        Raises:
            DamagedError: they do not agree.
        """
        if self.index is None:
            return
        found = {(key, file.name) for file, names in keys.items() for key in names}
        wrong = sorted(found.symmetric_difference(self.file_of.items()))
        if wrong:
            key, name = wrong[0]
            state = "has not" if (key, name) not in found else "has, against the index,"
            more = f"; {len(wrong) - 1} more do not agree" if len(wrong) > 1 else ""
            raise DamagedError(
                f"{name} {state} the tensor {key!r}{more}", remedy=_COPY_AGAIN, path=self.index
            )


def has_weights(folder: Path) -> bool:
    """Whether there are weights in a folder, under a name that a library gives them."""
    return any((folder / name).is_file() for names in _WEIGHTS.values() for name in names)


def configs_beside(path: Path, form: Format) -> dict[str, dict[str, Any]]:
    """Return the library's other configurations beside one, by file name.

    Raises:
        CheckpointError: one of them cannot be read.
    """
    beside = path.with_name(TEXT_CONFIG if form is Format.OPEN_CLIP else PREPROCESSOR_CONFIG)
    return {beside.name: read_json(beside)} if _is_file(beside) else {}


def read(path: Path) -> Directory:
    """Read a folder, except for its weights.

    Args:
        path: an existing folder.

    Raises:
        UnknownFormatError: it has no configuration of a CLIP model.
        ArchitectureError: its configuration is of another kind of model.
        DamagedError: a file is missing or invalid.
        CheckpointError: a file cannot be read.
    """
    config_path = path / TRANSFORMERS_CONFIG
    ours = path / OPEN_CLIP_CONFIG
    if _is_file(config_path):
        config = read_json(config_path)
        if config.get("model_type") == "clip" or kind_of(config) or not _is_file(ours):
            return _directory(path, Format.TRANSFORMERS, config_path, config)
    if not _is_file(ours):
        raise UnknownFormatError(
            f"expected a file, or a folder with {TRANSFORMERS_CONFIG} or {OPEN_CLIP_CONFIG}; found "
            "a directory without either",
            remedy="Give the path of the file itself, or of such a folder.",
            path=path,
        )
    config = read_json(ours)
    model = config.get("model_cfg")
    if not isinstance(model, dict):
        raise ArchitectureError(
            "expected an object under 'model_cfg', found "
            f"{'nothing' if model is None else f'a {type(model).__name__}'}",
            remedy="Take the configuration that open_clip wrote.",
            path=ours,
        )
    return _directory(path, Format.OPEN_CLIP, ours, config)


def _directory(path: Path, form: Format, config_path: Path, config: Mapping[str, Any]) -> Directory:
    first = next((path / name for name in _WEIGHTS[form] if _is_file(path / name)), None)
    if first is None:
        raise DamagedError(
            f"it has {config_path.name}, but no weights: expected {', '.join(_WEIGHTS[form])}",
            remedy="Fetch the files of the weights as well (git lfs pull).",
            path=path,
        )
    if not first.name.endswith(_INDEX):
        return Directory(
            path=path,
            format=form,
            config_path=config_path,
            config=config,
            weights=(first,),
            index=None,
            file_of={},
        )
    file_of = _read_index(first)
    weights = tuple(path / name for name in sorted(set(file_of.values())))
    for file in weights:
        if not _is_file(file):
            raise DamagedError(
                f"the file {file.name!r}, which {first.name} names, is missing",
                remedy=_COPY_AGAIN,
                path=path,
            )
    return Directory(
        path=path,
        format=form,
        config_path=config_path,
        config=config,
        weights=weights,
        index=first,
        file_of=file_of,
    )


def _read_index(path: Path) -> dict[str, str]:
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise DamagedError("it has no 'weight_map'", remedy=_COPY_AGAIN, path=path)
    for key, name in found.items():
        # Only names: files in other folders are not part of the checkpoint.
        if not isinstance(name, str) or not _is_plain(name):
            raise DamagedError(
                f"expected under {key[:80]!r} the name of a file beside it, found "
                f"{reprlib.repr(name)}",
                remedy=_COPY_AGAIN,
                path=path,
            )
    return found


def _is_plain(name: str) -> bool:
    return name not in ("", "..") and Path(name).name == name and not set(name) & {"\\", "\0"}


def _is_file(path: Path) -> bool:
    """Whether it is an existing file; links, as in the hub's cache, are followed."""
    try:
        return path.is_file()
    except OSError as error:
        raise unreadable(path, error) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        DamagedError: it is no JSON object.
        CheckpointError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_JSON + 1)
        found = json.loads(data) if len(data) <= _MOST_JSON else None
    except OSError as error:
        raise unreadable(path, error) from error
    # UnicodeDecodeError for bytes that are no text, RecursionError for deep nesting.
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"it is not JSON ({error})", remedy=_COPY_AGAIN, path=path) from error
    if not isinstance(found, dict):
        what = "too long" if len(data) > _MOST_JSON else f"a {type(found).__name__}"
        raise DamagedError(f"expected a JSON object, it is {what}", remedy=_COPY_AGAIN, path=path)
    return found


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Return the error for a file that the system cannot read."""
    return CheckpointError(
        f"cannot be read ({error.strerror})",
        remedy="Check that the file is there and that you may read it.",
        path=path,
    )
