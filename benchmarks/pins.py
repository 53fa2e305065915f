"""Measure which faults of the catalogue a pin shows: each is planted into an archive, which is
judged against the pin of the sound one.

    python -m benchmarks.pins
    python -m benchmarks.pins tiny-resnet --tables docs/evidence/tables
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import tables
from clipcheck.audit.bench import Bench, Model
from clipcheck.audit.faults import CLEAN, FAULTS, Variant
from clipcheck.harness.pinning import make_pin
from clipcheck.results.judgement import Judgement
from clipcheck.results.pin import write_pin
from clipcheck.testing import check

COLUMNS = [
    "model",
    "faults",
    "shown",
    "shown without the gate `modules`, as of a program",
    "clean variants that failed",
    "not shown",
]


def judge(bench: Bench, variant: Variant, pin: Path, folder: Path) -> Judgement:
    """Plant a variant, and judge the archive against the pin."""
    folder.mkdir()
    archive = bench.written(variant.plant, folder)
    (found,) = check(archive, pinned=pin, device="cpu", isolation="none").judgements
    archive.unlink()
    return found


def failing(judgement: Judgement) -> set[str]:
    """Return the gates that failed; an archive that cannot be judged fails as such."""
    failed = {gate.name for gate in judgement.gates if not gate.passed}
    return failed or ({"error"} if judgement.error else set())


def measure(architecture: str) -> tuple[str, ...]:
    """Return the row of a model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(Model(architecture, 0, "seeded", "float32"), folder)
        pin = folder / "model.pin"
        write_pin(make_pin(str(bench.written(None, folder)), device="cpu", isolation="none"), pin)

        def judged(several: Sequence[Variant]) -> dict[str, set[str]]:
            return {
                each.name: failing(judge(bench, each, pin, folder / each.name))
                for each in several
                if each.plant is not None
                and each.dtype in (None, "float32")
                and each.applies_to(bench.described)
            }

        faults, clean = judged(FAULTS), judged(CLEAN)
    hidden = [f"`{name}`" for name, gates in faults.items() if not gates]
    by_outputs = sum(bool(gates - {"modules"}) for gates in faults.values())
    alarms = sum(map(bool, clean.values()))
    only = [f"`{name}`" for name, gates in faults.items() if gates == {"modules"}]
    print(f"shown by the gate modules alone: {', '.join(only)}")
    return (
        architecture,
        str(len(faults)),
        str(len(faults) - len(hidden)),
        str(by_outputs),
        f"{alarms} of {len(clean)}",
        ", ".join(hidden) or "-",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="*", default=["tiny-vit", "tiny-resnet"])
    tables.add_option(parser)
    arguments = parser.parse_args()
    with tables.table("pins", COLUMNS, arguments.tables) as row:
        for architecture in arguments.architectures:
            row(*measure(architecture))


if __name__ == "__main__":
    main()
