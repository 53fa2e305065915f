"""Write the report of a check into a folder: HTML page, text, JSON, and the failing inputs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clipcheck.checkpoints import towers
from clipcheck.errors import OutputError
from clipcheck.harness.checking import environment
from clipcheck.harness.search.saved import remove, write
from clipcheck.report import html, text
from clipcheck.report.text import failing_lines
from clipcheck.results import document as json
from clipcheck.results.failing import Failing
from clipcheck.results.judgement import Conditions, Judgement, Result, Subject
from clipcheck.system.width import WIDTH, lines_of
from clipcheck.writers.output import replacing

if TYPE_CHECKING:
    from clipcheck.sweep.run import Swept

_Result = TypeVar("_Result", bound=Result)

JSON = "results.json"
TEXT = "report.txt"
HTML = "report.html"
INPUTS = "failing-inputs"


def require_folder(folder: Path) -> None:
    """Create the folder and try to write to it, before a check starts.

    Raises:
        OutputError: the folder cannot be created or is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"expected a writable folder, found one that is not ({error.strerror or error})",
            remedy="Name another folder, or change the permissions of this one.",
            path=folder,
        ) from error


def keep(result: _Result, folder: Path) -> _Result:
    """Write `JSON`, `TEXT`, `HTML`, and a folder for each failing input.

    Args:
        result: of any verdict.
        folder: must exist.

    Returns:
        The result with the paths of its saved inputs.

    Raises:
        OutputError: a file cannot be written.
    """
    kept = keep_inputs(result, folder / INPUTS)
    keep_texts(kept, folder)
    return kept


def keep_texts(result: Result, folder: Path) -> None:
    """Write `JSON`, `TEXT` and `HTML`, the page last: it is the most likely to fail. Delete failing
    inputs of other runs.

    Args:
        result: of any verdict.
        folder: must exist.

    Raises:
        OutputError: a file cannot be written.
    """
    _remove_inputs_of_other_runs(result, folder / INPUTS)
    _write_files(
        {
            JSON: lambda: json.render(result),
            TEXT: lambda: text.render(result) + "\n",
            HTML: lambda: html.render(result),
        },
        folder,
    )


def keep_sweep(swept: Swept, folder: Path) -> None:
    """Write `JSON`, `TEXT` and `HTML` of a whole sweep, which saves no failing inputs.

    Args:
        swept: of any verdict.
        folder: must exist.

    Raises:
        OutputError: a file cannot be written.
    """
    from clipcheck.report import sweep

    found = sweep.result(swept)
    _remove_inputs_of_other_runs(found, folder / INPUTS)
    _write_files(
        {
            JSON: lambda: sweep.render_json(swept),
            TEXT: lambda: sweep.render(swept) + "\n",
            HTML: lambda: html.render(found),
        },
        folder,
    )


@lines_of(WIDTH)
def _write_files(forms: Mapping[str, Callable[[], str]], folder: Path) -> None:
    """Render and write one file after the other. If one fails, delete it and those after it, which
    would be of an earlier run."""
    missing = list(forms)
    try:
        for name, render in forms.items():
            contents = render()
            with replacing(folder / name) as temporary:
                temporary.write_text(contents, encoding="utf-8")
            missing.remove(name)
    finally:
        for name in missing:
            with suppress(OSError):  # do not hide the first error
                (folder / name).unlink()


def _remove_inputs_of_other_runs(result: Result, folder: Path) -> None:
    """Delete the failing inputs of other runs in a report's folder."""
    mine = {Path(each.saved).absolute() for each in result.judgements if each.saved is not None}
    try:
        there = list(folder.iterdir()) if folder.is_dir() else []
        for each in there:
            if each.absolute() not in mine:
                remove(each)
        if there and not any(folder.iterdir()):
            folder.rmdir()
    except OSError as error:
        raise OutputError(
            f"cannot delete the failing inputs of an earlier run ({error.strerror or error})",
            remedy="Delete them, or name another folder.",
            path=folder,
        ) from error


def keep_inputs(result: _Result, folder: Path | None = None) -> _Result:
    """Write a folder for each failing input that is not saved yet.

    Args:
        result: of any verdict.
        folder: parent of the new folders; default: a temporary one.

    Returns:
        The result with the paths of its saved inputs.

    Raises:
        OutputError: a file cannot be written.
    """
    if all(judgement.failing is None for judgement in result.judgements):
        return result
    where = folder or _new_folder()
    return replace(result, judgements=tuple(_save(each, where) for each in result.judgements))


def _new_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="clipcheck-"))
    except OSError as error:
        raise OutputError(
            f"expected a temporary folder for the failing inputs, found none "
            f"({error.strerror or error})",
            remedy="Free disk space, or name a folder with --report.",
        ) from error


@lines_of(WIDTH)
def _save(judgement: Judgement, folder: Path) -> Judgement:
    failing = judgement.failing
    if failing is None or failing.saved is not None or not judgement.replayable:
        return judgement
    target = folder / _folder_name(judgement)
    saved = replace(judgement, failing=replace(failing, saved=str(target)))
    text = "\n".join([judgement.checkpoint, *failing_lines(saved)])
    write(target, failing.example, _described(judgement, failing), text)
    return saved


def _folder_name(judgement: Judgement) -> str:
    """Return a folder's name from checkpoint, hash, backend, device and dtype."""
    stem = Path(judgement.path or judgement.checkpoint).stem
    parts = (stem, (judgement.sha256 or "")[:8], judgement.backend, judgement.device)
    return re.sub(r"[^\w.-]+", "-", "-".join((*parts, str(judgement.dtype))))


def _absolute(path: str | None) -> str | None:
    return None if path is None else towers.absolute(path)


def _described(judgement: Judgement, failing: Failing) -> dict[str, Any]:
    of_run = {each.name for group in (Subject, Conditions) for each in fields(group)}
    return {
        **{name: value for name, value in vars(judgement).items() if name in of_run},
        "checkpoint": _absolute(judgement.path) or judgement.checkpoint,
        "reference_checkpoint": _absolute(judgement.reference_checkpoint),
        "shrunk": failing.shrunk,
        "figures": {
            "output": failing.measure.output,
            "rmse_ratio": failing.measure.ratio,
            "allowed": failing.measure.allowed,
            "rmse": failing.measure.error,
        },
        "message": failing.measure.message,
        "environment": environment(),
    }
