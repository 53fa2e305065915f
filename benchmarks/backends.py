"""Measure what each backend costs, and how close its outputs are to float64.

Each backend that can run the checkpoint is built twice in one process: with an empty cache, and
with the cache of the first build. Then it runs in pairs with the eager model, on the same batch,
one after the other, so that the load of the machine is the same for both. The table has medians.

    python -m benchmarks.backends
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.load import write_archive
from benchmarks.tables import add_option, table
from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.base import Backend
from clipcheck.backends.loading import Sides, build, load_sides
from clipcheck.backends.modules import ModuleBackend
from clipcheck.backends.reference import exact_arithmetic, exact_floats
from clipcheck.backends.registry import ALL, Choice, chosen
from clipcheck.backends.source import Source
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.families.model_inputs import inputs_of
from clipcheck.gates.fidelity import fidelity
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness.phases import Stopwatch
from clipcheck.harness.running import run_candidate
from clipcheck.harness.trial import Trial
from clipcheck.inputs.batches import Batch, batches

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """Measurements of one backend: seconds, ratios and bytes."""

    name: str
    cold: float
    warm: float
    batch: float
    beside_eager: float
    size: int | None
    ratio: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="an archive; by default a ViT-B/32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=16, help="images in the batch, and texts")
    add_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.checkpoint or write_archive(Path(folder))
        rows = measure(path, Path(folder), arguments.rounds, arguments.images)
    report(rows, arguments.images, arguments.tables)


def measure(path: Path, folder: Path, rounds: int, images: int) -> list[Row]:
    checkpoint = open_checkpoint(path)
    kept = folder / "artefacts"
    artefacts = Artefacts(kept, folder)
    sides = load_sides(checkpoint, None, CPU, "float32", folder, artefacts, archive=True)
    drawn = list(batches(8, inputs_of(checkpoint.architecture), 0))
    trial = Trial.of(sides.reference, drawn, "float32", Stopwatch())
    batch = repeated(drawn, images)
    rows = []
    for choice in chosen([ALL]):
        backend = choice.backend
        if backend.needs_reference or backend.available():
            continue
        if backend.unfit(checkpoint, CPU, "float32"):
            continue
        rows.append(measure_one(choice, sides, trial, batch, rounds))
    return rows


def measure_one(choice: Choice, sides: Sides, trial: Trial, batch: Batch, rounds: int) -> Row:
    cold, _ = timed(lambda: built(choice, sides.source))
    _.close()
    warm, candidate = timed(lambda: built(choice, sides.source))
    eager = ModuleBackend("eager", sides.source.model, CPU)
    with candidate, exact_arithmetic():
        run(candidate, batch)
        run(eager, batch)
        pairs = [
            (timed(lambda: run(candidate, batch))[0], timed(lambda: run(eager, batch))[0])
            for _ in range(rounds)
        ]
        gate = fidelity(run_candidate(trial, candidate).cases, LIMITS["float32"], trial.scale)
        size = candidate.size
    ratios = [float(row["rmse_ratio"]) for row in gate.figures.values() if "rmse_ratio" in row]
    return Row(
        str(choice),
        cold,
        warm,
        statistics.median(mine for mine, _ in pairs),
        statistics.median(mine / other for mine, other in pairs),
        size,
        max(ratios),
    )


def built(choice: Choice, source: Source) -> Backend:
    with exact_floats():
        return build(choice, source)


def run(backend: Backend, batch: Batch) -> None:
    """Compute the logits of a batch, which takes each backend one pass of each tower."""
    backend(batch.pixels, batch.tokens)


def repeated(drawn: list[Batch], images: int) -> Batch:
    """Repeat the rows of the last batch until there are ``images`` of them."""
    rows = [i % len(drawn[-1].pixels) for i in range(images)]
    texts = [i % len(drawn[-1].tokens) for i in range(images)]
    return drawn[-1].select(rows, texts)


def timed(call: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def report(rows: list[Row], images: int, folder: Path | None) -> None:
    print(f"{images} images and {images} texts, {torch.get_num_threads()} threads.\n")
    columns = ["backend", "build, s", "again, s", "batch, s", "time / eager's", "artefact, MB"]
    with table("backends", [*columns, "error / eager's, vs float64"], folder) as row:
        for each in rows:
            size = "-" if each.size is None else f"{each.size / 1e6:,.0f}"
            row(
                f"`{each.name}`",
                f"{each.cold:.1f}",
                f"{each.warm:.1f}",
                f"{each.batch:.2f}",
                f"{each.beside_eager:.2f}",
                size,
                f"{each.ratio:.2f}",
            )


if __name__ == "__main__":
    main()
