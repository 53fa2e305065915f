"""``clipcheck convert``: write a checkpoint in another format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from clipcheck.cli import options
from clipcheck.cli.output import display, print_line
from clipcheck.cli.written import report_written, require_consistent, written_report
from clipcheck.errors import UsageError

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint, Format
    from clipcheck.results.judgement import Result

EXAMPLES = """\
Examples:

  clipcheck convert model.pt -o model.pt2
  clipcheck convert model.pt -o model.onnx --dtype float16
  clipcheck convert model.pt -o folder/ --format open_clip
  clipcheck convert epoch_30.ckpt --key model_ema -o weights.safetensors"""


def convert(
    checkpoint: options.Checkpoint,
    output: options.Output,
    form: Annotated[options.ConvertedName | None, options.FORMAT] = None,
    key: options.Key = None,
    dtype: Annotated[
        options.DtypeName | None,
        typer.Option(
            help="For weights: cast the tensors that released files store in half precision; "
            "default: no cast. For a program: the dtype it computes in; default: float32."
        ),
    ] = None,
    architecture: options.Architecture = None,
    isolation: options.Isolation = None,
    download_root: options.DownloadRoot = None,
    quiet: options.Quiet = False,
) -> None:
    """Write a checkpoint in another format, and check it.

    Formats: weights, a library's folder, or a program. Archives, folders
    and programs are checked before they get their final name.
    """
    from clipcheck.backends.sandboxes import prepare
    from clipcheck.checkpoints.formats import open_checkpoint, require_found
    from clipcheck.writers.suffixes import format_for

    chosen = format_for(output, form, get_args(options.ConvertedName))
    _require_writable(chosen, dtype)
    require_found(checkpoint)
    if architecture is None:
        prepare([checkpoint], isolation)
    from clipcheck.checkpoints.checkpoint import FOLDER_FORMATS, PROGRAM_FORMATS
    from clipcheck.checkpoints.told import named
    from clipcheck.cli import terminal
    from clipcheck.harness.converting import require_convertible
    from clipcheck.system.progress import say_import, silent

    found: list[Result] = []
    with terminal.progress(quiet) as progress:
        say = progress or silent
        say_import(say)
        import torch

        wanted: torch.dtype | None = getattr(torch, dtype) if dtype else None
        say(f"{checkpoint}: reading")
        told = None if architecture is None else named(architecture)
        opened = open_checkpoint(checkpoint, download_root, key=key, told=told)
        _refuse_overwriting(Path(output), opened.path)
        say(f"{checkpoint}: finding its activation and heads")
        known = require_convertible(opened, isolation)
        opened = known.checkpoint
        how: dict[str, Any] = {"architecture": architecture}
        if chosen in PROGRAM_FORMATS or chosen in FOLDER_FORMATS:
            how |= {"reference": opened.path, "key": key}
        if chosen in PROGRAM_FORMATS:
            how["dtype"] = dtype

        def judge(path: Path) -> None:
            found.append(require_consistent(progress, chosen, how, path))

        say(f"{output}: writing")
        count = _convert(opened, Path(output), chosen, wanted, judge)
    origin = f" ({opened.origin})" if str(opened.origin) else ""
    report_written(Path(output), f"weights of {checkpoint}{origin}")
    print_line(f"computes {known.computes}")
    if count:
        cast = f", cast to {dtype}" if dtype else ""
        print_line(f"read back: {count} tensors, bit for bit those of {checkpoint}{cast}")
    for result in found:
        display(written_report(result, output, quiet))


def _refuse_overwriting(output: Path, checkpoint: Path) -> None:
    """Raise if the output is the checkpoint itself: it may be the only copy."""
    if output.exists() and output.samefile(checkpoint):
        raise UsageError(
            f"{output}: expected an output other than the checkpoint, found the checkpoint itself",
            remedy="Write to another name, inspect the file, then move it.",
        )


def _require_writable(form: Format, dtype: options.DtypeName | None) -> None:
    """Raise if the dtype does not go with the format, or the output cannot be checked here."""
    from clipcheck.backends.registry import Choice, default_for, require_available
    from clipcheck.checkpoints.checkpoint import FOLDER_FORMATS, PROGRAM_FORMATS

    if form in FOLDER_FORMATS and dtype is not None:
        raise UsageError(
            f"--dtype has no effect on folders of {form}, which keep the weights bit for bit",
            remedy="Convert to safetensors with --dtype first, then convert that file to a folder.",
        )
    if form in (*FOLDER_FORMATS, *PROGRAM_FORMATS):
        require_available(Choice(default_for(form)))


def _convert(
    opened: Checkpoint,
    output: Path,
    form: Format,
    dtype: torch.dtype | None,
    judge: Callable[[Path], None],
) -> int:
    """Write the checkpoint; return how many tensors were read back and compared bit for bit."""
    from clipcheck.checkpoints.checkpoint import FOLDER_FORMATS, PROGRAM_FORMATS
    from clipcheck.writers.convert import convert as convert_weights
    from clipcheck.writers.directories import write_open_clip, write_transformers
    from clipcheck.writers.programs import convert_to_program

    if form in PROGRAM_FORMATS:
        convert_to_program(opened, output, form, dtype=dtype, judge=judge)
    elif form in FOLDER_FORMATS:
        write = write_transformers if form == "transformers" else write_open_clip
        write(opened, output, judge=judge)
    else:
        judged = judge if form == "archive" else None  # other formats hold weights alone
        return convert_weights(opened, output, form, dtype=dtype, judge=judged)
    return 0
