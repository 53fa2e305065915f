"""Measure the time of a check of a full-size archive, relative to its plain forward passes.

Each round runs two processes in turn. One loads the archive as JIT and as eager model and runs only
the default batches through the three methods of both, in float32: the plain time. The other runs a
check. The table has the medians of each phase, and the check as a multiple of the plain time of the
same round.

With ``--backends`` a third process checks the named backends instead. It prints the seconds of each
phase, and counts the passes over all inputs: one of the eager model, one in float64, and one of
each backend.

    python -m benchmarks.check
    python -m benchmarks.check --backends jit trace export onnxruntime open_clip transformers
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.load import write_archive
from benchmarks.tables import add_option, table
from clipcheck.harness.phases import OWN, SHARED

PLAIN = """
import json, resource, sys, time
import torch
from clipcheck.backends.modules import ModuleBackend
from clipcheck.families.model_inputs import inputs_of
from clipcheck.harness.declarations import EXAMPLES
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.models.loader import load_checkpoint_both
from clipcheck.harness.search.inputs import Wanted, draw
checkpoint, device = open_checkpoint(sys.argv[1]), torch.device("cpu")
both = load_checkpoint_both(checkpoint, device)
drawn = draw(Wanted(EXAMPLES, False, 0, "benchmark"), inputs_of(checkpoint.architecture)).batches
started = time.perf_counter()
for name, model in (("jit", both.jit_model), ("eager", both.eager_model)):
    for batch in drawn:
        ModuleBackend(name, model, device).outputs(batch.pixels, batch.tokens)
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps({"plain": seconds, "peak": peak}))
"""

CHECK = """
import json, resource, sys, time
import torch, torchvision.transforms
from clipcheck.harness.checking import check
import clipcheck.harness.modules, clipcheck.models.loader
started = time.perf_counter()
result = check(sys.argv[1], device="cpu")
whole = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
assert result.passed
print(json.dumps({**result.judgements[0].seconds, "whole": whole, "peak": peak}))
"""

PASSES = """
import json, sys, time
from clipcheck.backends.reference import Reference
from clipcheck.harness.checking import check
from clipcheck.harness.trial import Trial
counts = {}
def counted(kind, owner, name):
    whole = getattr(owner, name)
    def call(*args, **kwargs):
        counts[kind] = counts.get(kind, 0) + 1
        return whole(*args, **kwargs)
    setattr(owner, name, call)
counted("eager", Reference, "outputs")
counted("float64", Reference, "exact_outputs")
counted("backends", Trial, "run")
started = time.perf_counter()
result = check(sys.argv[1], backend=sys.argv[2:], device="cpu")
whole = time.perf_counter() - started
assert result.passed, result
seconds = {judgement.backend: dict(judgement.seconds) for judgement in result.judgements}
print(json.dumps({"passes": counts, "seconds": seconds, "whole": whole}))
"""

FORWARD = ("eager", "float64", "candidate", "modules")
BESIDE = ("load", "build", "inputs", "gates")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="an archive; by default a ViT-B/32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backends", nargs="+", default=[], help="backends to count passes of")
    add_option(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or write_archive(Path(folder))
        if arguments.backends:
            report_backends(run(PASSES, checkpoint, *arguments.backends), arguments.tables)
            return
        rounds = [
            (run(PLAIN, checkpoint), run(CHECK, checkpoint)) for _ in range(arguments.rounds + 1)
        ][1:]  # The first run only warms the page cache.
    report(rounds, arguments.tables)


def report_backends(found: dict[str, Any], folder: Path | None) -> None:
    """Print the phases that run once for all backends, and those of each backend."""
    every = found["seconds"]
    passes = ", ".join(f"{count} {kind}" for kind, count in found["passes"].items())
    print(f"{found['whole']:.1f} s in all. Passes over all inputs: {passes}.\n")
    shared = {p: sum(of.get(p, 0.0) for of in every.values()) for p in SHARED}
    columns = [*OWN, "gates", "preprocessing"]
    with table("check-backends", ["of", *SHARED, *columns, "in all"], folder) as row:

        def add(what: str, spent: Mapping[str, float]) -> None:
            cells = [f"{spent[p]:.2f}" if p in spent else "" for p in (*SHARED, *columns)]
            row(what, *cells, f"{sum(spent.values()):.1f}")

        add("all backends, once", shared)
        for name, of in every.items():
            add(f"`{name}`", {p: seconds for p, seconds in of.items() if p in columns})


def run(worker: str, checkpoint: Path, *more: str) -> dict[str, Any]:
    command = [sys.executable, "-c", worker, str(checkpoint), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(rounds: list[tuple[dict[str, float], dict[str, float]]], folder: Path | None) -> None:
    checks = [check for _, check in rounds]
    for check in checks:
        check["rest"] = check["whole"] - sum(check[phase] for phase in (*FORWARD, *BESIDE))
        check["beside"] = check["rest"] + sum(check[phase] for phase in BESIDE)
    print(f"Medians of {len(rounds)} rounds; each side in a process of its own.\n")
    with table("check", ["phase", "seconds", "share of the check"], folder) as row:
        for phase in (*FORWARD, *BESIDE, "rest", "beside", "whole"):
            seconds = statistics.median(check[phase] for check in checks)
            share = statistics.median(check[phase] / check["whole"] for check in checks)
            row(phase, f"{seconds:.2f}", f"{share:.1%}")
    plain = statistics.median(plain["plain"] for plain, _ in rounds)
    times = statistics.median(check["whole"] / plain["plain"] for plain, check in rounds)
    print(f"\nPlain forward passes, both ways: {plain:.2f} s. The check: {times:.2f} times that.")
    peaks = [statistics.median(side[i]["peak"] for side in rounds) for i in (0, 1)]
    print(f"Peak memory: plain {peaks[0]:.2f} GB, check {peaks[1]:.2f} GB.")


if __name__ == "__main__":
    main()
