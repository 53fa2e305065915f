"""Find a model's activation, heads and epsilon, which its weights do not determine.

They come from a configuration beside the weights, from a record in their file, or from the user,
with ``--architecture``.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from clipcheck.checkpoints.architecture import (
    ARCHITECTURES,
    Activation,
    Architecture,
    Blocks,
    ViT,
    differences,
)
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.dimensions import listed
from clipcheck.checkpoints.directories import (
    OPEN_CLIP_CONFIG,
    TRANSFORMERS_CONFIG,
    configs_beside,
    read_json,
)
from clipcheck.checkpoints.kinds import KINDS, TOWERS, supported
from clipcheck.checkpoints.library import (
    LibraryArchitecture,
    default_config,
    own_of_transformers,
    read_open_clip,
    read_transformers,
    with_text_config,
)
from clipcheck.errors import ArchitectureError, CheckpointError, UnknownModelError, nearest

OPEN_CLIP = "open_clip:"
"""Prefix of the names of open_clip's configurations."""

TRANSFORMERS = "transformers:"
"""Prefix of the names of transformers' classes."""

METADATA = "clipcheck_architecture"
"""Key in the metadata of a safetensors file of clipcheck, with the output of `encode`."""

EXTRA = f"extra/{METADATA}"
"""Record of an archive with the output of `encode`."""

MOST_RECORD = 4096
"""Most bytes of this record; clipcheck writes about 200."""

OPTION = "--architecture"


@dataclass(frozen=True)
class Told:
    """An architecture and its source.

    Attributes:
        model: the architecture, whose dimensions the weights must have.
        source: description of the source.
        argument: if the user gave it, the ``--architecture`` for the same from any folder.
        note: further description of the source.
        own: the library's own architecture, for an archive with the library's names, if other
            files of this model run with clipcheck's own modules.
    """

    model: Architecture | LibraryArchitecture
    source: str
    argument: str = ""
    note: str = ""
    own: LibraryArchitecture | None = field(default=None, compare=False)

    @property
    def architecture(self) -> Architecture:
        """The architecture, if clipcheck's own modules support it.

        Raises:
            UnfitError: only a library's modules do.
        """
        if isinstance(self.model, LibraryArchitecture):
            raise self.model.unfit()
        return self.model

    def __str__(self) -> str:
        """Describe the source, with the note."""
        return f"{self.source} ({self.note})" if self.note else self.source


def named(name: str, asked: str = OPTION, *, text_config: bool = False) -> Told:
    """Return the architecture that ``--architecture`` names.

    Args:
        name: a released name, ``tiny-vit`` or ``tiny-resnet``; ``open_clip:NAME``;
            ``open_clip:NAME/TAG``, with the activation of that tag's training;
            ``transformers:CLASS``, with the library's default sizes; or the path of an
            ``open_clip_config.json`` or a ``config.json``.
        asked: the option that the user gave, for messages, or an empty string.
        text_config: whether to use a text model of the same kind with transformers' default sizes
            if the configuration of the named text model is only on the hub.

    Raises:
        UnknownModelError: there is no such name; the message has the nearest one.
        ArchitectureError: clipcheck does not support the architecture.
        CheckpointError: the file cannot be read.
    """
    try:
        told = _named(name)
        if text_config and isinstance(told.model, LibraryArchitecture):
            return replace(told, model=with_text_config(told.model))
        return told
    except UnknownModelError as error:
        problem = f"{asked}: {error.problem}" if asked else error.problem
        raise UnknownModelError(problem, remedy=error.remedy) from None


def _named(name: str) -> Told:
    if name in ARCHITECTURES:
        return Told(ARCHITECTURES[name], f"{OPTION} {name}", name)
    if name.startswith(OPEN_CLIP):
        return _of_open_clips(name)
    if name.startswith(TRANSFORMERS):
        return _of_transformers(name)
    path = Path(name)
    if path.is_file():
        return of_file(path, f"{OPTION} {name}", str(path.absolute()))
    if path.is_dir():
        raise UnknownModelError(
            f"expected a name or a configuration file, found the folder {name!r}",
            remedy="Give the file in it: open_clip_config.json, or config.json.",
        )
    if path.suffix == ".json":
        raise UnknownModelError(
            f"there is no file {name!r}", remedy="Give the path of a configuration."
        )
    raise _unknown(name)


