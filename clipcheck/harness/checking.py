"""Check checkpoints: the arguments, looked at, and what comes of each."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from clipcheck._version import __version__
from clipcheck.backends.artefacts import default_folder
from clipcheck.backends.cells import isolation_named, prepare
from clipcheck.backends.registry import chosen
from clipcheck.checkpoints import registry
from clipcheck.checkpoints.opening import size_of
from clipcheck.checkpoints.told import named
from clipcheck.errors import UsageError, nearest
from clipcheck.gates.tolerances import LIMITS, Allclose
from clipcheck.harness.matrix import Device, Judge, Plan
from clipcheck.inputs.batches import CORNERS
from clipcheck.results.judgement import Judgement, LeftOut, Result
from clipcheck.system.progress import Progress, Span, silent

if TYPE_CHECKING:
    import torch

EXAMPLES = CORNERS + 12
"""Images that are compared by default: the corners, and two batches that Hypothesis draws."""

Names = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Devices: TypeAlias = "Device | Sequence[str | torch.device]"
Dtypes = str | Sequence[str] | None
Backends = str | Sequence[str] | None

_DTYPES = {"half": "float16", "bf16": "bfloat16", "float": "float32"}
"""Names of dtypes that are spelled like another one."""

_NOT_NAMES = (str, bytes, os.PathLike, Mapping)
"""What can be iterated over and is no list of names: a state dict among others."""


def check(
    checkpoints: Names,
    *,
    backend: Backends = None,
    key: str | None = None,
    reference: str | os.PathLike[str] | None = None,
    architecture: str | os.PathLike[str] | None = None,
    device: Devices = None,
    dtype: Dtypes = None,
    examples: int = EXAMPLES,
    exhaustive: bool = False,
    seed: int = 0,
    atol: float = Allclose.atol,
    rtol: float = Allclose.rtol,
    cache: bool = True,
    isolation: str | None = None,
    download_root: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Run each checkpoint in other ways than as an eager model, and compare with that.

    Args:
        checkpoints: paths of files, or released names; one or several.
        backend: the ways to run it, one or several, as ``NAME`` or ``NAME:OPTION=VALUE,...``
            (`clipcheck.backends.registry.BACKENDS`); ``all`` for each that fits. By default the one
            that the file is made for: ``jit`` for an archive.
        key: which model to read of a training checkpoint that holds several, such as ``model_ema``;
            parts are joined by dots, as ``state_dict.teacher``.
        reference: another checkpoint, whose eager model all are compared with: by default the
            eager model of the checkpoint itself.
        architecture: what the checkpoints are of: a released name, ``open_clip:NAME``, or the path
            of an ``open_clip_config.json`` or a ``config.json``. Weights alone do not tell their
            activation, heads and epsilon, and are not judged without it.
        device: where to run, one or several; by default the GPU where there is one.
        dtype: what to compute in, one or several of float32, float16 and bfloat16. By default
            float32, and elsewhere than on the CPU the checkpoint's own as well.
        examples: number of images; the first `CORNERS` are the corners that every model should be
            tried on (`clipcheck.inputs.batches`), the others Hypothesis draws, as it does prompts
            (`clipcheck.inputs.strategies`).
        exhaustive: walk every token id, every length, and every position of an image as well.
        seed: of the images and prompts.
        atol: the absolute tolerance of the gate ``allclose``, on probabilities.
        rtol: its relative tolerance.
        cache: whether compiled and exported programs are kept for the next time, and taken from
            there.
        isolation: ``process`` runs the code of a file (an archive, a program) in a process of its
            own, which has no rights; ``none`` in this one, which is for files that are trusted. By
            default ``process``, but for the released files, which are known by their hash.
        download_root: where released files are kept.
        progress: called with a few words before each phase; one that is a
            `clipcheck.system.progress.Gauge` is also told how much is done.

    Returns:
        The result. A checkpoint that cannot be judged has its reason there and does not stop the
        others.

    Raises:
        UsageError: the arguments make no sense.
        UnknownModelError: there is no such architecture.
    """
    limits = limits_of(examples, atol, rtol)
    names = _files(checkpoints)
    devices = _several(device)
    if not names or not devices:
        raise UsageError("expected a checkpoint and a device, found none", remedy="Give one.")
    backends = () if backend is None else (backend,) if isinstance(backend, str) else backend
    plan = Plan(
        chosen(backends),
        limits,
        examples,
        exhaustive,
        seed,
        _known(dtype),
        None if reference is None else _file(reference, "a reference"),
        default_folder() if cache else None,
        isolation_named(isolation),
        download_root,
        run=uuid.uuid4().hex[:12],
        date=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        key=key,
        architecture=None if architecture is None else named(os.fspath(architecture)).argument,
    )
    prepare(names, plan.isolation)
    judge_one = Judge(plan)
    asked = [(name, where) for name in names for where in devices]
    spans = Span(progress or silent).split([_size(name) for name, _ in asked])
    found = [judge_one(*each, span) for each, span in zip(asked, spans, strict=True)]
    everything = [each for one in found for each in one]
    return Result(
        tuple(each for each in everything if isinstance(each, Judgement)),
        environment(),
        tuple(each for each in everything if isinstance(each, LeftOut)),
    )


