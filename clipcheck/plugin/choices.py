"""Options of a run of pytest, read and refused before any test runs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from clipcheck.checkpoints.architecture import ARCHITECTURES
from clipcheck.checkpoints.registry import available_models
from clipcheck.errors import ClipcheckError, OutputError, UnknownModelError, UsageError
from clipcheck.gates.registry import gates_in
from clipcheck.harness.configuration import options_of, read_configuration, without_overruled
from clipcheck.harness.options import CheckOptions
from clipcheck.plugin.subjects import SEEDED, size
from clipcheck.results.configuration import Configuration

SEEDED_MODELS = ("tiny-vit", "tiny-resnet", "ViT-B/32")
"""The architectures of ``--clip-seeded`` alone, which take a minute: two of them small."""

NO_MODEL = "no-model"
"""Stands in the id of a test that asks for a checkpoint where none is given."""

GIVE_A_MODEL = (
    "--clip-model: expected the checkpoint to judge, found none. Give its path or its released "
    "name, or ask for seeded weights with --clip-seeded."
)

NAMES = ("clip_gate", "clip_model", "clip_backend", "clip_device", "clip_dtype")
"""Names of the fixtures that a test can ask for, in the order in which they stand in its id."""

_LEAVE_OUT = "Give one, or leave the option out."

DEFAULT_BACKENDS = ("jit",)
"""The ways to run a checkpoint that are compared with the eager model, where none is named."""


def gates_of(backend: str, dtype: str, *, reference: bool = False) -> tuple[str, ...]:
    """Return the gates that judge: some backends alone are looked into, module by module."""
    # Here, for it imports numpy, which a run without these options has no use for.
    from clipcheck.backends.registry import parse

    return gates_in(dtype, modules=parse(backend).backend.runs_modules, reference=reference)


@dataclass(frozen=True)
class Choices:
    """The checkpoints to judge, and how.

    Attributes:
        models: released names, paths, and ``seeded:`` with an architecture; large ones first. None
            where none was given: then nothing can be judged.
        devices: as torch names them.
        backends: as `clipcheck.backends.registry.Choice` writes them.
        dtypes: the names of dtypes; none for those that suit each device.
        options: of each check, but for its backend, device and dtype.
        report: the folder that the reports are written to, if they are asked for.
        configuration: the options that came from a file.
    """

    models: tuple[str, ...]
    devices: tuple[str, ...]
    backends: tuple[str, ...]
    dtypes: tuple[str, ...]
    options: CheckOptions
    report: Path | None
    configuration: Configuration = field(default_factory=Configuration)

    @classmethod
    def of(cls, option: Callable[[str], Any], folder: Path) -> Choices:
        """Read the options.

        Args:
            option: gives what was written for the option of that name, or None.
            folder: what paths start from.

        Raises:
            UsageError: one of them makes no sense; the message names it.
        """
        report = option("--clip-report")
        configuration = read_configuration(folder)
        given = _given_options(option, folder)
        options = options_of(configuration, given)
        return cls(
            models=_models(option("--clip-model"), option("--clip-seeded"), folder),
            devices=_once([str(each) for each in options.devices if each] or ["cpu"]),
            backends=_backends(
                options, "--clip-backend" if "backend" in given else configuration.file
            ),
            dtypes=_once(options.dtypes),
            options=replace(options, backend=None, device=None, dtype=None),
            report=None if report is None else folder / _given("--clip-report", report),
            configuration=without_overruled(configuration, given),
        )

    def dtypes_on(self, device: str) -> tuple[str, ...]:
        """Return the dtypes for that device: by default float32, and half where it is fast."""
        if self.dtypes:
            return self.dtypes
        return ("float32",) if device.startswith("cpu") else ("float32", "float16")

    def combinations(self, names: Sequence[str]) -> list[dict[str, str]]:
        """Every combination of what is asked for by name: all that is judged of one checkpoint on
        one device stands together, large checkpoints first."""
        found = [{name: each[name] for name in names} for each in self._all()]
        return [dict(pairs) for pairs in dict.fromkeys(tuple(each.items()) for each in found)]

    def _all(self) -> Iterator[Mapping[str, str]]:
        reference = self.options.reference is not None
        for model, device in product(self.models or (NO_MODEL,), self.devices):
            for backend, dtype in product(self.backends, self.dtypes_on(device)):
                for gate in gates_of(backend, dtype, reference=reference):
                    if gate in self.options.gates:
                        yield {
                            "clip_gate": gate,
                            "clip_model": model,
                            "clip_backend": backend,
                            "clip_device": device,
                            "clip_dtype": dtype,
                        }

    def pairs(self) -> list[tuple[str, str]]:
        """Each checkpoint with each device, large checkpoints first: what one worker does."""
        return list(product(self.models, self.devices))


def require_there(choices: Choices, folder: Path) -> None:
    """Look whether all that was chosen is there, and whether the reports can be written.

    Raises:
        ClipcheckError: something is not; the message tells what to choose instead.
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
    if model in available_models() or (folder / model).exists():
        return
    if model in ARCHITECTURES:
        raise UnknownModelError(
            f"--clip-model: {model} has no released weights",
            remedy=f"Ask for seeded ones: --clip-model {SEEDED}{model}.",
        )
    names = ", ".join(available_models())
    raise UnknownModelError(
        f"--clip-model: expected an existing file or a released name, found {model!r}",
        remedy=f"{_nearest(model, available_models())}Released names are {names}.",
    )


