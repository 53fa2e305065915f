"""Measure what it costs to localise a fault in a full-size archive, and to write the report.

There are four archives: a fault in the first block of both towers, one in the middle of the text
tower, one after the image tower, and no fault. For each, a round times on the same batch, for both
towers: a pass of the archive, a pass of the eager model, a pass in float64, and the walk that finds
the place. The table has the walk as a multiple of the archive's pass, and of the three passes
together. The time of the report runs from the end of the check to the written page, with imports.

    python -m benchmarks.localize
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.tables import add_option, table

FAULTS = ("gelu-for-quickgelu", "int8-weight-in-one-layer", "image-encoder-normalises", None)

PLANT = """
import sys
from pathlib import Path
from clipcheck.audit.faults import fault_named
from clipcheck.writers.archive import write_archive
from clipcheck.writers.synthesize import architecture_named, synthesize
architecture = architecture_named(sys.argv[1])
alter = fault_named(sys.argv[3]).plant if len(sys.argv) > 3 else None
write_archive(architecture, synthesize(architecture, 0), Path(sys.argv[2]), alter=alter)
"""

WALK = """
import json, sys, time
import torch
from clipcheck.system import torchscript_support
from clipcheck.backends.calling import run_method
from clipcheck.backends.reference import Reference, exact_arithmetic
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.gates.tolerances import LIMITS
from clipcheck.inputs.batches import for_modules
from clipcheck.families.model_inputs import inputs_of
from clipcheck.backends.archives import Inside
from clipcheck.models.loader import load_checkpoint_both
from clipcheck.harness.modules.walk import walk
checkpoint, device = open_checkpoint(sys.argv[1]), torch.device("cpu")
both = load_checkpoint_both(checkpoint, device)
batch = for_modules(inputs_of(checkpoint.architecture), 0)
given = [(batch.pixels, batch.tokens)]
reference = Reference(both.eager_model, checkpoint.architecture, device).standing()
def timed(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
def archive():
    with exact_arithmetic():
        run_method("jit", both.jit_model, "encode_image", torch.from_numpy(batch.pixels))
        run_method("jit", both.jit_model, "encode_text", torch.from_numpy(batch.tokens))
def exact():  # the eager model, and in float64
    reference.features("encode_image", batch.pixels)
    reference.features("encode_text", batch.tokens)
# The interpreter makes its plan in the first two calls, and float64 weights are made in the first.
for _ in range(2):
    archive(), exact()
plain, both_ways = timed(archive), timed(exact)
found = []
seconds = timed(lambda: found.append(
    walk(Inside(both.archive), both.eager_model, batch, device, LIMITS["float32"], "a batch")))
print(json.dumps({"archive": plain, "three": plain + both_ways, "walk": seconds,
                  "places": [place.module for place in found[0].found]}))
"""

REPORT = """
import json, sys, time, tempfile
from pathlib import Path
from clipcheck.harness.checking import check
result = check(sys.argv[1], device="cpu")
started = time.perf_counter()
from clipcheck.report import evidence
with tempfile.TemporaryDirectory() as folder:
    evidence.keep(result, Path(folder))
    seconds = time.perf_counter() - started
    size = (Path(folder) / evidence.HTML).stat().st_size
print(json.dumps({"report": seconds, "size": size}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="ViT-B/32")
    parser.add_argument("--rounds", type=int, default=3)
    add_option(parser)
    arguments = parser.parse_args()
    columns = ["fault", "found at", "walk", "times an archive's pass", "times the three passes"]
    with table("localize", [*columns, "report"], arguments.tables) as row:
        for fault in FAULTS:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.pt"
                run(PLANT, arguments.arch, str(path), *([fault] if fault else []))
                walks = [run(WALK, str(path)) for _ in range(arguments.rounds)]
                report = run(REPORT, str(path))
            row(fault or "none", *cells(walks, report))


def run(worker: str, *arguments: str) -> dict:
    command = [sys.executable, "-c", worker, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}


def cells(walks: list[dict], report: dict) -> list[str]:
    places = ", ".join(walks[0]["places"]) or "nowhere"
    seconds = statistics.median(walk["walk"] for walk in walks)
    of_archive = statistics.median(walk["walk"] / walk["archive"] for walk in walks)
    of_three = statistics.median(walk["walk"] / walk["three"] for walk in walks)
    written = f"{report['report']:.2f} s, {report['size'] / 1000:.0f} kB"
    return [places, f"{seconds:.2f} s", f"{of_archive:.2f}", f"{of_three:.2f}", written]


if __name__ == "__main__":
    main()
