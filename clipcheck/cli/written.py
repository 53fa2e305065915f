"""Write, check and report checkpoints, for several commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcheck.cli.output import print_line
from clipcheck.errors import OutputError, UsageError
from clipcheck.system.figures import size

if TYPE_CHECKING:
    from rich.text import Text

    from clipcheck.checkpoints.checkpoint import Format
    from clipcheck.results.judgement import Result
    from clipcheck.system.progress import Progress


def synthesize_at(
    path: Path, architecture: str, form: Format, seed: int, layers: int | None = None
) -> int:
    """Write a checkpoint with seeded weights.

    Args:
        path: of the file or folder to write.
        architecture: as for ``--architecture``.
        form: format to write.
        seed: of the weights.
        layers: of each tower; default: the architecture's.

    Returns:
        How many tensors were read back.
    """
    from clipcheck.checkpoints.checkpoint import FOLDER_FORMATS, Checkpoint, Format
    from clipcheck.checkpoints.library import LibraryArchitecture
    from clipcheck.checkpoints.told import named
    from clipcheck.writers.convert import write
    from clipcheck.writers.directories import write_open_clip, write_transformers
    from clipcheck.writers.synthesize import shallow
    from clipcheck.writers.synthesize import synthesize as draw

    wanted = named(architecture, asked="ARCH", text_config=True).model
    if layers is not None:
        wanted = shallow(wanted, layers)
    if isinstance(wanted, LibraryArchitecture):
        from clipcheck.writers.library import write_folder

        if form != wanted.library:
            raise UsageError(
                f"{path}: expected a folder of {wanted.library} for {architecture}: its weights "
                "alone do not determine the model",
                remedy=f"Give the name of a folder, with --format {wanted.library}.",
            )
        return write_folder(wanted, path, seed)
    weights = draw(wanted, seed)
    if form not in FOLDER_FORMATS:
        return write(wanted, weights, path, form)
    told = f"{architecture}, whose weights were drawn"
    checkpoint = Checkpoint(
        path=path, format=Format.STATE_DICT, model=wanted, tensors=weights, told=told
    )
    writing = write_open_clip if form is Format.OPEN_CLIP else write_transformers
    writing(checkpoint, path)
    return len(weights)


def report_written(path: Path, contents: str) -> None:
    """Print the size and the contents of a file or folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    total = sum(file.stat().st_size for file in files)
    print_line(f"{path}: {size(total)}, {contents}")


def require_consistent(
    progress: Progress | None, form: str, how: Mapping[str, Any], path: Path
) -> Result:
    """Check a file that was just written.

    Raises:
        OutputError: it is not consistent.
    """
    from clipcheck.harness.checking import check_files
    from clipcheck.harness.options import CheckOptions
    from clipcheck.report.text import render

    # No sandbox: clipcheck wrote the code itself.
    options = CheckOptions(device="cpu", isolation="none", **how)
    result = check_files(path, options, progress)
    if not result.passed:
        told = render(result, advise=False).removesuffix(".")
        raise OutputError(
            f"the {form} that was written is not consistent, and was deleted\n{told}",
            remedy="This is a bug in clipcheck: please report it.",
        )
    return result


def written_report(result: Result, output: str, quiet: bool) -> Text:
    """Return the table and verdict of a file that was checked under a temporary name.

    Args:
        result: of the file under its temporary name.
        output: the name to print.
        quiet: leave out the table.
    """
    from clipcheck.report import text

    judgements = tuple(replace(each, checkpoint=output) for each in result.judgements)
    named = replace(result, judgements=judgements)
    return text.verdict_alone(named) if quiet else text.brief(named)
