"""Make a pin of a checkpoint, and judge programs and archives against it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import layouts
from benchmarks.layouts import Layout, broken
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.errors import UsageError
from clipcheck.families import eager
from clipcheck.harness.options import CheckOptions
from clipcheck.harness.pinning import make_pin
from clipcheck.report.text import render
from clipcheck.results.document import document_of, read
from clipcheck.results.document import render as to_json
from clipcheck.results.judgement import Judgement
from clipcheck.results.pin import read_pin, write_pin
from clipcheck.testing import check
from clipcheck.writers.library import write_folder
from tests.families.test_transformers import KINDS, architecture_of
from tests.samples import MINUTE_RESNET, minute_bytes
from tests.thorough import parametrize


@pytest.fixture(scope="module")
def pin(archive: Path) -> Path:
    path = archive.with_suffix(".pin")
    write_pin(make_pin(str(archive), device="cpu", isolation="none"), path)
    return path


@pytest.fixture(scope="module")
def program(model: eager.CLIP, tmp_path_factory: pytest.TempPathFactory) -> str:
    return layouts.optimum(model, tmp_path_factory.mktemp("optimum"))


def one(name: str | Path, pin: Path, **how: Any) -> Judgement:
    (found,) = check(str(name), pinned=pin, **{"isolation": "none", **how}).judgements
    return found


def test_a_pin_is_small(pin: Path) -> None:
    assert pin.stat().st_size < 100_000


def test_a_program_is_judged_without_the_weights_and_without_torch(pin: Path, program: str) -> None:
    code = (
        "import sys, clipcheck\n"
        f"found = clipcheck.check({program!r}, pinned={str(pin)!r})\n"
        "print(found.passed, bool(found.judgements[0].isolation), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True False\n"


def test_the_result_says_that_it_was_judged_against_a_pin(pin: Path, archive: Path) -> None:
    result = check(archive, pinned=pin, device="cpu", isolation="none")
    (found,) = result.judgements
    assert found.passed
    assert {gate.name for gate in found.gates} == {
        "integrity",
        "allclose",
        "fidelity",
        "modules",
        "top1",
        "repeatability",
    }
    (written,) = json.loads(to_json(result))["results"]
    assert written["pinned"]["sha256"] == found.sha256
    assert written["pinned"]["file"] == str(pin)
    assert read(to_json(result)) == document_of(result)
    told = " ".join(render(result).split())
    assert f"of {archive} ({str(found.sha256)[:12]}, torch " in told
    assert "CONSISTENT: 1 checkpoint agrees with the pin." in told


@parametrize("layout", layouts.LAYOUTS, quick=1)
def test_a_sound_layout_passes_and_one_with_a_changed_weight_fails(
    layout: Layout, model: eager.CLIP, pin: Path, tmp_path: Path
) -> None:
    how = {"budget": layout.budget, "map": layout.names}
    # With a pin, weights that are only stored in half precision count as an error.
    stored = "each cast to float32" in layout.name
    sound = one(layout.write(model, tmp_path / "sound"), pin, **how)
    assert sound.error is None
    failed = [gate.message for gate in sound.gates if not gate.passed]
    assert bool(failed) is stored, failed
    altered = one(layout.write(broken(model, layout.steps), tmp_path / "broken"), pin, **how)
    assert altered.error is None
    # A budget allows for what this weight changes, and a quantised weight has no fingerprint.
    assert altered.passed is bool(layout.budget)
    if "throughout" in layout.name:  # where rounding changes more than the weight
        assert "mlp.c_fc.weight: it has other values" in altered.gates[0].message


def test_another_backend_and_dtype_has_its_own_limits(pin: Path, archive: Path) -> None:
    found = one(archive, pin, device="cpu", backend="eager", dtype="bfloat16")
    assert found.passed
    (precision,) = (gate for gate in found.gates if gate.name == "precision")
    assert 0 < precision.margin < 0.5


def test_a_budget_is_judged_with_the_random_inputs_of_the_pin(pin: Path, program: str) -> None:
    found = one(program, pin, budget="fp16")
    (budget,) = (gate for gate in found.gates if gate.name == "budget")
    assert budget.passed
    assert "over 100 rows of random inputs" in budget.message
    more = one(program, pin, budget="top1=0.99")
    assert "found one that needs 889" in str(more.error)
    assert "limits of at most 0.915 for top1 and top5" in str(more.remedy)


def test_a_pin_has_as_many_inputs_as_a_budget_needs_or_names_the_greatest(
    archive: Path, program: str, tmp_path: Path
) -> None:
    made = make_pin(str(archive), device="cpu", isolation="none", budget="top1=0.95")
    path = tmp_path / "larger.pin"
    write_pin(made, path)
    (budget,) = (g for g in one(program, path, budget="top1=0.95").gates if g.name == "budget")
    assert "best match agrees in 100 %" in budget.message
    assert "over 174 rows of random inputs" in budget.message
    with pytest.raises(UsageError, match=r"found one that needs 8,963") as caught:
        make_pin(str(archive), device="cpu", isolation="none", budget="top1=0.999")
    assert "limits of at most 0.99" in caught.value.remedy


def test_a_checkpoint_of_other_sizes_is_not_judged(pin: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(minute_bytes(Format.ARCHIVE, MINUTE_RESNET))
    found = one(path, pin, device="cpu")
    assert found.error == (
        f"{path}: expected a model like the pinned one, with image resolution 16, found 32. "
        "Give the pin of this model, or write one: clipcheck pin."
    )


@pytest.mark.parametrize(
    "other", [{"reference": "x"}, {"examples": 3}, {"exhaustive": True}, {"seed": 2}]
)
def test_a_pin_cannot_be_combined_with_other_inputs_or_references(other: dict[str, Any]) -> None:
    (name,) = other
    with pytest.raises(UsageError, match=f"expected no --{name} beside --pinned"):
        CheckOptions(pinned="model.pin", **other)


@parametrize("kind", ["siglip", *sorted(KINDS.keys() - {"siglip"})])
def test_models_of_libraries_are_pinned_with_their_own_rules(kind: str, tmp_path: Path) -> None:
    folder, path = tmp_path / "model", tmp_path / "model.pin"
    write_folder(architecture_of(kind), folder)
    write_pin(make_pin(str(folder), device="cpu"), path)
    found = one(folder, path, device="cpu")
    assert found.error is None
    failed = {gate.name: gate.message for gate in found.gates if not gate.passed}
    if kind == "aimv2":  # It is not causal for a text without padding alone: docs/findings.
        assert "(no end token) alone moved by" in failed.pop("repeatability")
    assert not failed
    assert {"allclose", "top1", "fidelity"} <= {gate.name for gate in found.gates}
    assert read_pin(path).header.bias == pytest.approx(-10 if "siglip" in kind else 0, abs=1e-5)
