"""The plugin's options, read and validated before any test runs."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from clipcheck.backends.names import OF_ARCHIVES
from clipcheck.checkpoints import towers
from clipcheck.checkpoints.architecture import ARCHITECTURES
from clipcheck.checkpoints.registry import available_models
from clipcheck.errors import ClipcheckError, OutputError, UnknownModelError, UsageError
from clipcheck.gates.registry import gates_in
from clipcheck.harness.configuration import options_of, read_configuration, without_overruled
from clipcheck.harness.declarations import OPTIONS
from clipcheck.harness.declared import Declared
from clipcheck.harness.options import CheckOptions
from clipcheck.plugin.offered import OF_A_CHECK, SEEDED_MODELS
from clipcheck.plugin.subjects import SEEDED, size
from clipcheck.results.configuration import Configuration

NO_MODEL = "no-model"
"""Part of a test's id, in place of the checkpoint, if none is given."""

GIVE_A_MODEL = (
    "--clip-model: expected the checkpoint to judge, found none. Give its path or its released "
    "name, or use --clip-seeded for seeded weights."
)

NAMES = ("clip_gate", "clip_model", "clip_backend", "clip_device", "clip_dtype")
"""Names of the parametrized fixtures, in the order of a test's id."""

_LEAVE_OUT = "Give one, or leave the option out."


_WEIGHTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
"""Suffixes of archives and weights, which are no programs."""


@functools.cache
def _format_of_program(path: Path) -> str | None:
    """Return the format of a program; None for anything else, and for what cannot be read: its
    check reports that."""
    # What follows imports numpy, which idle workers and other runs of pytest do not need.
    there = towers.split(path) or os.path.exists(path)  # noqa: PTH110 - of any name
    if not there or path.suffix in _WEIGHTS:
        return None
    from clipcheck.checkpoints.opening import format_of_program

    with suppress(ClipcheckError):
        return format_of_program(path)
    return None


def _default_backend(program: str | None) -> str:
    """Return the backend for a program's format, or for an archive."""
    if program is None:
        return OF_ARCHIVES
    from clipcheck.backends.registry import default_for
    from clipcheck.checkpoints.checkpoint import Format

    return default_for(Format(program))


def gates_for(
    backend: str, dtype: str, *, reference: bool = False, budget: bool = False
) -> tuple[str, ...]:
    """Return the gates for a backend and dtype: ``modules`` needs a backend that runs modules."""
    modules = _runs_modules(backend)
    return gates_in(dtype, modules=modules, reference=reference, budget=budget)


