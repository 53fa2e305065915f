"""The options of a check, their defaults, and their validation.

The command line, the pytest plugin, a catalogue and `clipcheck.check` all make a `CheckOptions`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from clipcheck.errors import UsageError, nearest
from clipcheck.gates.registry import gates_named
from clipcheck.gates.tolerances import LIMITS, Allclose, Budget

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from clipcheck.backends.cells import Isolation
    from clipcheck.backends.registry import Choice
    from clipcheck.inputs.own import OwnData

DYNAMIC_BATCH = "dynamic-batch"
"""That a program runs any number of images and texts."""

_NOT_BESIDE_A_PIN = ("reference", "examples", "images", "prompts", "exhaustive", "seed")

REQUIRED = (DYNAMIC_BATCH,)

EXAMPLES = 30
"""Default number of images: the edge cases, and two batches that Hypothesis draws."""

Names: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Device: TypeAlias = "str | torch.device | None"

_DTYPES = {"half": "float16", "bf16": "bfloat16", "float": "float32"}
"""Other names of dtypes, for the remedy."""

_NOT_NAMES = (str, bytes, os.PathLike, Mapping)
"""Iterable types that are no list of names, such as a state dict."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How checkpoints are checked.

    Attributes:
        backend: one or several backends, as ``NAME`` or ``NAME:OPTION=VALUE,...``
            (`clipcheck.backends.names.BACKENDS`); ``all`` for each that fits. Default: by the
            file's format, ``jit`` for an archive.
        key: model to read from a training checkpoint that holds several, such as ``model_ema``;
            parts are joined by dots, as ``state_dict.teacher``.
        reference: checkpoint whose eager model is the reference. Default: the checkpoint itself.
        pinned: file that `clipcheck pin` wrote, in place of the reference; its inputs are used.
        architecture: of the checkpoints: a released name, ``open_clip:NAME``, or the path of an
            ``open_clip_config.json`` or a ``config.json``. Weights alone do not determine
            activation, heads and epsilon, and are not judged without it.
        map: what inputs and outputs of a program are that do not tell it themselves, one or
            several, as ``NAME=MEANING``: pixels, tokens, mask, positions, or an output.
        require: what a file has to do beside: ``dynamic-batch``, to run any number of rows.
        device: one or several. Default: the GPU if there is one.
        dtype: one or several of float32, float16 and bfloat16. Default: float32, and on a GPU also
            the checkpoint's own.
        examples: number of images. The first `clipcheck.inputs.batches.EDGE_CASES` are edge cases,
            Hypothesis draws the rest, and prompts (`clipcheck.inputs.strategies`). 0, only with
            ``images`` or ``prompts``, for the edge cases and these.
        images: folder of the user's own images, which run in addition: all files in it and below.
        prompts: text file in UTF-8 with a prompt of the user on each line, which run in addition.
        exhaustive: also run every token id, every length, and every position of an image.
        seed: of the images and prompts.
        atol: absolute tolerance of the gate ``allclose``, on probabilities.
        rtol: its relative tolerance.
        budget: limits of a candidate that is lossy on purpose, such as an int8 program: ``fp16``,
            ``bf16``, ``int8``, ``int4``, or limits such as ``cosine=0.99,top1=0.95``, see
            `clipcheck.gates.tolerances.Budget`. Default: none.
        select: gates to run, one or several. Default: all.
        ignore: gates to leave out, one or several; the verdict names them.
        keep_outputs: folder for the outputs that were compared, for `clipcheck rejudge`: a new one,
            or one of an earlier check. Default: none.
        fail_fast: whether to stop after the first checkpoint that does not pass.
        cache: whether to keep and reuse compiled and exported programs.
        isolation: ``process`` runs the code of a file (an archive, a program) in a sandbox process;
            ``none`` runs it in this one, for trusted files. Default: ``process``, except for
            released files, which are known by their hash.
        download_root: folder for released files.

    Raises:
        UsageError: an option is invalid; the message names it.
        UnknownModelError: there is no such architecture.
    """

    backend: str | Sequence[str] | None = None
    key: str | None = None
    reference: str | os.PathLike[str] | None = None
    pinned: str | os.PathLike[str] | None = None
    architecture: str | os.PathLike[str] | None = None
    map: str | Sequence[str] | None = None
    require: str | Sequence[str] | None = None
    device: Device | Sequence[str | torch.device] = None
    dtype: str | Sequence[str] | None = None
    examples: int = EXAMPLES
    images: str | os.PathLike[str] | None = None
    prompts: str | os.PathLike[str] | None = None
    exhaustive: bool = False
    seed: int = 0
    atol: float = Allclose.atol
    rtol: float = Allclose.rtol
    budget: str | None = None
    select: str | Sequence[str] | None = None
    ignore: str | Sequence[str] | None = None
    keep_outputs: str | os.PathLike[str] | None = None
    fail_fast: bool = False
    cache: bool = True
    isolation: str | None = None
    download_root: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Validate the options."""
        _require_numbers(self)
        _require_switches(self)
        if not self.devices:
            raise UsageError("expected a device, found none", remedy="Name a device.")
        for name in self.dtypes:
            _require_dtype(name)
        _ = self.gates
        _ = self.names
        for name in self.required:
            if name not in REQUIRED:
                raise UsageError(
                    f"expected require to be {' or '.join(REQUIRED)}, found {name!r}",
                    remedy=f"Give {' or '.join(REQUIRED)}, or leave the option out.",
                )
        if self.reference is not None:
            file_named(self.reference, "a reference")
        _require_inputs_of_pin(self)
        if self.keep_outputs is not None and (self.images or self.prompts):
            raise UsageError(
                "expected no --images or --prompts beside --keep-outputs: outputs of your own data "
                "are measured batch by batch, and not kept",
                remedy="Leave out --keep-outputs, or these.",
            )
        # Only options that were given are validated here: this imports numpy and more.
        if self.backends:
            _ = self.choices
        if self.isolation is not None:
            _ = self.apart
        _ = self.told
        _ = self.allowed_loss
        if self.images is not None or self.prompts is not None:
            _ = self.own

    @property
    def backends(self) -> tuple[str, ...]:
        """Backends as written; empty for the default of the file's format."""
        return _several(self.backend)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The backends with their options, each once; ``all`` expanded."""
        from clipcheck.backends.registry import chosen

        return chosen(self.backends)

    @property
    def names(self) -> Mapping[str, str]:
        """Meanings of inputs and outputs of a program, by their names.

        Raises:
            UsageError: it is not written so, or there is no such input or output of a model.
        """
        if self.map is None:
            return {}
        from clipcheck.backends.signature import ASKED, MEANINGS

        found: dict[str, str] = {}
        for written in _several(self.map):
            name, _, meaning = written.rpartition("=")
            if not name or meaning not in MEANINGS:
                known = f"{nearest(meaning, MEANINGS)}; all of them: {', '.join(MEANINGS)}."
                raise UsageError(
                    f"{ASKED}: expected NAME=MEANING, as image_embeds=image_features, found "
                    f"{written!r}",
                    remedy=known,
                )
            found[name] = meaning
        return found

    @property
    def required(self) -> tuple[str, ...]:
        """Names of `REQUIRED`."""
        return _several(self.require)

    @property
    def devices(self) -> tuple[Device, ...]:
        """Devices to run on; None for the default."""
        # A torch.device is no sequence; an isinstance test of it would import torch.
        if isinstance(self.device, Sequence) and not isinstance(self.device, str):
            return tuple(self.device)
        return (self.device,)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes; empty for the default of the device."""
        return _several(self.dtype)

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates that judge, in their order."""
        return gates_named(_several(self.select), _several(self.ignore))

    @property
    def limits(self) -> Allclose:
        """Limits of the gate ``allclose``."""
        return Allclose(self.atol, self.rtol)

    @property
    def allowed_loss(self) -> Budget | None:
        """Limits of the gate ``budget``, or None."""
        if self.budget is None:
            return None
        from clipcheck.gates.budget import parse_budget  # which imports numpy

        return parse_budget(self.budget)

    @property
    def own(self) -> OwnData:
        """The user's own images and prompts.

        Raises:
            UsageError: the folder or the file is not one, cannot be read, or has none.
        """
        from clipcheck.inputs.own import OwnData  # which imports numpy

        return OwnData.of(_path("images", self.images), _path("prompts", self.prompts))

    @property
    def artefacts(self) -> Path | None:
        """Folder of the cache of built artefacts; None without a cache."""
        from clipcheck.backends.artefacts import default_folder

        return default_folder() if self.cache else None

    @property
    def apart(self) -> Isolation | None:
        """Where the code of a file runs; None for the default."""
        from clipcheck.backends.cells import isolation_named

        return isolation_named(self.isolation)

    @property
    def told(self) -> str | None:
        """The architecture, with an absolute path if it is a file."""
        if self.architecture is None:
            return None
        from clipcheck.checkpoints.told import named

        return named(os.fspath(self.architecture)).argument


def files_named(checkpoints: object) -> list[str]:
    """Return the names of the checkpoints.

    Raises:
        UsageError: an object is no name but, for example, a model, or there is none.
    """
    # A module may be iterable, and an archive's then raises NotImplementedError.
    one = isinstance(checkpoints, _NOT_NAMES) or hasattr(checkpoints, "state_dict")
    if not isinstance(checkpoints, Iterable) or one:
        return [file_named(checkpoints, "a checkpoint")]
    names = [file_named(each, "a checkpoint") for each in checkpoints]
    if not names:
        raise UsageError("expected a checkpoint, found none", remedy="Name a checkpoint.")
    return names


def file_named(name: object, what: str) -> str:
    """Return a path or a released name as text.

    Raises:
        UsageError: the object is no name but, for example, a model.
    """
    if isinstance(name, str | os.PathLike):
        path = os.fspath(name)
        if isinstance(path, str):
            return path
    kind = f"{type(name).__module__}.{type(name).__qualname__}".removeprefix("builtins.")
    raise UsageError(
        f"expected the path or the released name of {what}, found an object of type {kind}",
        remedy="clipcheck judges files. Save it and give its path: torch.jit.save(archive, PATH) "
        "for TorchScript, torch.save(model.state_dict(), PATH) for weights alone, which also need "
        "a backend.",
    )


def _path(option: str, value: object) -> str | None:
    """Return a path as text."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    if path is None or isinstance(path, str):
        return path
    raise UsageError(f"expected {option} to be a path, found {value!r}", remedy="Give a path.")


