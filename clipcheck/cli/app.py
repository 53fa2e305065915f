"""The command line: its commands and how their errors are printed."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from clipcheck._version import __version__
from clipcheck.cli import (
    audit,
    backends,
    check,
    convert,
    demo,
    diff,
    explain,
    inspect,
    localize,
    models,
    pin,
    rejudge,
    replay,
    sweep,
    synthesize,
)
from clipcheck.cli.output import complain, log, print_line
from clipcheck.errors import ClipcheckError, Notice
from clipcheck.system.width import lines_of, width_for

_HYPOTHESIS = Path("~/.cache/clipcheck/hypothesis").expanduser()

_CHECKING, _FILES, _TOOL = "Checking", "Files", "About clipcheck"


class Command(TyperCommand):
    """A command with ``CHECKPOINT...`` in its usage line, as in the documentation."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return ``CHECKPOINT...`` in place of ``{CHECKPOINT}...``."""
        return [
            piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)
        ]


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 consistent, 1 inconsistent, 2 could not be judged.",
)

for panel, commands in {
    _CHECKING: (
        check.check,
        sweep.sweep,
        localize.localize,
        replay.replay,
        diff.diff,
        pin.pin,
        rejudge.rejudge,
    ),
    _FILES: (convert.convert, inspect.inspect, synthesize.synthesize, models.models),
    _TOOL: (demo.demo, explain.explain, backends.backends, audit.audit),
}.items():
    for command in commands:
        app.command(
            cls=Command,
            rich_help_panel=panel,
            epilog=getattr(sys.modules[command.__module__], "EXAMPLES", None),
        )(command)


def main() -> None:
    """Run the command line: the entry point ``clipcheck``."""
    # Hypothesis writes its database into the current folder by default.
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(_HYPOTHESIS))
    # Waiting threads would otherwise spin and take cores from the sandbox process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with _notices_as_lines(), lines_of(width_for(sys.stdout)):
            app(prog_name="clipcheck")
    except ClipcheckError as error:
        log.debug("traceback, because of --debug", exc_info=True)
        complain(str(error))
        sys.exit(2)
    except Exception:
        # Python itself would exit with 1, which means that a checkpoint is inconsistent.
        traceback.print_exc()
        complain("this is a bug in clipcheck; please report the traceback above")
        sys.exit(2)


@contextmanager
def _notices_as_lines() -> Iterator[None]:
    """Print each notice as one line on stderr, as errors are."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, Notice):
                complain(str(message))
            else:
                shown(message, category, *where, **more)

        warnings.showwarning = show
        yield


def _version(wanted: bool) -> None:
    if wanted:
        print_line(f"clipcheck {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="CLIPCHECK_DEBUG", help="Print the tracebacks of errors."),
    ] = False,
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Prove that a CLIP checkpoint computes the same however it is run."""
    log.handlers = [logging.StreamHandler(sys.stderr)]
    log.setLevel(logging.DEBUG if debug else logging.WARNING)