def _runs_modules(backend: str) -> bool:
    """Return whether a backend runs modules, at least of some checkpoints; the default one does."""
    if backend == OF_ARCHIVES:
        return True
    # Imported here because it imports numpy, which other runs of pytest and idle workers do not
    # need.
    from clipcheck.backends.registry import parse

    named = parse(backend).backend
    return named.runs_modules or named.may_run_modules


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The checkpoints to judge, and how.

    Attributes:
        models: released names, paths, and ``seeded:ARCHITECTURE``, the largest first; may be empty.
        devices: by torch's names.
        backends: as `clipcheck.backends.registry.Choice` writes them; empty for the default of each
            file's format.
        dtypes: names of dtypes; empty for the defaults of each device.
        options: of each check, without backend, device and dtype.
        report: folder for the reports, or None.
        folder: to which paths are relative.
        configuration: options that came from a file.
    """

    models: tuple[str, ...]
    devices: tuple[str, ...]
    backends: tuple[str, ...]
    dtypes: tuple[str, ...]
    options: CheckOptions
    report: Path | None
    folder: Path
    configuration: Configuration = field(default_factory=Configuration)

    @classmethod
    def of(cls, option: Callable[[str], Any], folder: Path) -> Choices:
        """Read the options.

        Args:
            option: returns the value of the option of this name, or None.
            folder: to which paths are relative.

        Raises:
            UsageError: an option is invalid; the message names it.
        """
        report = option("--clip-report")
        configuration = read_configuration(folder)
        given = _given_options(option, folder)
        options = options_of(configuration, given)
        return cls(
            models=_models(option("--clip-model"), option("--clip-seeded"), folder),
            devices=_without_repeats([str(each) for each in options.devices if each] or ["cpu"]),
            backends=_backends(
                options, "--clip-backend" if "backend" in given else configuration.file
            ),
            dtypes=_without_repeats(options.dtypes),
            options=replace(options, backend=None, device=None, dtype=None),
            report=None if report is None else folder / _require_not_blank("--clip-report", report),
            folder=folder,
            configuration=without_overruled(configuration, given),
        )

    def dtypes_on(self, device: str) -> tuple[str, ...]:
        """Return the dtypes for this device; by default float32, and float16 except on the CPU."""
        if self.dtypes:
            return self.dtypes
        return ("float32",) if device.startswith("cpu") else ("float32", "float16")

    def gates_of(self, model: str, backend: str, dtype: str) -> list[str]:
        """Return the gates that judge a checkpoint in a backend and dtype."""
        options = self.options
        # The weights of a program are judged by integrity.
        program = _format_of_program(towers.within(self.folder, model)) is not None
        applying = gates_for(
            backend,
            dtype,
            reference=options.reference is not None and not program,
            budget=options.budget is not None,
        )
        return [gate for gate in applying if gate in options.gates]

    def combinations(self, names: Sequence[str]) -> list[dict[str, str]]:
        """Return every combination of these fixtures' values.

        Those of one checkpoint and device are adjacent, the largest checkpoints first.
        """
        found = [{name: each[name] for name in names} for each in self._all()]
        return [dict(pairs) for pairs in dict.fromkeys(tuple(each.items()) for each in found)]

    def _all(self) -> Iterator[Mapping[str, str]]:
        for model, device in product(self.models or (NO_MODEL,), self.devices):
            program = _format_of_program(towers.within(self.folder, model))
            backends = self.backends or (_default_backend(program),)
            for backend, dtype in product(backends, self.dtypes_on(device)):
                for gate in self.gates_of(model, backend, dtype):
                    yield {
                        "clip_gate": gate,
                        "clip_model": model,
                        "clip_backend": backend,
                        "clip_device": device,
                        "clip_dtype": dtype,
                    }

    def pairs(self) -> list[tuple[str, str]]:
        """Return each checkpoint with each device, the largest first: one is a worker's task."""
        return list(product(self.models, self.devices))


def require_available_choices(choices: Choices, folder: Path) -> None:
    """Raise if a checkpoint or device is missing, or the reports cannot be written.

    Raises:
        ClipcheckError: the message names the choices that exist.
    """
    for model in choices.models:
        _require_model(model, folder)
    for device in choices.devices:
        _require_device(device)
    if choices.report is not None:
        _require_writable(choices.report)


def _require_model(model: str, folder: Path) -> None:
    if model.startswith(SEEDED):
        _require_architecture(model.removeprefix(SEEDED))
        return
    files = towers.split(towers.within(folder, model)) or (folder / model,)
    if model in available_models() or all(map(os.path.exists, files)):
        return
    if model in ARCHITECTURES:
        raise UnknownModelError(
            f"--clip-model: {model} has no released weights",
            remedy=f"Use seeded weights: --clip-model {SEEDED}{model}.",
        )
    names = ", ".join(available_models())
    raise UnknownModelError(
        f"--clip-model: expected an existing file or a released name, found {model!r}",
        remedy=f"{_nearest(model, available_models())}Released names are {names}.",
    )


def _require_architecture(name: str) -> None:
    if name not in ARCHITECTURES:
        raise UnknownModelError(
            f"--clip-model: expected an architecture for seeded weights, found {name!r}",
            remedy=f"{_nearest(name, ARCHITECTURES)}Known are {', '.join(ARCHITECTURES)}. To judge "
            f"a file, leave out --clip-seeded and {SEEDED!r}.",
        )


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"The nearest name is {near[0]!r}. " if near else ""


def _require_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    index = device.removeprefix("cuda:")
    count = torch.cuda.device_count() if device.startswith("cuda") else 0
    # resolve_device would initialise CUDA, and use memory on a GPU that this process does not need.
    if (device == "cuda" and count) or (index.isdigit() and int(index) < count):
        return
    from clipcheck.models.loader import resolve_device

    try:
        resolve_device(device)
    except ClipcheckError as error:
        remedy = "Choose cpu, or a device of this machine that torch supports: cuda, cuda:1 or mps."
        raise type(error)(f"--clip-device: {error.problem}", remedy=remedy) from error


