from __future__ import annotations

import re
from pathlib import Path

from clipcheck.results.pin import read_pin
from conftest import Run


def test_a_pin_is_written_and_the_same_checkpoint_agrees_with_it(
    run: Run, minute_archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.pin"
    made = run("pin", minute_archive, "-o", path, "--seed", 4, "--isolation", "none")
    assert made.code == 0
    # The paths and versions in it have other lengths elsewhere.
    told = re.fullmatch(r"(.+): (\d+) kB, features of 116 images and 119 prompts\n", made.out)
    assert told is not None
    assert told[1] == str(path)
    assert 60 < int(told[2]) < 70
    assert read_pin(path).header.seed == 4
    done = run("check", minute_archive, "--pinned", path, "--isolation", "none", "--quiet")
    assert done.code == 0
    assert done.out.endswith("CONSISTENT: 1 checkpoint agrees with the pin.\n")
    assert run("check", minute_archive, "--pinned", minute_archive).code == 2
    shown = run("inspect", path)
    assert (shown.code, "found a pin that clipcheck wrote" in shown.err) == (2, True)


def test_weights_of_unknown_activation_are_not_pinned(
    run: Run, minute_archive: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.pth"
    assert run("convert", minute_archive, "-o", weights, "--isolation", "none").code == 0
    done = run("pin", weights, "-o", tmp_path / "model.pin")
    assert done.code == 2
    assert "the model's activation, heads and epsilon are not known" in done.err
    assert not (tmp_path / "model.pin").exists()
