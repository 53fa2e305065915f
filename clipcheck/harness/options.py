"""The options of a check, their defaults, and their validation.

The command line, the pytest plugin, a catalogue and `clipcheck.check` all make a `CheckOptions`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipcheck.errors import UsageError, nearest
from clipcheck.gates.tolerances import LIMITS, Allclose, Budget
from clipcheck.harness.declarations import EXAMPLES, OPTIONS, REQUIRED, Declarations, Device
from clipcheck.harness.declared import Value, documented
from clipcheck.harness.named_files import file_named

if TYPE_CHECKING:
    from pathlib import Path

    from clipcheck.backends.registry import Choice
    from clipcheck.backends.sandboxes import Isolation
    from clipcheck.inputs.own import OwnData

_OWN_BESIDE_A_PIN = (
    "The pin has no features of your own data: give the checkpoint in place of the pin, "
    "--reference CHECKPOINT."
)

_NOT_BESIDE_A_PIN = {
    "reference": "Leave out --reference, or --pinned.",
    "examples": "Leave out --examples; clipcheck pin --budget B writes a pin with more inputs.",
    "images": _OWN_BESIDE_A_PIN,
    "prompts": _OWN_BESIDE_A_PIN,
    "exhaustive": "Leave out --exhaustive, or give the checkpoint: --reference CHECKPOINT.",
    "seed": "Leave out --seed; clipcheck pin --seed N writes a pin with other inputs.",
}
"""Options that a pin excludes, each with what to do."""

_DTYPES = {"half": "float16", "bf16": "bfloat16", "float": "float32"}
"""Other names of dtypes, for the remedy."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions(Declarations):
    """How checkpoints are checked.

    Raises:
        UsageError: an option is invalid; the message names it.
        UnknownModelError: there is no such architecture.
    """

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
    def asked(self) -> dict[str, Value]:
        """The options that are not defaults, as plain values by name."""
        found = {each.name: (each, getattr(self, each.name)) for each in OPTIONS.values()}
        return {name: each.plain(v) for name, (each, v) in found.items() if v != each.default}

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
        from clipcheck.gates.registry import gates_named  # which the declarations do not need

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
        from clipcheck.backends.sandboxes import isolation_named

        return isolation_named(self.isolation)

    @property
    def told(self) -> str | None:
        """The architecture, with an absolute path if it is a file."""
        if self.architecture is None:
            return None
        from clipcheck.checkpoints.told import named

        return named(os.fspath(self.architecture)).argument


CheckOptions.__doc__ = documented(CheckOptions, OPTIONS.values())


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
            f"expected a seed of at least 0, found {options.seed!r}",
            remedy=f"Leave it out for {OPTIONS['seed'].default}.",
        )
    for name in (each.name for each in OPTIONS.values() if each.kind is float):
        value = getattr(options, name)
        # This form of the comparison also refuses NaN.
        number = _is_whole(value) or isinstance(value, float)
        if not number or not 0 <= value < float("inf"):
            raise UsageError(
                f"expected {name} to be a number of at least 0, found {value!r}",
                remedy=f"The classic value is {OPTIONS[name].default}.",
            )


def _require_inputs_of_pin(options: CheckOptions) -> None:
    """Raise if other inputs are asked for beside a pin, or another reference."""
    if options.pinned is None:
        return
    file_named(options.pinned, "a pin")
    for name, remedy in _NOT_BESIDE_A_PIN.items():
        if getattr(options, name) != OPTIONS[name].default:
            raise UsageError(
                f"expected no --{name} beside --pinned: a pin has its own inputs and reference",
                remedy=remedy,
            )


def _require_switches(options: CheckOptions) -> None:
    for name in (each.name for each in OPTIONS.values() if each.kind is bool):
        value = getattr(options, name)
        # The text "no" would count as true.
        if not isinstance(value, bool):
            raise UsageError(
                f"expected {name} to be True or False, found {value!r}",
                remedy="Give True or False.",
            )