def _require_writable(folder: Path) -> None:
    from clipcheck.report.evidence import require_folder

    try:
        require_folder(folder)
    except OutputError as error:
        problem = f"--clip-report: {error.problem}"
        raise OutputError(problem, remedy=error.remedy, path=error.path) from error


def _models(written: Sequence[str] | None, seeded: bool | None, folder: Path) -> tuple[str, ...]:
    chosen = written or (SEEDED_MODELS if seeded else ())
    for each in chosen:
        _require_not_blank("--clip-model", each)
    prefix = SEEDED if seeded else ""
    named = [
        f"{prefix}{name.removeprefix(prefix)}" for each in chosen for name in _expand_all(each)
    ]
    return tuple(sorted(_without_repeats(named), key=lambda model: -size(model, folder)))


def _expand_all(model: str) -> Sequence[str]:
    """Return the released names for ``all``, and any other name as it is."""
    if model.removeprefix(SEEDED) != "all":
        return [model]
    return [model.replace("all", name) for name in available_models()]


def _require_not_blank(option: str, written: str) -> str:
    """Return the value; raise if it is blank, for example from an unset variable."""
    if not written.strip():
        raise UsageError(
            f"{option}: expected a name or a path, found {written!r}",
            remedy=_LEAVE_OUT,
        )
    return written


def _given_options(option: Callable[[str], Any], folder: Path) -> dict[str, Any]:
    """Read the options of a check that were given to pytest."""
    # Own data first, because no examples are possible with these alone.
    own = ("images", "prompts")
    given: dict[str, Any] = {}
    for name in (*own, *(name for name in OPTIONS if name not in own)):
        text = option(f"--clip-{name}") if name in OF_A_CHECK else None
        if text is not None:
            needed = {each: given[each] for each in own if each in given}
            given[name] = _validated(name, _read(OPTIONS[name], text, folder), needed)
    return given


def _read(declared: Declared, text: Any, folder: Path) -> Any:
    """Return the value of an option that pytest read as text, or as a list of texts.

    Raises:
        UsageError: it is blank, or no number.
    """
    option = f"--clip-{declared.key}"
    if declared.several:
        return text
    if declared.kind is not str:
        return _number(option, text, int if declared.kind is int else float)
    path = folder / _require_not_blank(option, text)
    # What may be a name as well is a path only if the file exists.
    named = declared.name == "architecture" and not path.is_file()
    return str(path) if declared.path and not named else text


def _validated(field: str, value: Any, own: Mapping[str, Any]) -> Any:
    """Return the value of an option of a check.

    Args:
        own: options for the user's own data, without which some values are refused.

    Raises:
        ClipcheckError: the value is invalid; the message begins with the option.
    """
    try:
        CheckOptions(**{**own, field: value})
    except ClipcheckError as error:
        problem = error.problem.removeprefix(f"--{field}: ")
        raise type(error)(f"--clip-{field}: {problem}", remedy=error.remedy) from error
    return value


def _backends(options: CheckOptions, where: str) -> tuple[str, ...]:
    if not options.backends:
        return ()
    # Imported here because it imports numpy, which other runs of pytest do not need.
    from clipcheck.backends.registry import ALL, require_available

    if ALL in options.backends:
        raise UsageError(
            f"{where}: expected the names of backends, found {ALL!r}",
            remedy="Name each backend; `clipcheck backends` lists those that can run here.",
        )
    for choice in options.choices:
        try:
            require_available(choice)
        except ClipcheckError as error:
            raise type(error)(f"{where}: {error.problem}", remedy=error.remedy) from error
    return tuple(str(choice) for choice in options.choices)


def _without_repeats(chosen: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chosen))


def _number(option: str, written: str, kind: type[float]) -> float:
    try:
        return kind(written)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UsageError(
            f"{option}: expected {what}, found {written!r}", remedy=_LEAVE_OUT
        ) from None