def of_file(path: Path, source: str, argument: str = "") -> Told:
    """Read the architecture from a configuration of transformers or open_clip.

    Raises:
        ArchitectureError: it is not of a CLIP model, or clipcheck does not support the model.
        CheckpointError: the file cannot be read.
    """
    config = read_json(path)
    if isinstance(config.get("model_cfg"), dict) or "vision_cfg" in config:
        others = configs_beside(path, Format.OPEN_CLIP)
        return Told(read_open_clip(config, path, others), source, argument)
    if "model_type" in config:
        model, note = read_transformers(config, path, configs_beside(path, Format.TRANSFORMERS))
        return Told(model, source, argument, note, own_of_transformers(config))
    raise ArchitectureError(
        "expected the configuration of a CLIP model: a model_cfg (open_clip), or a model_type "
        "(transformers)",
        remedy="Give the open_clip_config.json or the config.json of the whole model.",
        path=path,
    )


def _of_transformers(name: str) -> Told:
    """Return a class of transformers with the library's default sizes."""
    asked = name.removeprefix(TRANSFORMERS)
    kinds = (*KINDS.values(), *TOWERS.values())
    types = {"CLIPModel": "clip", **{kind.name: kind.model_type for kind in kinds}}
    if asked not in types:
        raise UnknownModelError(
            f"transformers' {asked!r} is not a class that clipcheck supports",
            remedy=f"{nearest(name, [f'{TRANSFORMERS}{each}' for each in types])}; it supports "
            f"{supported()}.",
        )
    source = f"transformers' defaults of {asked}"
    config = {**default_config(types[asked]), "architectures": [asked]}
    model, note = read_transformers(config, Path(source))
    return Told(model, source, name, note, own_of_transformers(config))


# --------------------------------------------------------------------------- open_clip's names


def _of_open_clips(name: str) -> Told:
    model, _, tag = name.removeprefix(OPEN_CLIP).partition("/")
    if model not in _open_clip_files():
        raise _unknown(name)
    told = of_file(_open_clip_files()[model], model)
    if isinstance(told.model, LibraryArchitecture):
        return _of_library(told.model, model, tag, name)
    found = told.model
    tags = _tags(model)
    if tag:
        _require_tag(model, tag, tags)
        return Told(trained(found, quick=tags[tag]), f"open_clip's {model} and its tag {tag}", name)
    note = _other_tags(model, found, tags)
    return Told(found, f"open_clip's configuration {model}", name, note)


def _require_tag(model: str, tag: str, tags: Mapping[str, bool]) -> None:
    if tag not in tags:
        raise UnknownModelError(
            f"open_clip has no weights {tag!r} of {model}",
            remedy=f"{nearest(tag, tags)}." if tags else "Leave the tag out.",
        )


def _of_library(found: LibraryArchitecture, model: str, tag: str, name: str) -> Told:
    """Return a configuration for open_clip's own modules, with the activation and preprocessing of
    a tag; by default, with the preprocessing of its first tag."""
    tags = _tags(model)
    if tag:
        _require_tag(model, tag, tags)
    chosen = tag or next(iter(tags), "")
    settings = found.settings
    settings["preprocess_cfg"] = _preprocessing(model, chosen) if chosen else {}
    if tag:
        settings["model_cfg"]["quick_gelu"] = tags[tag]
    of = f"open_clip's {model} and its tag {tag}" if tag else f"open_clip's configuration {model}"
    return Told(replace(found, config=json.dumps(settings, sort_keys=True)), of, name)


def _preprocessing(model: str, tag: str) -> dict[str, Any]:
    from open_clip.pretrained import get_pretrained_cfg

    config = get_pretrained_cfg(model, tag)
    return {key: config[key] for key in _PREPROCESSING if config.get(key) is not None}


_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


def _other_tags(model: str, found: Architecture, tags: Mapping[str, bool]) -> str:
    """List a configuration's tags with another activation, and the name to use for them."""
    quick = found.text_blocks.activation is Activation.QUICK_GELU
    others = [tag for tag, trained in tags.items() if trained != quick]
    if not others:
        return ""
    other = trained(found, quick=not quick).text_blocks.activation.label
    alike = f"{model}-quickgelu"
    use = f"{OPEN_CLIP}{alike}" if alike in _open_clip_files() else f"{OPEN_CLIP}{model}/TAG"
    return f"its tags {', '.join(others)} use {other}: {use}"


