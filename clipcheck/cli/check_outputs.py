"""Print and write the outputs of ``clipcheck check``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.cli.output import (
    collecting_output_errors,
    print_line,
    show_result,
    write_for_github,
)
from clipcheck.errors import OutputError

if TYPE_CHECKING:
    from clipcheck.results.judgement import Result


def write_outputs(
    result: Result,
    folder: Path | None,
    again: Sequence[str],
    json: str | None,
    quiet: bool,
    output_errors: list[OutputError],
) -> Result:
    """Print the report and write it into the folder, if one is given.

    Returns:
        The result, with the paths of its saved inputs.
    """
    from clipcheck.report import evidence, text

    with collecting_output_errors(output_errors):
        result = evidence.keep_inputs(result, None if folder is None else folder / evidence.INPUTS)
    with collecting_output_errors(output_errors):
        told = text.brief(result) if quiet else text.report(result, rerun=again)
        show_result(told, result, json)
    with collecting_output_errors(output_errors):
        write_for_github(result, alone=json == "-")
    if folder is not None:
        with collecting_output_errors(output_errors):
            evidence.keep_texts(result, folder)
            if not quiet and json != "-":
                print_line(f"Page: {folder / evidence.HTML}")
    return result