def environment() -> dict[str, str]:
    """Versions of what computes, and the machine."""
    packages = ("torch", "torchvision", "numpy", "pillow")
    return {
        "clipcheck": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
    }


def _size(name: str) -> float:
    """Bytes, which the time to judge it goes by; 0 where there is no such file."""
    released = registry.RELEASED.get(name)
    return float(size_of(Path(name)) if released is None else released.size)


def _files(checkpoints: object) -> list[str]:
    """The checkpoints as they are named.

    Raises:
        UsageError: it is something else, such as a model.
    """
    # A module may be iterable, and an archive's then raises NotImplementedError.
    one = isinstance(checkpoints, _NOT_NAMES) or hasattr(checkpoints, "state_dict")
    if isinstance(checkpoints, Iterable) and not one:
        return [_file(each, "a checkpoint") for each in checkpoints]
    return [_file(checkpoints, "a checkpoint")]


def _file(name: object, what: str) -> str:
    if isinstance(name, str | os.PathLike):
        path = os.fspath(name)
        if isinstance(path, str):
            return path
    kind = f"{type(name).__module__}.{type(name).__qualname__}".removeprefix("builtins.")
    raise UsageError(
        f"expected the path or the released name of {what}, found an object of type {kind}",
        remedy="A file is judged, as it will be released. Save it and give its path: "
        "torch.jit.save(archive, PATH) for TorchScript, torch.save(model.state_dict(), PATH) for "
        "weights alone, which need a backend as well.",
    )


def _several(device: Devices) -> list[Device]:
    # torch.device is asked for by its absence: naming it would import torch.
    if isinstance(device, Sequence) and not isinstance(device, str):
        return list(device)
    return [device]


def _known(dtype: Dtypes) -> tuple[str, ...]:
    single = isinstance(dtype, str) or not isinstance(dtype, Iterable)
    names: tuple[Any, ...] = () if dtype is None else (dtype,) if single else tuple(dtype)
    for name in names:
        if name not in LIMITS:
            like = nearest(_DTYPES.get(name, str(name)), LIMITS)
            raise UsageError(
                f"expected a dtype, found {name!r}",
                remedy=f"{like}; all of them: {', '.join(LIMITS)}.",
            )
    return names


def limits_of(examples: int, atol: float, rtol: float) -> Allclose:
    """The limits of the gate ``allclose``, and that there is something to compare.

    Raises:
        UsageError: a number makes no sense.
    """
    if not isinstance(examples, int) or examples < 1:
        raise UsageError(
            f"expected at least 1 example, found {examples!r}",
            remedy=f"Leave it out for {EXAMPLES}.",
        )
    for name, value in (("atol", atol), ("rtol", rtol)):
        # Written so that NaN, which is not less than 0 either, is refused.
        if not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise UsageError(
                f"expected {name} to be a number of at least 0, found {value!r}",
                remedy=f"The classic value is {getattr(Allclose, name)}.",
            )
    return Allclose(atol, rtol)
