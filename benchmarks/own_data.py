"""Measure the time and the memory of a check with the user's own images.

The images are JPEG files of 300x300 pixels, drawn by a seed. A plain pass reads them in batches of
eight, preprocesses them, and runs the image tower of the archive and of the eager model once each
in float32. A process makes a plain pass, a check with the images, and another plain pass, so that
both sides see the same machine; the plain time is the mean of the two. The first table has the
medians of all processes, and the whole check of more images: computed, with the time of an image
and that of the rest of the check.

With ``--memory`` the second table has the peak memory of a check, this process and the sandbox
together, with few images and with many.

    python -m benchmarks.own_data --images 300 --rounds 3
    python -m benchmarks.own_data --architecture tiny-vit --memory 100 10000
    python -m benchmarks.own_data --memory 100 500
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.tables import add_option, table
from clipcheck.plugin.subjects import seeded_archive

TIME = """
import json, sys, time
import torch
from clipcheck.backends.modules import ModuleBackend
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.harness.checking import check
from clipcheck.families.model_inputs import inputs_of
from clipcheck.inputs.examples import Preprocessing
from clipcheck.inputs.own import OwnData, Skipped
from clipcheck.models.loader import load_checkpoint_both
path, images = sys.argv[1:]
checkpoint, device = open_checkpoint(path), torch.device("cpu")
preprocessing = Preprocessing.of(inputs_of(checkpoint.architecture))
def plain():
    both = load_checkpoint_both(checkpoint, device)
    sides = [
        ModuleBackend(name, model, device)
        for name, model in (("jit", both.jit_model), ("eager", both.eager_model))
    ]
    started = time.perf_counter()
    for rows in OwnData.of(images, None).rows("image", preprocessing, Skipped()):
        for side in sides:
            side.encode_image(rows.array)
    return time.perf_counter() - started
before = plain()
started = time.perf_counter()
result = check(path, images=images, examples=0, device="cpu")
whole = time.perf_counter() - started
assert result.passed, result
(judgement,) = result.judgements
print(json.dumps({
    "plain": (before + plain()) / 2,
    "own": judgement.seconds["own"],
    "rest": whole - judgement.seconds["own"],
    "exact": judgement.own.exact,
}))
"""

MEMORY = """
import json, sys
from clipcheck.harness.checking import check
result = check(sys.argv[1], images=sys.argv[2], examples=0, device="cpu")
assert result.passed, result
(judgement,) = result.judgements
print(json.dumps({"images": judgement.own.images, "peak": judgement.peak_memory}))
"""

MANY = 10_000
"""Number of images for which the time of a whole check is computed."""

_IN_A_FOLDER = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="ViT-B/32")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs=2, metavar=("FEW", "MANY"))
    add_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        archive = seeded_archive(arguments.architecture, scratch)
        if arguments.memory:
            report_memory(archive, scratch, arguments)
        else:
            report_time(archive, scratch, arguments)


def draw_images(folder: Path, count: int) -> Path:
    """Write this many JPEG files with blurred random colours into new folders below this one."""
    generator = np.random.default_rng(0)
    for number in range(count):
        below = folder / f"{number // _IN_A_FOLDER:03}"
        below.mkdir(parents=True, exist_ok=True)
        colours = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        image = Image.fromarray(colours).resize((300, 300), Image.Resampling.BICUBIC)
        image.save(below / f"{number:06}.jpg", quality=90)
    return folder


def report_time(archive: Path, scratch: Path, arguments: argparse.Namespace) -> None:
    count = arguments.images
    images = draw_images(scratch / "images", count)
    rounds = [run(TIME, archive, images) for _ in range(arguments.rounds)]

    def median(name: str) -> float:
        return statistics.median(each[name] for each in rounds)

    times = statistics.median(each["own"] / each["plain"] for each in rounds)
    many = MANY / count
    whole = statistics.median(
        (each["rest"] + many * each["own"]) / (many * each["plain"]) for each in rounds
    )
    print(f"Medians of {len(rounds)} processes; {rounds[0]['exact']} images also in float64.\n")
    with table("own-data-time", ["of", "seconds", "times plain"], arguments.tables) as row:
        row(f"plain passes of {count} images, both models", f"{median('plain'):.1f}", "1")
        row(f"the same {count} images in a check", f"{median('own'):.1f}", f"{times:.2f}")
        row("the rest of the check", f"{median('rest'):.1f}", "")
        row(f"a whole check with {MANY:,} images (computed)", "", f"{whole:.2f}")


def report_memory(archive: Path, scratch: Path, arguments: argparse.Namespace) -> None:
    name = f"own-data-memory-{arguments.architecture.replace('/', '-')}".lower()
    first = None
    with table(name, ["images", "peak memory", "times the first"], arguments.tables) as row:
        for count in arguments.memory:
            found = run(MEMORY, archive, draw_images(scratch / str(count), count))
            first = first or found["peak"]
            row(f"{count:,}", f"{found['peak'] / 1e6:,.0f} MB", f"{found['peak'] / first:.3f}")


def run(worker: str, archive: Path, images: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", worker, str(archive), str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
