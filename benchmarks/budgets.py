"""Measure what sound lossy programs lose, and which faults in them a budget catches.

Each recipe of `clipcheck.audit.faults.lossy` makes a program from each model; faults are planted
into such programs. A cell has the worst value of all seeds, at the end of its interval that counts;
the presets of `clipcheck.gates.tolerances.BUDGETS` are based on it.

    python -m benchmarks.budgets --tables docs/evidence/tables
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.tables import add_option, table
from clipcheck.audit.bench import Bench, Model
from clipcheck.audit.faults.lossy import CLEAN_LOSSY, LOSSY_FAULTS
from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.small import CONFIGS, model_named
from clipcheck.gates.budget import MEANT
from clipcheck.gates.result import GateResult

TRAINED = ("tiny-vit", "tiny-resnet")
FAMILIES = ("siglip", "clipa", "roberta", "convnext")

Gates = Mapping[str, GateResult]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help=f"default: {TRAINED} and {FAMILIES}")
    parser.add_argument("--seed", action="append", type=int, help="of the weights; default: 0, 1")
    parser.add_argument("--only", action="append", help="a variant; default: all")
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names, seeds = arguments.model or (*TRAINED, *FAMILIES), arguments.seed or (0, 1)
    found = {name: measure(name, seeds, arguments.only) for name in names}
    columns = ["model", "program", "budget", *MEANT, "quantised weights", "verdict"]
    with table("budgets", columns, arguments.tables) as row:
        for name in names:
            for variant in CLEAN_LOSSY:
                if variant.name in found[name]:
                    gates = found[name][variant.name]
                    passed = all(gate.passed for each in gates for gate in each.values())
                    row(name, variant.name, variant.budget, *figures(gates), verdict(passed))
    with table("budget-faults", ["fault", *names], arguments.tables) as row:
        for variant in LOSSY_FAULTS:
            row(f"{variant.name}: {variant.reason}", *(caught(variant, found[n]) for n in names))


def measure(name: str, seeds: Sequence[int], only: Sequence[str] | None) -> dict[str, list[Gates]]:
    """Judge each variant; return the results of the gates for each seed."""
    found: dict[str, list[Gates]] = {}
    weights = "seeded" if name in CONFIGS else "trained"
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Model(name, seed, weights, "float32"), Path(folder))
            for variant in (*LOSSY_FAULTS, *CLEAN_LOSSY):
                if only and variant.name not in only:
                    continue
                (backend,) = variant.plants
                if not variant.applies_to(model_named(name), backend):
                    continue
                try:
                    with tempfile.TemporaryDirectory(dir=folder) as scratch:
                        gates, _ = bench.judge(variant, backend, Path(scratch))
                except ValueError as error:  # the model has no part that the variant alters
                    print(f"{name}, {variant.name}: {error}", flush=True)
                    continue
                found.setdefault(variant.name, []).append({gate.name: gate for gate in gates})
                if variant.clean:
                    for gate in gates:
                        if not gate.passed:
                            print(
                                f"{name}, {variant.name}: {gate.name}: {gate.message}", flush=True
                            )
    return found


def figures(gates: Sequence[Gates]) -> list[str]:
    """Return the worst figures of the gate `budget`, and the counts of quantised weights."""
    rows = [each["budget"].figures for each in gates]
    lower = [
        f"{min(float(r[m]['lower']) for r in rows):.4f}" if m in rows[0] else "" for m in MEANT
    ]
    kinds = gates[0]["integrity"].figures.get("quantised", {})
    return [*lower, ", ".join(f"{count} {how}" for how, count in kinds.items())]


def verdict(passed: bool) -> str:
    return "passes" if passed else "**fails**"


def caught(variant: Variant, found: Mapping[str, list[Gates]]) -> str:
    """List the gates that caught the fault with every seed."""
    runs = found.get(variant.name, [])
    if not runs:
        return "-"
    by = [frozenset(name for name, gate in each.items() if not gate.passed) for each in runs]
    return ", ".join(sorted(frozenset.intersection(*by))) if all(by) else "**not caught**"


if __name__ == "__main__":
    main()
