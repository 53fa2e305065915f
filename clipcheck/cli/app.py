"""The command line: arguments, progress on stderr, exit codes, and writing files."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TextIO, get_args

import typer

from clipcheck._version import __version__
from clipcheck.errors import ClipcheckError, Notice, OutputError, UsageError

if TYPE_CHECKING:
    import torch
    from rich.text import Text

    from clipcheck.checkpoints.checkpoint import Checkpoint as OpenCheckpoint
    from clipcheck.checkpoints.checkpoint import Format
    from clipcheck.results.judgement import Result
    from clipcheck.system.progress import Progress

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Does a CLIP checkpoint compute the same whichever way it is run?",
    epilog="Exit codes: 0 consistent, 1 inconsistent, 2 could not be judged.",
)

FormatName = Literal["archive", "state-dict", "safetensors"]
ConvertedName = Literal[
    "archive", "state-dict", "safetensors", "transformers", "open_clip", "pt2", "onnx"
]
EngineName = Literal["local", "ray"]
IsolationName = Literal["process", "none"]
DtypeName = Literal["float16", "bfloat16", "float32"]

Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A path or released name.")]
Checkpoints = Annotated[
    list[str], typer.Argument(metavar="CHECKPOINT...", help="Paths or released names.")
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="Which model to read of a training checkpoint that holds several, as model_ema.",
    ),
]
Devices = Annotated[
    list[str] | None,
    typer.Option("--device", metavar="D", help="cpu, cuda, cuda:1, mps; may be repeated."),
]
Dtypes = Annotated[
    list[str] | None,
    typer.Option(
        "--dtype",
        metavar="T",
        help="float32, float16, bfloat16; may be repeated. By default float32, and elsewhere than "
        "on the CPU the checkpoint's own too.",
    ),
]
# A string: of a path, the slash at its end is lost, which tells a folder.
Output = Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where to.")]
_FORM = typer.Option("--format", help="What to write. By default what the output's suffix says.")
Form = Annotated[FormatName | None, _FORM]
ArchitectureOption = Annotated[
    str | None,
    typer.Option(
        "--architecture",
        metavar="ARCH",
        help="What the weights are of, where they do not tell: a released name, open_clip:NAME, or "
        "the path of an open_clip_config.json or a config.json.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same bits.")]
InputSeed = Annotated[int, typer.Option("--seed", min=0, help="Of the images and prompts.")]
Examples = Annotated[
    int, typer.Option(min=1, help="Images to compare: 18 are corners, Hypothesis draws the others.")
]
Atol = Annotated[float, typer.Option(help="Absolute tolerance on probabilities.")]
Rtol = Annotated[float, typer.Option(help="Relative tolerance on probabilities.")]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write JSON; - is stdout, alone.")
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print only the verdict."),
]
Cache = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache", help="Whether to keep compiled and exported programs, and take them."
    ),
]
IsolationOption = Annotated[
    IsolationName | None,
    typer.Option(
        "--isolation",
        help="Run the code of a file in a process without rights, or in this one. By default "
        "process, but for released files, which are known by their hash.",
    ),
]
DownloadRoot = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where released files are kept. By default $CLIPCHECK_CACHE, else ~/.cache/clip.",
    ),
]


def main() -> None:
    """Run the command line: the entry point ``clipcheck``."""
    # Hypothesis would keep its database where the command happens to be run.
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(_HYPOTHESIS))
    # Threads that wait would keep the cores busy that the process of a file's own code computes on.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with _noticing():
            app()
    except ClipcheckError as error:
        _log.debug("the traceback, as asked for", exc_info=True)
        typer.echo(f"clipcheck: {_visible(str(error))}", err=True)
        sys.exit(2)
    except Exception:
        # Not 1, which Python itself would exit with: that says that a checkpoint is inconsistent.
        traceback.print_exc()
        typer.echo("clipcheck: a defect of clipcheck's own; please report the above", err=True)
        sys.exit(2)


@contextmanager
def _noticing() -> Iterator[None]:
    """Print notices as errors are, in one line, and not as Python does."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, Notice):
                typer.echo(f"clipcheck: {_visible(str(message))}", err=True)
            else:
                shown(message, category, *where, **more)

        warnings.showwarning = show
        yield


