"""Check checkpoints."""

from __future__ import annotations

import inspect
import os
import platform
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Concatenate, ParamSpec

from clipcheck._version import __version__
from clipcheck.backends.sandboxes import prepare
from clipcheck.checkpoints import registry
from clipcheck.checkpoints.opening import size_of
from clipcheck.harness.declarations import Device
from clipcheck.harness.matrix import Judge
from clipcheck.harness.named_files import Names, files_named
from clipcheck.harness.options import CheckOptions
from clipcheck.harness.pinned import PinnedJudge
from clipcheck.results.judgement import Judgement, LeftOut, Result
from clipcheck.results.kept import require_kept, write_kept
from clipcheck.results.pin import read_pin
from clipcheck.system.progress import Progress, Span, silent

_Options = ParamSpec("_Options")


def check_files(
    checkpoints: Names, options: CheckOptions, progress: Progress | None = None
) -> Result:
    """Compare each checkpoint in its backends with the eager model.

    Args:
        checkpoints: paths of files, or released names; one or several.
        options: of the check.
        progress: called with a text before each phase; a `clipcheck.system.progress.Gauge` also
            gets the share that is done.

    Returns:
        The result. A checkpoint that cannot be judged has an error there, and does not stop the
        others.

    Raises:
        UsageError: an object is not the name of a file.
        PinError: the pin cannot be used.
    """
    names = files_named(checkpoints)
    judge_one: Callable[[str, Device, Span], list[Judgement | LeftOut]]
    if options.pinned is None:
        prepare(names, options.apart)
        judge_one = Judge(options, *new_run())
    else:
        pin = read_pin(Path(options.pinned))
        judge_one = PinnedJudge(options, pin, *new_run())
    spans = Span(progress or silent).split([size_of_named(name) for name in names])
    found: list[Judgement | LeftOut] = []
    for number, (name, span) in enumerate(zip(names, spans, strict=True), 1):
        parts = zip(options.devices, span.split([1] * len(options.devices)), strict=True)
        mine = [each for device, part in parts for each in judge_one(name, device, part)]
        found += mine
        if options.fail_fast and not _passed(mine):
            found += stopped_after(name, names[number:])
            break
    return Result(
        tuple(each for each in found if isinstance(each, Judgement)),
        environment(),
        tuple(each for each in found if isinstance(each, LeftOut)),
    )


def new_run() -> tuple[str, str]:
    """Return an id for a run, and the present time."""
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return uuid.uuid4().hex[:12], now


def stopped_after(name: str, others: Sequence[str]) -> list[LeftOut]:
    """Return the remaining checkpoints as left out, because this one did not pass."""
    reason = f"{name} did not pass, and --fail-fast stops there"
    return [LeftOut(each, each, "", "", reason) for each in others]


def _passed(found: Sequence[Judgement | LeftOut]) -> bool:
    """Tell whether something was judged, and all of it passed."""
    judgements = [each for each in found if isinstance(each, Judgement)]
    return bool(judgements) and all(each.passed for each in judgements)


def _with_keywords(
    options: Callable[_Options, CheckOptions],
) -> Callable[Concatenate[Names, _Options], Result]:
    """Return `check_files` with the options as keyword arguments, in its signature as well."""

    def check(checkpoints: Names, /, *args: _Options.args, **keywords: _Options.kwargs) -> Result:
        """Compare checkpoints in their backends with the eager model, against float64.

        Args:
            checkpoints: paths of files, or released names; one or several.
            args: none.
            keywords: the options, see `clipcheck.CheckOptions`.

        Returns:
            The result. A checkpoint that cannot be judged has an error there, and does not stop
            the others.

        Raises:
            UsageError: the arguments are invalid.
            UnknownModelError: there is no such architecture.
            OutputError: the outputs cannot be kept.
        """
        how = options(*args, **keywords)
        if how.keep_outputs is not None:
            require_kept(Path(how.keep_outputs))
        result = check_files(checkpoints, how)
        if how.keep_outputs is not None:
            write_kept(result, Path(how.keep_outputs))
        return result

    own, *_ = inspect.signature(check).parameters.values()
    taken = inspect.signature(options)
    check.__signature__ = taken.replace(  # type: ignore[attr-defined]
        parameters=[own, *taken.parameters.values()], return_annotation="Result"
    )
    return check


check = _with_keywords(CheckOptions)


def environment() -> dict[str, str]:
    """Return the versions of the libraries that compute, and the machine."""
    packages = ("torch", "torchvision", "numpy", "pillow")
    return {
        "clipcheck": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
    }


def size_of_named(name: str) -> float:
    """Return the bytes of a checkpoint, to estimate the time; 0 if there is no such file."""
    released = registry.RELEASED.get(name)
    return float(size_of(Path(name)) if released is None else released.size)
