"""Measure errors of clean variants and faults, to set the limits of `clipcheck.gates.tolerances`.

Runs an audit over seeds, kinds of weights and architectures, each with one thread and with one
thread per core, and prints for each limit the errors of clean variants and faults vs float64, as
multiples of the eager model's error. ``--read`` reads earlier audits (``clipcheck audit --json``)
instead of running one. ``--plot`` plots the error of each variant relative to its limit;
``--tables`` writes the tables of the documentation.

    python -m benchmarks.calibration --seed 0 --seed 1 --plot docs/calibration.svg
    python -m benchmarks.calibration --read tiny.json --read full.json --tables docs/evidence/tables
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.tables import add_option, written_by
from clipcheck.gates.tolerances import LIMITS

NAMES = ("features", "feature_row", "logits", "logit_row", "module")
UNMEASURED = 1e9
"""Position in the plot of faults without a ratio: unused weights, NaN, a call that failed."""

Entry = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", help="default: both tiny ones")
    parser.add_argument("--seed", action="append", type=int, help="default: 0")
    parser.add_argument("--weights", action="append", help="default: all kinds")
    parser.add_argument("--dtype", default="float32", help="dtype that archives are judged in")
    parser.add_argument("--read", action="append", type=Path, default=[], metavar="JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    add_option(parser)
    arguments = parser.parse_args()
    if arguments.read:
        documents = [json.loads(path.read_text()) for path in arguments.read]
    else:
        documents = measure(arguments)
    faults = [entry for document in documents for entry in document["faults"]]
    clean = [entry for document in documents for entry in document["clean"]]
    print("\n".join(report(faults, clean)))
    if arguments.tables:
        write_tables(faults, clean, arguments.tables)
    if arguments.plot:
        plot(faults, clean, arguments.plot)


def measure(arguments: argparse.Namespace) -> list[Entry]:
    from clipcheck.audit.auditing import ARCHITECTURES, audit
    from clipcheck.report.audit import render_json
    from clipcheck.writers.trained import KINDS

    return [
        json.loads(
            render_json(
                audit(
                    arguments.arch or ARCHITECTURES,
                    seeds=arguments.seed or (0,),
                    weights=arguments.weights or KINDS,
                    dtypes=(arguments.dtype,),
                    threads=threads,
                    progress=print,
                )
            )
        )
        for threads in (1, os.cpu_count() or 1)
    ]


def report(faults: list[Entry], clean: list[Entry]) -> list[str]:
    runs = {(e["architecture"], e["seed"], e["weights"]) for e in (*faults, *clean)}
    margins = sorted(margin(entry) for entry in faults)
    return [
        f"\n{len(faults)} faults and {len(clean)} clean variants, over {len(runs)} sets of weights",
        "(architecture, seed, kind). Ratio of a variant's error to the eager model's, the",
        "greatest of each variant. 'weakest fault': of the faults that exceed this limit most.\n",
        *by_limit(faults, clean),
        f"\nOf what is allowed, clean variants took at most {max(map(margin, clean)):.2f}; the",
        f"weakest fault was {margins[0]:.1f} times as much, one in twenty below "
        f"{margins[len(margins) // 20]:,.0f}.",
    ]


def write_tables(faults: list[Entry], clean: list[Entry], folder: Path) -> None:
    """Write the tables that the documentation includes."""
    head = written_by()
    for name, table in (
        ("families", by_family(faults, clean)),
        ("limits", by_limit(faults, clean)),
        ("variants", by_variant(faults, clean)),
    ):
        (folder / f"{name}.md").write_text(head + "\n".join(table) + "\n", encoding="utf-8")


def by_limit(faults: list[Entry], clean: list[Entry]) -> list[str]:
    limits = LIMITS["float32"]
    lines = [
        "| limit | allowed | clean: median | clean: greatest | faults beyond | weakest fault |",
        "|---|---|---|---|---|---|",
    ]
    for name in NAMES:
        allowed = getattr(limits, name)
        harmless = ratios(clean, name)
        beyond = [ratio for ratio in ratios(faults, name) if ratio > allowed]
        foremost = [e["greatest"][name] for e in faults if limit_exceeded_most(e, limits) == name]
        weakest = f"{min(foremost):,.0f}" if foremost else "none"
        usual, most = (
            (f"{each(harmless):.2f}" for each in (statistics.median, max))
            if harmless
            else ("none", "none")
        )
        lines.append(f"| {name} | {allowed:g} | {usual} | {most} | {len(beyond)} | {weakest} |")
    return lines


def by_family(faults: list[Entry], clean: list[Entry]) -> list[str]:
    groups = {
        name: [entry for entry in faults if entry["family"] == name]
        for name in dict.fromkeys(entry["family"] for entry in faults)
    }
    return [
        "| family | faults | planted | caught | weakest | classic |",
        "|---|---|---|---|---|---|",
        *(family_row(name, group) for name, group in groups.items()),
        family_row("**all faults**", faults),
        f"| clean variants | {len({e['name'] for e in clean})} | {len(clean)} | "
        f"{sum(not e['passed'] for e in clean)} | at most {max(map(margin, clean)):.2f} | |",
    ]


def family_row(name: str, group: list[Entry]) -> str:
    return (
        f"| {name} | {len({e['name'] for e in group})} | {len(group)} | "
        f"{sum(e['caught'] for e in group)} | {times(min(map(margin, group)))} | "
        f"{sum(e['classic_caught'] for e in group)} |"
    )


def by_variant(faults: list[Entry], clean: list[Entry]) -> list[str]:
    lines = [
        "| variant | caught by | times the limit | classic | what it is |",
        "|---|---|---|---|---|",
    ]
    for entries, choose in ((faults, min), (clean, max)):
        for name in dict.fromkeys(entry["name"] for entry in entries):
            group = [entry for entry in entries if entry["name"] == name]
            gates = ", ".join(sorted({e["gate"] for e in group if e["gate"]})) or "passes"
            classic = "" if entries is clean else (
                f"{sum(e['classic_caught'] for e in group)} of {len(group)}"
            )  # fmt: skip
            lines.append(
                f"| {name} | {gates} | {times(choose(map(margin, group)))} | {classic} | "
                f"{group[0]['reason']} |"
            )
    return lines


def times(found: float) -> str:
    if found == UNMEASURED:
        return "no number"
    return f"{found:.2g}" if found < 10 else f"{found:,.0f}"


def ratios(entries: Iterable[Entry], name: str) -> list[float]:
    found = (entry["greatest"].get(name) for entry in entries)
    return [ratio for ratio in found if ratio is not None]


def limit_exceeded_most(entry: Entry, limits: object) -> str | None:
    """Return the limit with the largest ratio; None if a figure is not a number."""
    greatest = entry["greatest"]
    if any(greatest.get(name) is None for name in NAMES):
        return None
    return max(NAMES, key=lambda name: greatest[name] / getattr(limits, name))


def margin(entry: Entry) -> float:
    return UNMEASURED if entry["margin"] is None else entry["margin"]


def plot(faults: list[Entry], clean: list[Entry], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    # No date and no random ids: the same figures give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "clipcheck"
    from matplotlib import pyplot

    low, high = -3, math.log10(UNMEASURED)
    edges = [10 ** (low + (high - low) * step / 96) for step in range(98)]
    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    for entries, label, colour in ((clean, "clean", "#0072b2"), (faults, "faults", "#d55e00")):
        values = [max(margin(entry), edges[0]) for entry in entries]
        axes.hist(values, edges, label=f"{len(entries)} {label}", color=colour)
    axes.axvline(1, color="black", linestyle="--", label="the limit")
    axes.set(xscale="log", yscale="log", ylim=(0.7, None))  # So that a single point is visible.
    axes.set_xlabel("times the limit, largest of all gates (far right: not a number)")
    axes.set_ylabel("variants")
    axes.legend(loc="upper center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
