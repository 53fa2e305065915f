"""``clipcheck convert``: write a checkpoint in another format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from clipcheck.cli import options
from clipcheck.cli.output import display, print_line
from clipcheck.cli.written import found_of_written, report_written, require_consistent
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
            help="For weights: cast those that released files have in half; default: keep the "
            "bits. For a program: the dtype it computes in; default: float32."
        ),
    ] = None,
    architecture: options.Architecture = None,
    isolation: options.Isolation = None,
    download_root: options.DownloadRoot = None,
    quiet: options.Quiet = False,
) -> None:
    """Write a checkpoint in another format, and check it.

    The formats are weights, a library's folder, or a program. A file that
    computes is checked before it is kept.
    """
    from clipcheck.backends.cells import prepare
    from clipcheck.checkpoints.formats import open_checkpoint, require_found
    from clipcheck.writers.suffixes import format_for

    chosen = format_for(output, form, get_args(options.ConvertedName))
    _require_converter(chosen, dtype)
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
        _require_other(Path(output), opened.path)
        say(f"{checkpoint}: looking how it computes")
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
        display(found_of_written(result, output, quiet))


def _require_other(output: Path, checkpoint: Path) -> None:
    """See that the checkpoint is not written over: it may be the only one, with code of its own."""
    if output.exists() and output.samefile(checkpoint):
        raise UsageError(
            f"{output}: expected another output than the checkpoint, found the checkpoint itself",
            remedy="Give another name, and move the file over it once you have looked at it.",
        )


def _require_converter(form: Format, dtype: options.DtypeName | None) -> None:
    """See that what is written can be checked here, and that the options go together."""
    from clipcheck.backends.registry import Choice, default_for, require_available
    from clipcheck.checkpoints.checkpoint import FOLDER_FORMATS, PROGRAM_FORMATS

    if form in FOLDER_FORMATS and dtype is not None:
        raise UsageError(
            f"--dtype is not for folders of {form}, which keep the weights bit for bit",
            remedy="Convert to safetensors with --dtype first, and that file to the folder.",
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
    """Write it; how many tensors were compared bit for bit with those of the written file."""
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
        judged = judge if form == "archive" else None  # the others do not compute
        return convert_weights(opened, output, form, dtype=dtype, judge=judged)
    return 0