_log = logging.getLogger("clipcheck")

DEMO = "ViT-B/32"
"""What the demo is of."""

DEMO_RESNET = "RN50"
"""What a demo is of whose fault a vision transformer cannot have."""

_HYPOTHESIS = Path("~/.cache/clipcheck/hypothesis").expanduser()


def _version(wanted: bool) -> None:
    if wanted:
        _print(f"clipcheck {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="CLIPCHECK_DEBUG", help="Show tracebacks of errors.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Does a CLIP checkpoint compute the same whichever way it is run?"""
    _log.handlers = [logging.StreamHandler(sys.stderr)]
    _log.setLevel(logging.DEBUG if debug else logging.WARNING)


@app.command()
def check(
    checkpoints: Checkpoints,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            metavar="B",
            help="NAME or NAME:OPTION=VALUE,... of `clipcheck backends`, or all; may be repeated. "
            "By default what the file is made for: jit for an archive.",
        ),
    ] = None,
    key: KeyOption = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Compare with another file's weights and eager model, not with the file's own.",
        ),
    ] = None,
    architecture: ArchitectureOption = None,
    device: Devices = None,
    dtype: Dtypes = None,
    examples: Examples = 30,
    exhaustive: Annotated[
        bool,
        typer.Option(
            "--exhaustive", help="Walk every token id and every position of an image as well."
        ),
    ] = False,
    seed: InputSeed = 0,
    atol: Atol = 0.01,
    rtol: Rtol = 0.1,
    json: Json = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep a page (HTML), text, JSON and what fails."),
    ] = None,
    cache: Cache = True,
    isolation: IsolationOption = None,
    download_root: DownloadRoot = None,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Print only the table, errors and the verdict."),
    ] = False,
) -> None:
    """Run checkpoints in other ways than as eager models, and judge both against float64."""
    from clipcheck.cli import terminal
    from clipcheck.harness.checking import check as run
    from clipcheck.report import evidence, text
    from clipcheck.report import junit as junit_report

    # What cannot be written is told at once, and must not hide the verdict.
    unwritten: list[OutputError] = []
    with _noting(unwritten):
        if report is not None:
            evidence.require_folder(report)
    with terminal.progress(quiet) as progress:
        result = run(
            checkpoints,
            backend=backend,
            key=key,
            reference=reference,
            architecture=architecture,
            device=device,
            dtype=dtype,
            examples=examples,
            exhaustive=exhaustive,
            seed=seed,
            atol=atol,
            rtol=rtol,
            cache=cache,
            isolation=isolation,
            download_root=download_root,
            progress=progress,
        )
    again = ("clipcheck", *sys.argv[1:], "--report", text.KEPT) if report is None else ()
    report = None if unwritten else report
    with _noting(unwritten):
        result = evidence.keep_inputs(result, None if report is None else report / evidence.INPUTS)
    with _noting(unwritten):
        _show(text.brief(result) if quiet else text.report(result, rerun=again), result, json)
    with _noting(unwritten):
        _tell_github(result, alone=json == "-")
    if report is not None:
        with _noting(unwritten):
            evidence.keep_texts(result, report)
    if junit is not None:
        with _noting(unwritten):
            _write(junit, junit_report.render(result))
    raise typer.Exit(2 if unwritten else result.exit_code)


@app.command()
def sweep(
    catalogue: Annotated[
        Path | None,
        typer.Argument(
            metavar="CATALOGUE", help="A TOML or CSV file of checkpoints, or a folder of them."
        ),
    ] = None,
    pretrained: Annotated[
        bool,
        typer.Option("--pretrained", help="Also open_clip's own list of pretrained checkpoints."),
    ] = False,
    engine: Annotated[
        EngineName,
        typer.Option(help="Processes on this machine, or a Ray cluster that is there."),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Of the Ray cluster; by default the one that is found."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Checks at a time; by default one for each core."),
    ] = None,
    ledger: Annotated[
        Path,
        typer.Option(metavar="FILE", help="What is judged is kept there, and not judged again."),
    ] = Path("clipcheck-sweep.sqlite"),
    architecture: ArchitectureOption = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Tell what would be run and how long, and run nothing.")
    ] = False,
    disk: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Bytes that fetched files may have at a time, as 50GB."),
    ] = None,
    examples: Examples = 30,
    seed: InputSeed = 0,
    atol: Atol = 0.01,
    rtol: Rtol = 0.1,
    json: Json = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep a page (HTML), text and JSON of all."),
    ] = None,
    cache: Cache = True,
    isolation: IsolationOption = None,
    download_root: DownloadRoot = None,
    quiet: Quiet = False,
) -> None:
    """Check many checkpoints; what is judged is kept, and a sweep that was ended goes on."""
    from clipcheck.cli import terminal
    from clipcheck.report import evidence
    from clipcheck.report import sweep as sweep_report
    from clipcheck.sweep import leading
    from clipcheck.system.progress import silent

    asked = leading.Asked(
        catalogue,
        pretrained,
        engine,
        address,
        workers,
        ledger,
        disk,
        leading.conditions(examples, seed, atol, rtol),
        cache,
        isolation,
        None if download_root is None else str(download_root),
        architecture,
    )
    if report is not None:
        evidence.require_folder(report)
    with (
        _stopping(ledger),
        leading.opened(asked) as lead,
        terminal.progress(quiet) as progress,
    ):
        planned = lead.plan(progress)
        if not plan:
            # A line for each checkpoint where nobody sees the line of progress.
            tell = silent if quiet or progress is not None else _tell
            swept = lead.run(planned, progress, tell)
    if plan:
        _print(sweep_report.plan_text(planned, lead.threads))
        raise typer.Exit
    told = sweep_report.brief(swept) if quiet else sweep_report.report(swept)
    unwritten: list[OutputError] = []
    with _noting(unwritten):
        _give(told, sweep_report.render_json(swept), json)
    if report is not None:
        with _noting(unwritten):
            evidence.keep_sweep(swept, report)
    raise typer.Exit(2 if unwritten else sweep_report.result(swept).exit_code)


@app.command()
def replay(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The folder of a failing input, or its JSON.")
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", help="Another one than that which failed on it."),
    ] = None,
    key: KeyOption = None,
    architecture: ArchitectureOption = None,
    device: Annotated[
        str | None, typer.Option(metavar="D", help="By default the one that it failed on.")
    ] = None,
    dtype: Annotated[
        DtypeName | None, typer.Option(help="By default the one that it failed in.")
    ] = None,
    isolation: IsolationOption = None,
    download_root: DownloadRoot = None,
    quiet: Quiet = False,
) -> None:
    """Run a saved failing input again. Exits with 0 when it is mended, with 1 while it fails."""
    from clipcheck.cli import terminal
    from clipcheck.harness.replaying import replay as run
    from clipcheck.report.text import replayed_report, replayed_verdict

    with terminal.progress(quiet) as progress:
        replayed = run(
            file,
            checkpoint=checkpoint,
            key=key,
            architecture=architecture,
            device=device,
            dtype=dtype,
            isolation=isolation,
            download_root=download_root,
            progress=progress,
        )
    _display(replayed_verdict(replayed) if quiet else replayed_report(replayed))
    raise typer.Exit(0 if replayed.passed else 1)


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="What a check wrote before.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="What one wrote after that.")],
    json: Json = None,
) -> None:
    """Tell what changed between two runs. Exits with 1 when anything fails, or could not be
    judged, that did not before, with 0 otherwise, and with 2 when they cannot be compared."""
    from rich.text import Text

    from clipcheck.report import history as report
    from clipcheck.results.history import compare, read_results

    found = compare(read_results(old), read_results(new))
    _give(Text(report.render(found)), report.render_json(found), json)
    raise typer.Exit(1 if found.worse else 0)


@app.command()
def demo(
    fault: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Plant a fault of the catalogue, and be led through what is found."
        ),
    ] = None,
    report: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where the faulty archive and its report are written."),
    ] = Path("clipcheck-demo"),
    quiet: Quiet = False,
) -> None:
    """Write a full-size ViT-B/32 archive with seeded weights, and check it both ways."""
    from clipcheck.checkpoints.checkpoint import Format
    from clipcheck.cli import terminal
    from clipcheck.harness.checking import check as run
    from clipcheck.report import text

    if fault is not None:
        _demonstrate(fault, report, quiet)
    if not quiet:
        _print("No weights of OpenAI's are in this: it writes seeded ones of the same size.")
    with (
        terminal.progress(quiet) as progress,
        tempfile.TemporaryDirectory(prefix="clipcheck-") as folder,
    ):
        path = Path(folder) / f"{DEMO.replace('/', '-')}.pt"
        if progress is not None:
            progress(f"{path}: writing")
        _synthesize(DEMO, path, Format.ARCHIVE, seed=0)
        result = run(path, isolation="none", progress=progress)  # it was written here
    # The file is gone: what to do next is to check another.
    _show(text.brief(result) if quiet else text.report(result, advise=False), result)
    if result.passed and not quiet:
        _print("Next: clipcheck check YOUR_CHECKPOINT")
    raise typer.Exit(result.exit_code)


@app.command()
def synthesize(
    architecture: Annotated[
        str,
        typer.Argument(
            metavar="ARCH",
            help="A released name, tiny-vit, tiny-resnet, open_clip:NAME, or a configuration file.",
        ),
    ],
    output: Output,
    form: Form = None,
    seed: Seed = 0,
) -> None:
    """Write a checkpoint with seeded weights of any released architecture."""
    from clipcheck.writers.suffixes import format_for

    chosen = format_for(output, form, get_args(FormatName))
    count = _synthesize(architecture, Path(output), chosen, seed)
    _report_written(Path(output), f"seeded weights, not trained ones, of {architecture}")
    _print(f"read back: {count} tensors, bit for bit as drawn")


@app.command()
def convert(
    checkpoint: Checkpoint,
    output: Output,
    form: Annotated[ConvertedName | None, _FORM] = None,
    key: KeyOption = None,
    dtype: Annotated[
        DtypeName | None,
        typer.Option(
            help="For the weights that released files have in half; by default bits are kept. Of a "
            "program what it computes in, by default float32."
        ),
    ] = None,
    architecture: ArchitectureOption = None,
    isolation: IsolationOption = None,
    download_root: DownloadRoot = None,
    quiet: Quiet = False,
) -> None:
    """Write it in another format: weights, a library's folder, or a program. What computes is
    checked before it is kept."""
    from clipcheck.backends.cells import prepare
    from clipcheck.checkpoints.formats import open_checkpoint, require_found
    from clipcheck.writers.suffixes import format_for

    chosen = format_for(output, form, get_args(ConvertedName))
    _require_converter(chosen, dtype)
    require_found(checkpoint)
    if architecture is None:
        prepare([checkpoint], isolation)
    import torch

    from clipcheck.backends.loading import PROGRAMS
    from clipcheck.checkpoints.told import named
    from clipcheck.cli import terminal
    from clipcheck.harness.converting import require_convertible

    wanted: torch.dtype | None = getattr(torch, dtype) if dtype else None
    found: list[Result] = []
    with terminal.progress(quiet) as progress:
        told = None if architecture is None else named(architecture)
        opened = open_checkpoint(checkpoint, download_root, key=key, told=told)
        if progress is not None:
            progress(f"{checkpoint}: looking how it computes")
        known = require_convertible(opened, isolation)
        opened = known.checkpoint
        how: dict[str, Any] = {"architecture": architecture}
        if chosen in PROGRAMS or chosen in _FOLDERS:
            how |= {"reference": opened.path, "key": key}
        if chosen in PROGRAMS:
            how["dtype"] = dtype

        def judge(path: Path) -> None:
            found.append(_require_consistent(progress, chosen, how, path))

        if progress is not None:
            progress(f"{output}: writing")
        count = _convert(opened, Path(output), chosen, wanted, judge)
    origin = f" ({opened.origin})" if str(opened.origin) else ""
    _report_written(Path(output), f"weights of {checkpoint}{origin}")
    _print(f"computes {known.computes}")
    if count:
        cast = f", cast to {dtype}" if dtype else ""
        _print(f"read back: {count} tensors, bit for bit those of {checkpoint}{cast}")
    for result in found:
        _display(_found_of_written(result, output, quiet))


_FOLDERS = ("transformers", "open_clip")
"""Formats that are folders, named as the backends that they are for."""


def _require_converter(form: Format, dtype: DtypeName | None) -> None:
    """See that what is written can be checked here, and that the options go together."""
    from clipcheck.backends.loading import PROGRAMS
    from clipcheck.backends.registry import Choice, require_available

    if form in _FOLDERS and dtype is not None:
        raise UsageError(
            f"--dtype is not for folders of {form}, which keep the weights bit for bit",
            remedy="Convert to safetensors with --dtype first, and that file to the folder.",
        )
    if form in _FOLDERS:
        require_available(Choice(form))
    elif form in PROGRAMS:
        require_available(Choice(PROGRAMS[form]))


def _convert(
    opened: OpenCheckpoint,
    output: Path,
    form: Format,
    dtype: torch.dtype | None,
    judge: Callable[[Path], None],
) -> int:
    """Write it; how many tensors were compared bit for bit with those of the written file."""
    from clipcheck.backends.loading import PROGRAMS
    from clipcheck.writers.convert import convert as convert_weights
    from clipcheck.writers.directories import write_open_clip, write_transformers
    from clipcheck.writers.programs import convert_to_program

    if form in PROGRAMS:
        convert_to_program(opened, output, form, dtype=dtype, judge=judge)
    elif form in _FOLDERS:
        write = write_transformers if form == "transformers" else write_open_clip
        write(opened, output, judge=judge)
    else:
        judged = judge if form == "archive" else None  # the others do not compute
        return convert_weights(opened, output, form, dtype=dtype, judge=judged)
    return 0


@app.command()
def backends() -> None:
    """List the ways to run a checkpoint: their versions and options, or what is missing here."""
    from clipcheck.backends.registry import listing
    from clipcheck.report.backends import render

    _print(render(listing()))


@app.command()
def inspect(
    checkpoint: Checkpoint,
    key: KeyOption = None,
    architecture: ArchitectureOption = None,
    download_root: DownloadRoot = None,
) -> None:
    """Say what a file is. Nothing from it is run."""
    from clipcheck.checkpoints.checkpoint import Checkpoint as OpenCheckpoint
    from clipcheck.checkpoints.opening import open_subject
    from clipcheck.checkpoints.told import named
    from clipcheck.report.inspection import render

    told = None if architecture is None else named(architecture)
    opened = open_subject(checkpoint, download_root, key=key, told=told)
    if isinstance(opened, OpenCheckpoint):
        opened.verify()
    _print(render(opened))


@app.command()
def localize(
    checkpoint: Checkpoint,
    key: KeyOption = None,
    architecture: ArchitectureOption = None,
    device: Annotated[str | None, typer.Option(metavar="D", help="cpu, cuda, cuda:1, mps.")] = None,
    dtype: Annotated[DtypeName, typer.Option(help="What to compute in.")] = "float32",
    seed: InputSeed = 0,
    json: Json = None,
    isolation: IsolationOption = None,
    download_root: DownloadRoot = None,
    quiet: Quiet = False,
) -> None:
    """Find the first module of each tower that departs from float64. Exits with 1 if one does."""
    from clipcheck.cli import terminal
    from clipcheck.harness.localising import localize as run
    from clipcheck.report import localisation as report

    with terminal.progress(quiet) as progress:
        found = run(
            checkpoint,
            key=key,
            architecture=architecture,
            device=device,
            dtype=dtype,
            seed=seed,
            isolation=isolation,
            download_root=download_root,
            progress=progress,
        )
    told = report.verdict(found) if quiet else report.report(found)
    _give(told, report.render_json(found), json)
    raise typer.Exit(0 if found.passed else 1)


@app.command()
def audit(
    arch: Annotated[
        list[str] | None,
        typer.Option(
            "--arch", metavar="ARCH", help="May be repeated. By default tiny-vit and tiny-resnet."
        ),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", min=0, help="Of the weights; may be repeated.")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights",
            metavar="KIND",
            help="seeded (the default), initial, outliers, or trained, which takes a minute the "
            "first time; may be repeated.",
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            "--dtype", help="What archives compute in; may be repeated. By default float32."
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            metavar="B",
            help="What to plant into; may be repeated, all is each that runs here (compile and "
            "aotinductor take most of a minute for each variant). By default jit.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="One variant; may be repeated."),
    ] = None,
    localize: Annotated[
        bool, typer.Option("--localize", help="Find the module that each fault was planted in too.")
    ] = False,
    listed: Annotated[
        bool, typer.Option("--list", help="Print the names of all variants, and judge nothing.")
    ] = False,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Plant every known fault, and see that each is caught and that nothing else is."""
    from rich.text import Text

    from clipcheck.audit.bench import ARCHITECTURES, catalogue
    from clipcheck.audit.bench import audit as run
    from clipcheck.cli import terminal
    from clipcheck.report import audit as report

    if listed:
        _print(report.render_catalogue(catalogue()))
        return
    with terminal.progress(quiet) as progress:
        found = run(
            arch or ARCHITECTURES,
            seeds=seed or (0,),
            weights=weights or ("seeded",),
            dtypes=dtype or ("float32",),
            backends=backend or ("jit",),
            only=only or (),
            localize=localize,
            progress=progress,
        )
    told = report.summary(found) if quiet else report.render(found)
    _give(Text(told), report.render_json(found), json)
    raise typer.Exit(0 if found.passed else 1)


@app.command()
def models(download_root: DownloadRoot = None) -> None:
    """List the released models, and which are in the cache."""
    from clipcheck.checkpoints import download, registry

    _print(f"cache: {download.cache_directory(download_root)}")
    for name in registry.available_models():
        size = registry.find(name).size / 1e6
        path = download.cached(name, download_root)
        _print(f"{name:<16}{size:>8.1f} MB  {path or 'not in the cache'}")


@contextmanager
def _stopping(ledger: Path) -> Iterator[None]:
    """An interrupt is no verdict, and a sweep goes on from there."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(
            f"clipcheck: stopped; what is judged is kept in {_visible(str(ledger))}, and the same "
            "command goes on from there",
            err=True,
        )
        raise typer.Exit(130) from None


def _tell(line: str) -> None:
    _say(f"{_visible(line)}\n", err=True)


def _demonstrate(name: str, folder: Path, quiet: bool) -> NoReturn:
    """Plant a fault, check the archive, and lead through what is found."""
    from rich.text import Text

    from clipcheck.audit.faults import fault_named
    from clipcheck.cli import terminal
    from clipcheck.harness.checking import check as run
    from clipcheck.report import demo as tour
    from clipcheck.report import evidence, text
    from clipcheck.writers.archive import write_archive
    from clipcheck.writers.synthesize import architecture_named
    from clipcheck.writers.synthesize import synthesize as draw

    variant = fault_named(name)
    fits = variant.applies_to(architecture_named(DEMO))
    architecture = DEMO if fits else DEMO_RESNET
    evidence.require_folder(folder)
    path = folder / f"{architecture.replace('/', '-')}.pt"
    if not quiet:
        _display(Text(tour.planted(variant, architecture)))
    with terminal.progress(quiet) as progress:
        if progress is not None:
            progress(f"{path}: writing")
        dimensions = architecture_named(architecture)
        write_archive(dimensions, draw(dimensions, 0), path, alter=variant.plant)
        result = run(path, isolation="none", progress=progress)  # it was written here
    kept = evidence.keep(result, folder)
    _show(text.brief(kept) if quiet else text.report(kept, advise=False), kept)
    if not quiet:
        told = tour.tour(kept.judgements[0], str(folder), str(folder / evidence.HTML))
        _display(Text("\n") + told)
    raise typer.Exit(kept.exit_code)


def _synthesize(architecture: str, path: Path, form: Format, seed: int) -> int:
    from clipcheck.checkpoints.told import named
    from clipcheck.writers.convert import write
    from clipcheck.writers.synthesize import synthesize as draw

    wanted = named(architecture).architecture
    return write(wanted, draw(wanted, seed), path, form)


def _require_consistent(
    progress: Progress | None, form: str, how: Mapping[str, Any], path: Path
) -> Result:
    from clipcheck.harness.checking import check as run
    from clipcheck.report.text import render

    # It was written here.
    result = run(path, device="cpu", isolation="none", progress=progress, **how)
    if not result.passed:
        told = render(result, advise=False).removesuffix(".")
        raise OutputError(
            f"the {form} does not compute what it should, and was not kept\n{told}",
            remedy="Report this: clipcheck wrote it.",
        )
    return result


def _found_of_written(result: Result, output: str, quiet: bool) -> Text:
    """The table and the verdict of a file that was checked under a temporary name."""
    from clipcheck.report import text

    judgements = tuple(replace(each, checkpoint=output) for each in result.judgements)
    named = replace(result, judgements=judgements)
    return text.verdict_alone(named) if quiet else text.brief(named)


def _report_written(path: Path, contents: str) -> None:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    _print(f"{path}: {size / 1e6:.1f} MB, {contents}")


def _show(text: Text, result: Result, json: str | None = None) -> None:
    from clipcheck.results import document as json_report

    _give(text, json_report.render(result), json)


@contextmanager
def _noting(unwritten: list[OutputError]) -> Iterator[None]:
    """Tell what cannot be written, note it, and go on."""
    try:
        yield
    except OutputError as error:
        _log.debug("the traceback, as asked for", exc_info=True)
        typer.echo(f"clipcheck: {error}", err=True)
        unwritten.append(error)


def _tell_github(result: Result, *, alone: bool) -> None:
    """Annotations, which the runner reads from stderr as well, and the summary of the job."""
    from clipcheck.report import github

    problem = github.summarise(result)
    if problem:
        typer.echo(f"clipcheck: {problem}", err=True)
    for line in github.annotate(result):
        _say(f"{line}\n", err=alone)


def _give(text: Text, document: str, json: str | None) -> None:
    """The text, and the document where it is asked for; on stdout that is alone."""
    if json == "-":
        _say(document)
        return
    _display(text)
    if json is not None:
        _write(Path(json), document)


def _display(text: Text) -> None:
    """In colours, where it is a terminal that has them."""
    from clipcheck.cli import terminal

    with _writing("stdout"):
        terminal.show(text)


def _print(line: str) -> None:
    _say(f"{_visible(line)}\n")


def _say(text: str, *, err: bool = False) -> None:
    with _writing("stderr" if err else "stdout"):
        typer.echo(text, nl=False, err=err)


@contextmanager
def _writing(stream: str) -> Iterator[None]:
    """A stream may be full, or closed at its other end."""
    try:
        yield
    except OSError as error:
        _abandon(sys.stdout if stream == "stdout" else sys.stderr)
        raise OutputError(
            f"what was found cannot be written to {stream} ({error.strerror or error})",
            remedy="Make room, or send it elsewhere.",
        ) from error


def _abandon(stream: TextIO) -> None:
    """Send what the stream still holds nowhere: else Python fails once more, over the exit code."""
    with suppress(OSError), open(os.devnull, "wb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), stream.fileno())


def _write(path: Path, contents: str) -> None:
    from clipcheck.writers.output import replacing

    with replacing(path) as temporary:
        temporary.write_text(contents, encoding="utf-8")


def _visible(text: str) -> str:
    """Without anything that moves the cursor, but for ends of lines."""
    from clipcheck.report.cells import visible_lines

    return visible_lines(text)
