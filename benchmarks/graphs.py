"""Measure which faults are caught and localised in programs, and which clean variants pass.

The catalogue's variants are planted one after the other into programs of small models; each finding
is saved at once to a file of JSON lines, and is not computed again. A variant that the exporter
refuses is counted apart.

    python -m benchmarks.graphs --keep graphs.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.tables import add_option, table
from clipcheck.audit.auditing import ARCHITECTURES, CATALOGUE
from clipcheck.audit.bench import Bench, Model
from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.small import model_named
from clipcheck.errors import RunError

BACKENDS = ("onnxruntime", "export")

Entry = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="default: both tiny ones")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="default: both")
    parser.add_argument("--only", action="append", help="variants; default: all")
    parser.add_argument("--keep", type=Path, default=Path("graphs.jsonl"), metavar="FILE")
    parser.add_argument("--minutes", type=float, default=600, help="most time")
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.keep.touch()
    end = time.monotonic() + 60 * arguments.minutes
    known = {key(entry) for entry in read(arguments.keep)}
    for name in arguments.model or ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder, arguments.keep.open("a") as lines:
            bench = Bench(Model(name, 0, "seeded", "float32"), Path(folder))
            for variant, backend in wanted(name, arguments.backend or BACKENDS, arguments.only):
                if (name, backend, variant.name) not in known and time.monotonic() < end:
                    lines.write(json.dumps(found(bench, variant, backend)) + "\n")
                    lines.flush()
    report(read(arguments.keep), arguments.tables)


def wanted(
    name: str, backends: Sequence[str], only: Sequence[str] | None
) -> list[tuple[Variant, str]]:
    described = model_named(name)
    return [
        (variant, backend)
        for variant, backend in itertools.product(CATALOGUE, backends)
        if backend in variant.plants and variant.dtype in (None, "float32")
        if variant.budget is None and (not only or variant.name in only)
        if variant.applies_to(described, backend)
    ]


def read(path: Path) -> list[Entry]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def key(entry: Entry) -> tuple[str, ...]:
    return entry["model"], entry["backend"], entry["name"]


def found(bench: Bench, variant: Variant, backend: str) -> Entry:
    entry = {"model": bench.model.architecture, "backend": backend, "name": variant.name}
    entry["clean"] = variant.clean
    try:
        finding = bench.find(variant, backend, localize=True)
    except RunError as error:
        return {**entry, "refused": str(error)}
    places = None if finding.localisation is None else finding.localisation.found
    return {
        **entry,
        "gate": finding.gate,
        "margin": min(finding.margin, 1e9),
        "classic": finding.classic_caught,
        "places": None if places is None else [f"{p.module}: {p.part}" for p in places],
        "right": finding.localised,
    }


def report(entries: Sequence[Entry], folder: Path | None) -> None:
    columns = ["model", "program", "variants tried", "faults caught", "by the classic assertion"]
    columns += ["most by `modules`", "right module", "clean variants passed", "not exportable"]
    with table("graphs", columns, folder) as row:
        for model, backend in dict.fromkeys((e["model"], e["backend"]) for e in entries):
            here = [e for e in entries if (e["model"], e["backend"]) == (model, backend)]
            tried = f"{len(here)} of {len(wanted(model, [backend], None))}"
            judged = [e for e in here if "refused" not in e]
            row(model, backend, tried, *cells(judged), refused(here))
    for entry in entries:
        if "refused" not in entry and not is_right(entry):
            print(f"{' '.join(key(entry))}: {entry['gate']}, {entry['places']}")


def is_right(entry: Entry) -> bool:
    """Whether a fault is caught and localised, or a clean variant passes."""
    if entry["clean"]:
        return entry["gate"] is None
    return entry["gate"] is not None and (entry["places"] is None or entry["right"])


def cells(entries: Sequence[Entry]) -> list[str]:
    faults = [e for e in entries if not e["clean"]]
    sound = [e for e in entries if e["clean"]]
    placed = [e for e in faults if e["places"] is not None]
    return [
        share([e["gate"] is not None for e in faults]),
        str(sum(e["classic"] for e in faults)),
        str(sum(e["gate"] == "modules" for e in faults)),
        share([e["right"] for e in placed]),
        share([e["gate"] is None for e in sound]),
    ]


def share(found: Sequence[bool]) -> str:
    return f"{sum(found)} of {len(found)}"


def refused(entries: Sequence[Entry]) -> str:
    return ", ".join(e["name"] for e in entries if "refused" in e) or "none"


if __name__ == "__main__":
    main()
