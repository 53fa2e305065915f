from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipcheck.audit.faults import fault_named
from clipcheck.writers.archive import write_archive
from conftest import Run, SeededArchive, unfolded
from tests.samples import (
    MINUTE,
    minute_weights,
)


def test_localize_names_the_module_and_exits_with_1(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    plant = fault_named("activation-clipped").plant
    write_archive(MINUTE, minute_weights(), path, alter=plant)
    done = run("localize", path)
    assert done.code == 1
    assert "  text tower   transformer.resblocks.0.mlp.gelu\n" in done.out
    assert "  image tower  nothing departs\n" in done.out
    assert "  logits       not compared\n" in done.out
    assert "DEPARTS: text tower.\n" in done.out
    assert f"clipcheck check {path} --dtype float32 --report clip-report" in unfolded(done.out)
    assert run("localize", path, "-q").out == "DEPARTS: text tower.\n"
    document = json.loads(run("localize", path, "--json", "-").out)
    assert (document["schema"], document["passed"]) == (1, False)
    assert [tower["module"] for tower in document["towers"]] == [
        None, "transformer.resblocks.0.mlp.gelu", None
    ]  # fmt: skip
    assert document["towers"][1]["figures"]["allowed"] == 10
    assert run("localize", tmp_path / "gone.pt").code == 2


@pytest.mark.thorough
def test_localize_exits_with_0_where_nothing_departs(
    run: Run, seeded_archive: SeededArchive
) -> None:
    done = run("localize", seeded_archive(), "--dtype", "float32", "--device", "cpu")
    assert done.code == 0
    assert done.out.endswith("NOTHING DEPARTS in the modules that were compared.\n")