def _several(chosen: str | Sequence[str] | None) -> tuple[str, ...]:
    single = isinstance(chosen, str) or not isinstance(chosen, Iterable)
    return () if chosen is None else (chosen,) if single else tuple(chosen)  # type: ignore[return-value]


def _require_dtype(name: object) -> None:
    if name not in LIMITS:
        like = nearest(_DTYPES.get(str(name), str(name)), LIMITS)
        raise UsageError(
            f"expected a dtype, found {name!r}",
            remedy=f"{like}; all of them: {', '.join(LIMITS)}.",
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require_numbers(options: CheckOptions) -> None:
    own = options.images is not None or options.prompts is not None
    if not _is_whole(options.examples) or options.examples < (0 if own else 1):
        alone = " without --images or --prompts" if options.examples == 0 else ""
        raise UsageError(
            f"expected at least 1 example{alone}, found {options.examples!r}",
            remedy=f"Leave it out for {EXAMPLES}.",
        )
    if not _is_whole(options.seed) or options.seed < 0:
        raise UsageError(
            f"expected a seed of at least 0, found {options.seed!r}", remedy="Leave it out for 0."
        )
    for name, value in (("atol", options.atol), ("rtol", options.rtol)):
        # This form of the comparison also refuses NaN.
        number = _is_whole(value) or isinstance(value, float)
        if not number or not 0 <= value < float("inf"):
            raise UsageError(
                f"expected {name} to be a number of at least 0, found {value!r}",
                remedy=f"The classic value is {getattr(Allclose, name)}.",
            )


def _require_inputs_of_pin(options: CheckOptions) -> None:
    """Raise if other inputs are asked for beside a pin, or another reference."""
    if options.pinned is None:
        return
    file_named(options.pinned, "a pin")
    for name in _NOT_BESIDE_A_PIN:
        default = getattr(CheckOptions, name)
        if getattr(options, name) != default:
            raise UsageError(
                f"expected no --{name} beside --pinned: a pin has its own inputs and reference",
                remedy=f"Leave out --{name}, or --pinned.",
            )


def _require_switches(options: CheckOptions) -> None:
    for name in ("exhaustive", "fail_fast", "cache"):
        value = getattr(options, name)
        # The text "no" would count as true.
        if not isinstance(value, bool):
            raise UsageError(
                f"expected {name} to be True or False, found {value!r}",
                remedy="Give True or False.",
            )