def _require_architecture(name: str) -> None:
    if name not in ARCHITECTURES:
        raise UnknownModelError(
            f"--clip-model: expected an architecture to seed the weights of, found {name!r}",
            remedy=f"{_nearest(name, ARCHITECTURES)}Known are {', '.join(ARCHITECTURES)}. A file "
            f"is judged without --clip-seeded and {SEEDED!r}.",
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
    # Resolving would set CUDA up, and take memory of a GPU that this process does not use.
    if (device == "cuda" and count) or (index.isdigit() and int(index) < count):
        return
    from clipcheck.models.loader import resolve_device

    try:
        resolve_device(device)
    except ClipcheckError as error:
        remedy = "Choose cpu, or what this machine and this torch have of cuda, cuda:1 and mps."
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
        _given("--clip-model", each)
    prefix = SEEDED if seeded else ""
    named = [f"{prefix}{name.removeprefix(prefix)}" for each in chosen for name in _expanded(each)]
    return tuple(sorted(_once(named), key=lambda model: -size(model, folder)))


def _expanded(model: str) -> Sequence[str]:
    """The names that one name stands for: ``all`` for the released ones."""
    if model.removeprefix(SEEDED) != "all":
        return [model]
    return [model.replace("all", name) for name in available_models()]


def _given(option: str, written: str) -> str:
    """See that an option is not empty, as one from an unset variable is."""
    if not written.strip():
        raise UsageError(
            f"{option}: expected a name or a path, found {written!r}",
            remedy="Give one, or leave the option out.",
        )
    return written


def _given_options(option: Callable[[str], Any], folder: Path) -> dict[str, Any]:
    """Read the options of a check that were given to pytest."""
    reads: Mapping[str, Callable[[str, Any], Any]] = {
        "backend": lambda _, names: names,
        "device": lambda _, names: names,
        "dtype": lambda _, names: names,
        "atol": _number,
        "rtol": _number,
        "examples": _whole,
        "seed": _whole,
        "isolation": _given,
        "key": _given,
        # A path starts from the folder, as all do.
        "architecture": lambda _, name: str(folder / name) if (folder / name).is_file() else name,
    }
    written = {field: option(f"--clip-{field}") for field in reads}
    return {
        field: _checked(field, reads[field](f"--clip-{field}", text))
        for field, text in written.items()
        if text is not None
    }


def _checked(field: str, value: Any) -> Any:
    """The value of one of the options of a check.

    Raises:
        ClipcheckError: it makes no sense; the message begins with the option.
    """
    try:
        CheckOptions(**{field: value})
    except ClipcheckError as error:
        problem = error.problem.removeprefix(f"--{field}: ")
        raise type(error)(f"--clip-{field}: {problem}", remedy=error.remedy) from error
    return value


def _backends(options: CheckOptions, where: str) -> tuple[str, ...]:
    if not options.backends:
        return DEFAULT_BACKENDS
    # Here, for it imports numpy, which a run without these options has no use for.
    from clipcheck.backends.registry import ALL, require_available

    if ALL in options.backends:
        raise UsageError(
            f"{where}: expected the names of backends, found {ALL!r}",
            remedy="Name each; `clipcheck backends` lists those that can run here.",
        )
    for choice in options.choices:
        try:
            require_available(choice)
        except ClipcheckError as error:
            raise type(error)(f"{where}: {error.problem}", remedy=error.remedy) from error
    return tuple(str(choice) for choice in options.choices)


def _once(chosen: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chosen))


def _number(option: str, written: str) -> float:
    try:
        return float(written)
    except ValueError:
        raise UsageError(
            f"{option}: expected a number, found {written!r}", remedy=_LEAVE_OUT
        ) from None


def _whole(option: str, written: str) -> int:
    try:
        return int(written)
    except ValueError:
        raise UsageError(
            f"{option}: expected a whole number, found {written!r}", remedy=_LEAVE_OUT
        ) from None
