"""Measure how often sound models are rejected, and how close they come to each limit.

Seeded and trained weights are written as archives, in the dtypes of released archives and in
float32, and judged with several seeds of inputs in every dtype. All models are sound, so every
rejection is a false alarm. The output has the largest margin of each gate, by kind of weights and
dtype.

    python -m benchmarks.sound --inputs 10
    python -m benchmarks.sound --weights trained --dtype float16 --backend all --inputs 2
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from clipcheck.backends.loading import OpenSides, build, opened_sides
from clipcheck.backends.reference import exact_floats
from clipcheck.backends.registry import Choice, chosen
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.families.model_inputs import inputs_of
from clipcheck.gates.result import GateResult
from clipcheck.gates.tolerances import LIMITS, Allclose
from clipcheck.harness.declarations import EXAMPLES
from clipcheck.harness.judging import judge_candidate
from clipcheck.harness.phases import Stopwatch
from clipcheck.harness.search.inputs import Wanted, draw
from clipcheck.harness.trial import Trial
from clipcheck.writers.convert import write
from clipcheck.writers.synthesize import architecture_named
from clipcheck.writers.trained import KINDS, weights_of

CPU = torch.device("cpu")
STORED = ("half", "float32")
"""Dtypes of stored weights: as in released archives, or all float32."""


@dataclass(frozen=True)
class Run:
    """Verdict on a sound model."""

    weights: str
    dtype: str
    backend: str
    name: str
    gates: Sequence[GateResult]

    @property
    def rejected(self) -> bool:
        return not all(gate.passed for gate in self.gates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", help="default: both tiny ones")
    parser.add_argument("--weights", action="append", choices=KINDS, help="default: all kinds")
    parser.add_argument("--seed", action="append", type=int, help="of the weights; default: 0, 1")
    parser.add_argument("--stored", action="append", choices=STORED, help="default: both")
    parser.add_argument("--dtype", action="append", choices=tuple(LIMITS), help="default: all")
    parser.add_argument("--backend", action="append", help="default: jit")
    parser.add_argument("--inputs", type=int, default=3, help="number of seeds of inputs")
    parser.add_argument("--loud", action="store_true", help="print each rejection")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for run in measure(arguments, Path(folder)):
            runs.append(run)
            if arguments.loud and run.rejected:
                for gate in run.gates:
                    if not gate.passed:
                        print(f"{run.name}: {gate.name}: {gate.message}", flush=True)
    report(runs)


def measure(arguments: argparse.Namespace, folder: Path) -> Iterator[Run]:
    for arch, kind, seed, stored in itertools.product(
        arguments.arch or ("tiny-vit", "tiny-resnet"),
        arguments.weights or KINDS,
        arguments.seed if arguments.seed is not None else (0, 1),
        arguments.stored or STORED,
    ):
        architecture = architecture_named(arch)
        weights = weights_of(architecture, seed, kind)
        if stored == "float32":
            weights = {k: t.float() if t.is_floating_point() else t for k, t in weights.items()}
        path = folder / f"{arch}-{kind}-{seed}-{stored}.pt"
        write(architecture, weights, path, Format.ARCHIVE)
        checkpoint = open_checkpoint(path)
        for dtype in arguments.dtype or LIMITS:
            yield from judge(checkpoint, kind, dtype, arguments)
        path.unlink()


def judge(
    checkpoint: Checkpoint, kind: str, dtype: str, arguments: argparse.Namespace
) -> Iterator[Run]:
    with opened_sides(checkpoint, None, CPU, dtype, archive=True) as sides:
        yield from judge_sides(sides, kind, arguments)


def judge_sides(sides: OpenSides, kind: str, arguments: argparse.Namespace) -> Iterator[Run]:
    checkpoint, dtype = sides.source.checkpoint, sides.source.dtype
    choices = [c for c in chosen(arguments.backend or ["jit"]) if fits(c, checkpoint, dtype)]
    candidates = []
    for choice in choices:
        with exact_floats():
            candidates.append((choice, build(choice, sides.source)))
    for seed in range(arguments.inputs):
        wanted = Wanted(EXAMPLES, False, seed, "sound")
        drawn = draw(wanted, inputs_of(checkpoint.architecture))
        trial = Trial.of(sides.reference, drawn.batches, dtype, Stopwatch())
        for choice, candidate in candidates:
            gates = judge_candidate(
                trial, candidate, sides.source, Allclose(), Stopwatch(), seed=seed
            ).gates
            name = f"{checkpoint.path.stem} in {dtype}, {choice}, inputs {seed}"
            yield Run(kind, dtype, choice.name, name, gates)
    for _, candidate in candidates:
        with closing(candidate):
            pass


def fits(choice: Choice, checkpoint: Checkpoint, dtype: str) -> bool:
    backend = choice.backend
    if backend.needs_reference:
        return False
    return not backend.available() and not backend.unfit(checkpoint, CPU, dtype)


def report(runs: Sequence[Run]) -> None:
    print("\n| weights | dtype | backend | rejected | greatest share of what is allowed, by gate |")
    print("|---|---|---|---|---|")
    groups: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.weights, run.dtype, run.backend].append(run)
    for (kind, dtype, backend), group in groups.items():
        margins: dict[str, float] = defaultdict(float)
        for gate in (gate for run in group for gate in run.gates):
            margins[gate.name] = max(margins[gate.name], gate.margin)
        share = ", ".join(f"{name} {margin:.2f}" for name, margin in margins.items() if margin)
        print(
            f"| {kind} | {dtype} | {backend} | {sum(run.rejected for run in group)} of "
            f"{len(group)} | {share} |"
        )
    failed = Counter(gate.name for run in runs for gate in run.gates if not gate.passed)
    print(f"\n{sum(run.rejected for run in runs)} of {len(runs)} runs rejected, by gate:", end=" ")
    print(", ".join(f"{name} {count}" for name, count in failed.items()) or "none")


if __name__ == "__main__":
    main()
