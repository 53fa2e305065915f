"""Models of a library, from the folder to the verdict: sound ones pass, and faults are seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from clipcheck.audit.small import small
from clipcheck.families import open_clip
from clipcheck.families.base import DualEncoder
from clipcheck.harness.checking import check
from clipcheck.results.judgement import Result
from clipcheck.writers.library import draw, write_folder
from clipcheck.writers.programs import write_pt2
from tests.thorough import parametrize


def _epsilon(model: DualEncoder) -> None:
    """Another epsilon in each LayerNorm of the image tower."""
    for name, module in model.named_modules():
        if "visual" in name and isinstance(module, nn.LayerNorm):
            module.eps = 1e-3


def _gelu(model: DualEncoder) -> None:
    """GELU approximated by tanh, where it was exact, or the other way round."""
    found = [module for module in model.modules() if isinstance(module, nn.GELU)]
    for module in found:
        module.approximate = "none" if module.approximate == "tanh" else "tanh"
    assert found


def _scale(model: DualEncoder) -> None:
    """A stale scale of the logits."""
    with torch.no_grad():
        model.log_scale().add_(0.01)


def folder(kind: str, tmp_path: Path) -> Path:
    path = tmp_path / kind
    write_folder(small(kind), path)
    return path


def planted(kind: str, tmp_path: Path, fault: Callable[[DualEncoder], None]) -> Result:
    """The result for a program that was made of an altered model."""
    architecture = small(kind)
    model = open_clip.build(architecture, draw(architecture))
    fault(model)
    program = tmp_path / "program.pt2"
    write_pt2(model, program)
    return check(program, reference=folder(kind, tmp_path), examples=8, isolation="none")


def failed(result: Result) -> set[str]:
    return {gate.name for each in result.judgements for gate in each.gates if not gate.passed}


@parametrize("kind", ["clipa", "coca", "convnext", "roberta"])
def test_a_sound_folder_passes_by_its_default_and_says_what_was_the_reference(
    kind: str, tmp_path: Path
) -> None:
    result = check(folder(kind, tmp_path), examples=8)
    (found,) = result.judgements
    assert (result.passed, found.backend, found.error) == (True, "export", None)
    assert {gate.name for gate in found.gates} >= {"integrity", "allclose", "fidelity", "top1"}
    assert found.computes.startswith("open_clip's own model, which is the reference")
    words = "ids by CLIP's tokenizer" in found.computes
    assert words or "ids drawn directly, as the tokenizer" in found.computes


def test_the_logits_of_a_model_with_a_bias_are_judged_by_sigmoid(tmp_path: Path) -> None:
    result = check(folder("siglip", tmp_path), backend="trace", examples=2)
    (found,) = result.judgements
    (allclose,) = (gate for gate in found.gates if gate.name == "allclose")
    assert allclose.message.startswith("sigmoid probabilities agree within")


@parametrize(("kind", "fault"), [("clipa", _epsilon), ("roberta", _gelu), ("siglip", _scale)])
def test_a_planted_fault_is_seen(
    kind: str, fault: Callable[[DualEncoder], None], tmp_path: Path
) -> None:
    """In a program; tests/audit has more faults and models, which are traced."""
    assert failed(planted(kind, tmp_path, fault)) & {"fidelity", "integrity"}
