"""Measure what random examples cost, relative to one pass of the same rows in batches of 32.

Each round runs two processes in turn. One draws examples, gathers them into batches and runs them
through the archive, the eager model and its float64 copy, as a check does. The other has the same
rows ready, and runs them through the same three models in batches of 32.

    python -m benchmarks.search
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.load import write_archive
from benchmarks.tables import add_option, table

COMMON = """
import json, sys, time
import numpy as np, torch, torchvision.transforms
from clipcheck.backends.modules import ModuleBackend
from clipcheck.backends.reference import Reference, exact_arithmetic
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.gates.allclose import allclose
from clipcheck.gates.top1 import top1
from clipcheck.gates.fidelity import fidelity
from clipcheck.gates.tolerances import LIMITS, Allclose
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.inputs.examples import Preprocessing, packed
from clipcheck.families.model_inputs import inputs_of
from clipcheck.harness.phases import Stopwatch
from clipcheck.harness.running import run_candidate
from clipcheck.harness.trial import Trial
from clipcheck.models.loader import load_checkpoint_both
from clipcheck.harness.search.source import Source
checkpoint, device = open_checkpoint(sys.argv[1]), torch.device("cpu")
both = load_checkpoint_both(checkpoint, device)
inputs, examples = inputs_of(checkpoint.architecture), int(sys.argv[2])
preprocessing = Preprocessing(inputs.resolution, inputs.context_length)
candidate = ModuleBackend("jit", both.jit_model, device)
reference = Reference(both.eager_model, checkpoint.architecture, device)
def draw():
    random = Source(inputs, "benchmark", 0).draw(examples)
    return list(packed(random.images, random.prompts, preprocessing, {"image": 0, "prompt": 0}))
"""

DRAWN = """
started = time.perf_counter()
batches = draw()
drawn = time.perf_counter() - started
trial = Trial.of(reference, batches, "float32", Stopwatch())
with exact_arithmetic():
    run = run_candidate(trial, candidate)
numbers = (run.cases, LIMITS["float32"], trial.scale)
assert all(g.passed for g in (fidelity(*numbers), top1(*numbers)))
assert allclose(run.cases, Allclose()).passed
whole = time.perf_counter() - started
print(json.dumps({"drawing": drawn, "whole": whole, "rows": sum(len(b.pixels) for b in batches)}))
"""

PLAIN = """
batches = draw()
pixels = np.concatenate([b.pixels for b in batches])
tokens = np.concatenate([b.tokens for b in batches])
parts = [(pixels[i : i + 32], tokens[i : i + 32]) for i in range(0, len(pixels), 32)]
parts = [(p, t if len(t) else tokens[:1]) for p, t in parts]
started = time.perf_counter()
reference.outputs(parts)
reference.exact_outputs(parts)
with exact_arithmetic():
    for part in parts:
        candidate.outputs(*part)
print(json.dumps({"whole": time.perf_counter() - started}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="an archive; by default a ViT-B/32")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    add_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or write_archive(Path(folder))
        rounds = [
            tuple(run(side, checkpoint, arguments.examples) for side in (DRAWN, PLAIN))
            for _ in range(arguments.rounds)
        ]
    report(rounds, arguments.tables)


def run(side: str, checkpoint: Path, examples: int) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-c", COMMON + side, str(checkpoint), str(examples)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(rounds: list[tuple[dict[str, float], ...]], folder: Path | None) -> None:
    def median(side: int, figure: str) -> float:
        return statistics.median(each[side][figure] for each in rounds)

    print(f"{median(0, 'rows'):.0f} examples; medians of {len(rounds)} rounds.\n")
    with table("search", ["side", "seconds"], folder) as row:
        row("drawn, preprocessed, run and judged", f"{median(0, 'whole'):.1f}")
        row("of which drawing and preprocessing", f"{median(0, 'drawing'):.1f}")
        row("the same rows in batches of 32, run alone", f"{median(1, 'whole'):.1f}")
    times = statistics.median(drawn["whole"] / plain["whole"] for drawn, plain in rounds)
    print(f"\nTimes as much: {times:.2f}.")


if __name__ == "__main__":
    main()
