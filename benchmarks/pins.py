"""Measure which faults of the catalogue a pin shows: each is planted into an archive, which is
judged against the pin of the sound one.

    python -m benchmarks.pins
    python -m benchmarks.pins tiny-resnet
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from clipcheck.audit.bench import Bench, Model
from clipcheck.audit.faults import CLEAN, FAULTS, Variant
from clipcheck.harness.pinning import make_pin
from clipcheck.results.judgement import Judgement
from clipcheck.results.pin import write_pin
from clipcheck.testing import check


def judge(bench: Bench, variant: Variant, pin: Path, folder: Path) -> Judgement:
    """Plant a variant, and judge the archive against the pin."""
    folder.mkdir()
    archive = bench.written(variant.plant, folder)
    (found,) = check(archive, pinned=pin, device="cpu", isolation="none").judgements
    archive.unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architecture", nargs="?", default="tiny-vit")
    wanted = parser.parse_args().architecture
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(Model(wanted, 0, "seeded", "float32"), folder)
        pin = folder / "model.pin"
        write_pin(make_pin(str(bench.written(None, folder)), device="cpu", isolation="none"), pin)
        for kind, several in (("faults", FAULTS), ("clean variants", CLEAN)):
            own = [
                each
                for each in several
                if each.plant is not None
                and each.dtype in (None, "float32")
                and each.applies_to(bench.described)
            ]
            passed = [
                each.name
                for each in own
                if judge(bench, each, pin, folder / each.name).state == "passed"
            ]
            print(f"{len(own)} {kind}: {len(own) - len(passed)} failed; passed: {passed}")


if __name__ == "__main__":
    main()