def trained(architecture: Architecture, *, quick: bool) -> Architecture:
    """Return the architecture for weights that were trained with QuickGELU, or without."""
    activation = architecture.text_blocks.activation
    if quick:
        return architecture.with_blocks(activation=Activation.QUICK_GELU)
    if activation is Activation.QUICK_GELU:
        return architecture.with_blocks(activation=Activation.GELU)
    return architecture


def _tags(model: str) -> dict[str, bool]:
    """Return by tag of an open_clip model whether it was trained with QuickGELU."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    return {
        tag: bool(get_pretrained_cfg(model, tag).get("quick_gelu", False))
        for tag in list_pretrained_tags_by_model(model)
    }


@functools.cache
def _open_clip_files() -> dict[str, Path]:
    """Return the paths of open_clip's configurations by name, without importing it, which takes
    seconds."""
    spec = importlib.util.find_spec("open_clip")
    folders = spec.submodule_search_locations if spec is not None else None
    found = Path(folders[0]).glob("model_configs/*.json") if folders else ()
    return {path.stem: path for path in sorted(found)}


@functools.cache
def _open_clip_architecture(model: str) -> Architecture:
    found = of_file(_open_clip_files()[model], model).model
    if isinstance(found, LibraryArchitecture):
        raise ArchitectureError(
            f"{model} is {found.describe()}",
            remedy="Give a folder with its open_clip_config.json.",
        )
    return found


def _unknown(name: str) -> UnknownModelError:
    known = [*ARCHITECTURES, *(f"{OPEN_CLIP}{model}" for model in _open_clip_files())]
    known += [f"{TRANSFORMERS}{kind.name}" for kind in KINDS.values()]
    return UnknownModelError(
        f"expected a released name, {OPEN_CLIP}NAME, {TRANSFORMERS}CLASS, or the path of an "
        f"open_clip_config.json or a config.json; found {name!r}",
        remedy=f"{nearest(name, known)}.",
    )


def candidates(found: Architecture) -> list[tuple[str, list[str]]]:
    """List the known models of these dimensions: for each activation, heads and epsilon, a
    description and the names."""
    by_function: dict[str, list[str]] = {}
    for name, known in _known():
        if known.dimensions == found.dimensions:
            by_function.setdefault(known.summary(), []).append(name)
    return list(by_function.items())


def _known() -> Iterator[tuple[str, Architecture]]:
    yield from ARCHITECTURES.items()
    for model in _open_clip_files():
        try:
            yield f"{OPEN_CLIP}{model}", _open_clip_architecture(model)
        except ArchitectureError:  # clipcheck does not build this one
            continue


def require_dimensions(told: Told, found: Architecture, path: Path) -> None:
    """Raise if weights do not have the dimensions of an architecture.

    Raises:
        ArchitectureError: the message lists the differences.
    """
    if found.computing_as(told.architecture) != told.architecture:
        unlike = listed("", differences(told.architecture, found))
        raise ArchitectureError(
            f"its weights do not fit the model of {told.source}, which has {unlike}",
            remedy="Give the architecture or the configuration that belongs to the weights.",
            path=path,
        )


# --------------------------------------------------------------------------- beside weights


def telling(
    path: Path,
    found: Architecture,
    computes: str | None,
    record: Mapping[str, object],
    *,
    archive: bool,
) -> tuple[Told | None, str]:
    """Find the activation, heads and epsilon of a file of weights.

    Args:
        computes: the output of `encode` in the file, or None.
        record: the values that training code saved beside the weights.
        archive: whether the file has code; a configuration beside it need not belong to it.

    Returns:
        The architecture, or None and the reason why it is not known.
    """
    if computes is not None:
        told = decode(computes, found)
        return (
            (None, "its metadata was altered")
            if told is None
            else (Told(told, "its own metadata"), "")
        )
    name = record.get("name")
    of_record, open_question = of_run(name, found)
    if of_record is not None or open_question or archive:
        return of_record, open_question
    beside, doubts = _beside(path, found)
    if beside is not None:
        return beside, ""
    return None, "; ".join(filter(None, [_of_name(name, found), doubts]))


def _beside(path: Path, found: Architecture) -> tuple[Told | None, str]:
    """Read the configurations in a file's folder: all that fit the weights must agree."""
    told: list[Told] = []
    doubts = []
    for name in (TRANSFORMERS_CONFIG, OPEN_CLIP_CONFIG):
        config = path.with_name(name)
        if not config.is_file():
            continue
        try:
            described = of_file(config, f"the {name} beside it")
        except CheckpointError as error:
            doubts.append(f"the {name} beside it cannot be used ({error.problem})")
            continue
        if isinstance(described.model, LibraryArchitecture):
            doubts.append(f"{described.source} is of {described.model.describe()}")
            continue
        unlike = listed("", differences(described.model, found))
        if unlike:
            doubts.append(f"{described.source} is of another model ({unlike})")
        else:
            told.append(described)
    if len({each.model for each in told}) > 1:
        return None, f"the {TRANSFORMERS_CONFIG} and the {OPEN_CLIP_CONFIG} beside it disagree"
    return (told[0], "") if told else (None, "; ".join(doubts))


