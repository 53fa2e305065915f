"""``clipcheck pin``: keep a model's features in a small file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from clipcheck.cli import options
from clipcheck.cli.output import print_line
from clipcheck.harness.options import CheckOptions
from clipcheck.system.figures import size

EXAMPLES = """\
Examples:

  clipcheck pin model.safetensors --architecture ViT-B/32 -o model.pin
  clipcheck check model.onnx --pinned model.pin"""


def pin(
    checkpoint: options.Checkpoint,
    output: options.Output,
    key: options.Key = None,
    architecture: options.Architecture = None,
    download_root: options.DownloadRoot = None,
    device: options.Device = None,
    isolation: options.Isolation = None,
    seed: options.InputSeed = CheckOptions.seed,
    budget: Annotated[
        str | None,
        options.option(
            "budget", help="Have as many random inputs as this budget of `clipcheck check` needs."
        ),
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Write a model's features for fixed inputs to a small file.

    With the file, `clipcheck check --pinned FILE` judges any program of the model
    without the weights: for example after each upgrade of a library.
    """
    from clipcheck.backends.sandboxes import isolation_named
    from clipcheck.cli import terminal
    from clipcheck.gates.result import OUTPUTS
    from clipcheck.harness.pinning import make_pin
    from clipcheck.results.pin import write_pin
    from clipcheck.writers.output import require_file

    path = Path(output)
    require_file(path)
    with terminal.progress(quiet) as progress:
        made = make_pin(
            checkpoint,
            key=key,
            architecture=architecture,
            device=device,
            isolation=isolation_named(isolation),
            download_root=download_root,
            seed=seed,
            budget=budget,
            progress=progress,
        )
    write_pin(made, path)
    for dtype, problem in made.header.missing.items():
        print_line(f"Without limits for {dtype}: {problem}.")
    rows = [f"{len(array)} {OUTPUTS[name][0]}s" for name, array in made.features.items()]
    print_line(f"{path}: {size(path.stat().st_size)}, features of {' and '.join(rows)}")
