"""Check the configuration of a model of open_clip, before the library builds the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from clipcheck.checkpoints.directories import OPEN_CLIP_CONFIG
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.errors import ArchitectureError
from clipcheck.families.sizes import MOST_PIXELS
from clipcheck.inputs.rules import MEAN, STD, ImageRules
from clipcheck.inputs.tokenizer import VOCABULARY_SIZE

_TOO_MANY = 3
"""Most problems in a message."""

_MOST = 2_000_000
"""Greatest size, such as that of a vocabulary."""

_RESIZING = ("shortest", "longest", "squash")
_INTERPOLATION = ("bicubic", "bilinear", "random")

_FETCHED = ("hf-hub:", "hf_hub:")
"""Prefixes of model names whose configuration timm would download."""


def checked(architecture: LibraryArchitecture) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the ``model_cfg`` and the ``preprocess_cfg``, as new objects.

    Raises:
        ArchitectureError: a setting is missing or has another type, or the library would download
            a model.
    """
    settings = architecture.settings
    model, preprocess = settings["model_cfg"], settings["preprocess_cfg"]
    problems = [*_problems("model_cfg", model, _MODEL)]
    if not problems:
        problems += _problems("model_cfg.vision_cfg", model["vision_cfg"], _VISION)
        problems += _problems("model_cfg.text_cfg", model["text_cfg"], _TEXT)
        problems += _beyond_vocabulary(model["text_cfg"])
    problems += _problems("preprocess_cfg", preprocess, _PREPROCESS)
    if problems:
        raise ArchitectureError(
            f"it is not a model of open_clip: {'; '.join(problems[:_TOO_MANY])}",
            remedy=f"Take the {OPEN_CLIP_CONFIG} that belongs to the weights.",
        )
    tower = model["vision_cfg"].get("timm_model_name") or ""
    if tower.startswith(_FETCHED) or ("/" in tower and not tower.startswith("local-dir:")):
        raise ArchitectureError(
            f"its image tower is {tower!r}, which timm would download from the hub; clipcheck "
            "downloads no models",
            remedy="Give timm's own name of the model as timm_model_name.",
        )
    return model, preprocess


def images_of(preprocess: Mapping[str, Any]) -> ImageRules:
    """Return the rules for images of a checked ``preprocess_cfg``."""
    return ImageRules(
        mean=_three(preprocess.get("mean") or MEAN),
        std=_three(preprocess.get("std") or STD),
        interpolation="bilinear" if preprocess.get("interpolation") == "bilinear" else "bicubic",
        resize=preprocess.get("resize_mode") or "shortest",
        fill=preprocess.get("fill_color") or 0,
    )


def side_of(value: int | list[int]) -> int:
    """Return one side of a square."""
    return value[0] if isinstance(value, list) else value


# --------------------------------------------------------------------------- settings


class _Setting(NamedTuple):
    """A setting.

    Attributes:
        required: whether it may not be missing.
        empty: whether it may be null.
    """

    is_valid: Callable[[Any], bool]
    wanted: str
    required: bool = False
    empty: bool = True


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < _MOST


def _is_square(value: Any) -> bool:
    pair = value if isinstance(value, list) else [value, value]
    return len(pair) == 2 and _is_size(pair[0]) and pair[0] == pair[1] <= MOST_PIXELS


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_channels(value: Any) -> bool:
    values = value if isinstance(value, list) else [value] * 3
    return len(values) == 3 and all(type(each) in (int, float) for each in values)


def _is_divisor(value: Any) -> bool:
    # One 0 means the usual numbers, in open_clip.
    return _is_channels(value) and (value == 0 or all(_three(value)))


_SIZE = _Setting(_is_size, "a whole number", empty=False)
_SQUARE = _Setting(
    _is_square, f"a whole number up to {MOST_PIXELS}, or two equal ones", empty=False
)
_TEXTS = _Setting(_is_text, "a text")
_IDS = _Setting(_is_id, "an id", empty=False)
_CHANNELS = _Setting(_is_channels, "three numbers")

_MODEL = {
    "embed_dim": _SIZE._replace(required=True),
    "vision_cfg": _Setting(_is_object, "an object", required=True, empty=False),
    "text_cfg": _Setting(_is_object, "an object", required=True, empty=False),
}
_VISION = {
    "image_size": _SQUARE,
    "patch_size": _SQUARE._replace(empty=True),
    "timm_model_name": _TEXTS,
}
_TEXT = {
    "context_length": _SIZE,
    "vocab_size": _SIZE,
    "pad_id": _IDS,
    "eos_id": _IDS,
    "hf_model_name": _TEXTS,
    "hf_tokenizer_name": _TEXTS,
    "tokenizer_mode": _TEXTS,
    "tokenizer_kwargs": _Setting(_is_object, "an object"),
}
_PREPROCESS = {
    "mean": _CHANNELS,
    "std": _Setting(_is_divisor, "three numbers other than 0"),
    "interpolation": _Setting(_INTERPOLATION.__contains__, f"one of {', '.join(_INTERPOLATION)}"),
    "resize_mode": _Setting(_RESIZING.__contains__, f"one of {', '.join(_RESIZING)}"),
    "fill_color": _Setting(_is_id, "a whole number of at least 0"),
}


def _problems(name: str, section: Any, settings: Mapping[str, _Setting]) -> Iterator[str]:
    """Yield what is wrong with a part of the configuration."""
    if not isinstance(section, dict):
        yield f"{name} is {_brief(section)}, expected an object"
        return
    for key, setting in settings.items():
        if key not in section:
            if setting.required:
                yield f"{name}.{key} is missing, expected {setting.wanted}"
            continue
        value = section[key]
        if not (setting.empty if value is None else setting.is_valid(value)):
            yield f"{name}.{key} is {_brief(value)}, expected {setting.wanted}"


def _beyond_vocabulary(text: Mapping[str, Any]) -> Iterator[str]:
    vocab_size = text.get("vocab_size", VOCABULARY_SIZE)
    if text.get("hf_model_name") or not _is_size(vocab_size):
        return
    for key in ("pad_id", "eos_id"):
        if _is_id(text.get(key)) and text[key] >= vocab_size:
            yield f"model_cfg.text_cfg.{key} is {text[key]}, expected an id below {vocab_size}"


def _brief(value: Any) -> str:
    return "null" if value is None else repr(value)[:40]


def _three(value: Any) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3