# --------------------------------------------------------------------------- records

_RUN = re.compile(
    r"\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d-model_(?P<model>.+)-lr_[^-]+(?:-\d+)?-b_\d+-j_\d+-p_\w+"
)
"""Default name that open_clip's training gives a run (open_clip_train/main.py)."""


def of_run(name: object, found: Architecture) -> tuple[Told | None, str]:
    """Find a model's activation, heads and epsilon from the name of an open_clip training run.

    A run with ``--force-quick-gelu`` has the same name as one without. So the name is sufficient
    only for a configuration with QuickGELU.

    Returns:
        The architecture, or None and the reason why it is not known.
    """
    run = _RUN.fullmatch(name) if isinstance(name, str) else None
    model = run["model"] if run else ""
    if model not in _open_clip_files():
        return None, ""
    computing, doubt = _recorded(model, found)
    if computing is None:
        return None, doubt
    if computing.text_blocks.activation is Activation.QUICK_GELU:
        return Told(computing, f"the name of its training run, with open_clip's {model}"), ""
    return None, (
        f"its record says that it was trained as open_clip's {model}, but does not say whether "
        "with --force-quick-gelu"
    )


def _of_name(name: object, found: Architecture) -> str:
    """Explain why the name of a run is not sufficient, if it is the name of a model."""
    model = str(name).replace("/", "-")
    if model not in _open_clip_files():
        return ""
    _, doubt = _recorded(model, found)
    return doubt or f"its record has the name {name}, which a user may choose freely for a run"


def _recorded(model: str, found: Architecture) -> tuple[Architecture | None, str]:
    """Return the open_clip model that a record names, with the weights' image and text sizes, which
    a run may have changed; or None and the reason why the weights are not of this model."""
    try:
        recorded = _open_clip_architecture(model)
    except ArchitectureError as error:
        return None, f"its record says open_clip's {model}: {error.problem}"
    same = replace(
        recorded, image_resolution=found.image_resolution, context_length=found.context_length
    )
    unlike = listed("", differences(same, found))
    if unlike:
        return None, f"its record names open_clip's {model}, whose sizes differ: {unlike}"
    return found.computing_as(recorded), ""


def encode(architecture: Architecture) -> str:
    """Write the activation, heads and epsilon of an architecture as JSON."""
    vision = architecture.vision
    image = asdict(vision.blocks) if isinstance(vision, ViT) else {"head_width": vision.head_width}
    return json.dumps({"image": image, "text": asdict(architecture.text_blocks)})


def decode(text: str, found: Architecture) -> Architecture | None:
    """Return the architecture with the output of `encode`, or None if that is invalid."""
    try:
        told = json.loads(text)
        blocks = _blocks(told["text"], found.text_width, found.text_blocks)
        vision = found.vision
        if isinstance(vision, ViT):
            image = _blocks(told["image"], vision.width, vision.blocks)
            return replace(found, vision=replace(vision, blocks=image), text_blocks=blocks)
        head_width = _head_width(told["image"], vision.embed_width)
        return replace(found, vision=replace(vision, head_width=head_width), text_blocks=blocks)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _blocks(told: Mapping[str, Any], width: int, found: Blocks) -> Blocks:
    epsilon = told["epsilon"]
    if type(epsilon) is not float or not 0 < epsilon <= 1:
        raise ValueError("no epsilon")
    return Blocks(
        _head_width(told, width), found.mlp_ratio, Activation(told["activation"]), epsilon
    )


def _head_width(told: Mapping[str, Any], width: int) -> int:
    head_width = told["head_width"]
    if type(head_width) is not int or head_width < 1 or width % head_width:
        raise ValueError("no width of a head")
    return head_width
