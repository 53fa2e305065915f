"""What a check of a full-size archive costs, beside the plain forward passes that it is made of.

Each round runs two processes in turn. One loads the archive both ways and sends the default
batches through all three methods of both, in float32, and no more: the plain time. The other
checks. The table has the medians of each phase, and the check as a multiple of the plain time,
round by round.

    python -m benchmarks.check
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

PLAIN = """
import json, resource, sys, time
import torch
from clipcheck.backends.modules import ModuleBackend
from clipcheck.judging import inputs_of
from clipcheck.checking import EXAMPLES
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.models.loader import load_checkpoint_both
from clipcheck.search.inputs import Wanted, draw
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
from clipcheck.checking import check
import clipcheck.modules, clipcheck.models.loader
started = time.perf_counter()
result = check(sys.argv[1], device="cpu")
whole = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
assert result.passed
print(json.dumps({**result.judgements[0].seconds, "whole": whole, "peak": peak}))
"""

FORWARD = ("eager", "float64", "candidate", "modules")
BESIDE = ("load", "build", "inputs", "gates")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="an archive; by default a ViT-B/32")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or write_archive(Path(folder))
        rounds = [
            (run(PLAIN, checkpoint), run(CHECK, checkpoint)) for _ in range(arguments.rounds + 1)
        ][1:]  # The first only warms the page cache.
    report(rounds)


def run(worker: str, checkpoint: Path) -> dict[str, float]:
    command = [sys.executable, "-c", worker, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(rounds: list[tuple[dict[str, float], dict[str, float]]]) -> None:
    checks = [check for _, check in rounds]
    for check in checks:
        check["rest"] = check["whole"] - sum(check[phase] for phase in (*FORWARD, *BESIDE))
        check["beside"] = check["rest"] + sum(check[phase] for phase in BESIDE)
    print(f"Medians of {len(rounds)} rounds; each side in a process of its own.\n")
    print("| phase | seconds | share of the check |")
    print("|---|---|---|")
    for phase in (*FORWARD, *BESIDE, "rest", "beside", "whole"):
        seconds = statistics.median(check[phase] for check in checks)
        share = statistics.median(check[phase] / check["whole"] for check in checks)
        print(f"| {phase} | {seconds:.2f} | {share:.1%} |")
    plain = statistics.median(plain["plain"] for plain, _ in rounds)
    times = statistics.median(check["whole"] / plain["plain"] for plain, check in rounds)
    print(f"\nPlain forward passes, both ways: {plain:.2f} s. The check: {times:.2f} times that.")
    peaks = [statistics.median(side[i]["peak"] for side in rounds) for i in (0, 1)]
    print(f"Peak memory: plain {peaks[0]:.2f} GB, check {peaks[1]:.2f} GB.")


if __name__ == "__main__":
    main()
