"""Measure which faults are caught, by kind of weights and dtype: a table of the documentation.

An audit calls each archive over a hundred times, for faults that depend on the number of calls.
Here these calls run only for faults that the edge cases do not show, and an archive is written once
for all dtypes: the same verdicts in a third of the time. Each verdict is saved at once to a file of
JSON lines, and is not computed again.

    python -m benchmarks.power --weights trained --keep power.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.tables import add_option, table
from clipcheck.audit.auditing import ARCHITECTURES
from clipcheck.audit.bench import CPU, Bench, Model
from clipcheck.audit.faults import CLEAN, FAULTS
from clipcheck.backends.jit import Archive
from clipcheck.backends.reference import Reference
from clipcheck.families.model_inputs import inputs_of
from clipcheck.gates.result import GateResult
from clipcheck.gates.tolerances import LIMITS, Allclose
from clipcheck.harness.judging import judge_candidate
from clipcheck.harness.phases import Stopwatch
from clipcheck.harness.trial import Trial
from clipcheck.inputs.batches import batches
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.writers.synthesize import architecture_named
from clipcheck.writers.trained import KINDS

Entry = dict[str, Any]


class Stages(Bench):
    """Judge in two stages."""

    def __init__(self, model: Model, folder: Path) -> None:
        super().__init__(model, folder)
        inputs = inputs_of(self.architecture)
        reference = Reference(self.setting(model.dtype, None).source.model, self.architecture, CPU)
        drawn = list(batches(EDGE_CASES, inputs, model.seed))
        self._few = Trial.of(reference, drawn, model.dtype, Stopwatch())

    def gates(self, archive: Path, few: bool) -> Sequence[GateResult]:
        """Judge an archive, with few calls or with all."""
        with self.opened(archive) as source, Archive.build(source) as candidate:
            trial = self._few if few else self.setting(self.model.dtype, None).trial
            return judge_candidate(trial, candidate, source, Allclose(), Stopwatch()).gates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", help="default: both tiny ones")
    parser.add_argument("--weights", action="append", choices=KINDS, help="default: trained")
    parser.add_argument("--dtype", action="append", choices=tuple(LIMITS), help="default: all")
    parser.add_argument("--keep", type=Path, default=Path("power.jsonl"), metavar="FILE")
    parser.add_argument("--share", type=int, default=0, help="part of the catalogue, from 0")
    parser.add_argument("--of", type=int, default=1, help="number of parts")
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for arch, weights in itertools.product(
        arguments.arch or ARCHITECTURES, arguments.weights or ["trained"]
    ):
        with tempfile.TemporaryDirectory() as folder, arguments.keep.open("a") as lines:
            for entry in judge(arch, weights, arguments, Path(folder)):
                lines.write(json.dumps(entry) + "\n")
                lines.flush()
    report(read(arguments.keep), arguments.tables)


def read(path: Path) -> list[Entry]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def judge(arch: str, weights: str, arguments: argparse.Namespace, folder: Path) -> Iterator[Entry]:
    architecture = architecture_named(arch)
    fitting = [each for each in (*CLEAN, *FAULTS) if each.applies_to(architecture)]
    # Variants of this kind of tower only come first.
    fitting.sort(key=lambda variant: len(variant.kinds))
    known = {key(entry) for entry in read(arguments.keep)}
    benches: dict[str, Stages] = {}
    for variant in fitting[arguments.share :: arguments.of]:
        entry = {"name": variant.name, "architecture": arch, "weights": weights}
        dtypes = arguments.dtype or tuple(LIMITS)
        wanted = [dtype for dtype in dtypes if key({**entry, "dtype": dtype}) not in known]
        for dtype in wanted:
            if dtype not in benches:
                benches[dtype] = Stages(Model(arch, 0, weights, dtype), folder)
        if not wanted:
            continue
        archive = benches[wanted[0]].written(variant.plant, folder)
        for dtype in wanted:
            yield {
                **entry,
                "dtype": dtype,
                "clean": variant.clean,
                **verdict(benches[dtype], archive),
            }


def key(entry: Entry) -> tuple[str, ...]:
    return tuple(entry[name] for name in ("name", "architecture", "weights", "dtype"))


def verdict(bench: Stages, archive: Path) -> Entry:
    for few in (True, False):
        gates = bench.gates(archive, few)
        failed = [gate for gate in gates if not gate.passed]
        if failed:
            break
    worst = max(failed or gates, key=lambda gate: gate.margin)
    return {
        "gate": worst.name if failed else None,
        "margin": min(worst.margin, 1e9),
        "message": worst.message,
    }


def report(entries: Sequence[Entry], folder: Path | None) -> None:
    names = list(dict.fromkeys(entry["architecture"] for entry in entries))
    columns = [f"{name}: {what}" for name in names for what in ("caught", "clean passed")]
    print()
    with table("trained", ["weights", "dtype", *columns], folder) as row:
        for kind in dict.fromkeys((entry["weights"], entry["dtype"]) for entry in entries):
            here = [e for e in entries if (e["weights"], e["dtype"]) == kind]
            row(*kind, *(cell for name in names for cell in counts(here, name)))
    print(f"\nMissed: {', '.join(missed([e for e in entries if not e['clean']])) or 'none'}.")


def counts(entries: Sequence[Entry], architecture: str) -> list[str]:
    """Format the numbers of faults that are caught, and of clean variants that pass."""
    here = [entry for entry in entries if entry["architecture"] == architecture]
    faults = [entry["gate"] is not None for entry in here if not entry["clean"]]
    sound = [entry["gate"] is None for entry in here if entry["clean"]]
    return [f"{sum(faults)} of {len(faults)}", f"{sum(sound)} of {len(sound)}"]


def missed(faults: Sequence[Entry]) -> list[str]:
    """List the faults that are not caught, each with its architectures if others caught it."""
    found = []
    for name in dict.fromkeys(entry["name"] for entry in faults if entry["gate"] is None):
        group = [entry for entry in faults if entry["name"] == name]
        where = [entry["architecture"] for entry in group if entry["gate"] is None]
        found.append(name if len(where) == len(group) else f"{name} ({', '.join(where)})")
    return found


if __name__ == "__main__":
    main()
