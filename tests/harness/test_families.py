"""Models of a library, from the folder to the verdict: sound ones pass, and faults are found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clipcheck.audit.small import SMALL, small
from clipcheck.families import open_clip
from clipcheck.families.base import DualEncoder
from clipcheck.harness.checking import check
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.results.judgement import Result
from clipcheck.writers.library import draw, write_folder
from clipcheck.writers.programs import write_pt2
from tests.families.test_transformers import architecture_of
from tests.thorough import parametrize


def _epsilon(model: DualEncoder) -> None:
    """Change epsilon in each LayerNorm of the image tower."""
    for name, module in model.named_modules():
        if "visual" in name and isinstance(module, nn.LayerNorm):
            module.eps = 1e-3


def _gelu(model: DualEncoder) -> None:
    """Replace exact GELU by its tanh approximation, or the other way round."""
    found = [module for module in model.modules() if isinstance(module, nn.GELU)]
    for module in found:
        module.approximate = "none" if module.approximate == "tanh" else "tanh"
    assert found


def _scale(model: DualEncoder) -> None:
    """Change the logit scale, as if it were an old one."""
    with torch.no_grad():
        model.log_scale().add_(0.01)


def folder(kind: str, tmp_path: Path) -> Path:
    path = tmp_path / kind
    write_folder(small(kind), path)
    return path


def planted(kind: str, tmp_path: Path, fault: Callable[[DualEncoder], None]) -> Result:
    """Return the result for a program that was made from an altered model."""
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
    assert words or "ids drawn at random without the tokenizer" in found.computes


_FAST = [name for name in SMALL if name not in ("siglip", "convnext")]


@pytest.mark.thorough
@parametrize(
    ("kind", "dtype"),
    [(kind, ("float16", "bfloat16")[number % 2]) for number, kind in enumerate(_FAST)],
)
def test_half_precision_raises_no_alarm(kind: str, dtype: str, tmp_path: Path) -> None:
    result = check(
        folder(kind, tmp_path), backend="trace", dtype=dtype, examples=EDGE_CASES, isolation="none"
    )
    (found,) = result.judgements
    assert (found.error, found.dtype, failed(result)) == (None, dtype, set())
    assert "precision" in {gate.name for gate in found.gates}


@pytest.mark.thorough
def test_the_logits_of_a_model_with_a_bias_are_judged_by_sigmoid(tmp_path: Path) -> None:
    result = check(folder("siglip", tmp_path), backend="trace", examples=2)
    (found,) = result.judgements
    (allclose,) = (gate for gate in found.gates if gate.name == "allclose")
    assert allclose.message.startswith("sigmoid probabilities agree within")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "fault"), [("clipa", _epsilon), ("roberta", _gelu), ("siglip", _scale)]
)
def test_a_planted_fault_is_seen(
    kind: str, fault: Callable[[DualEncoder], None], tmp_path: Path
) -> None:
    """In a program; tests/audit has more faults and models, which are traced."""
    assert failed(planted(kind, tmp_path, fault)) & {"fidelity", "integrity"}


# --------------------------------------------------------------------------- bad input

Config = dict[str, Any]


def _narrow(config: Config) -> None:
    config["model_cfg"]["embed_dim"] = 32


def _timm(config: Config) -> None:
    config["model_cfg"]["vision_cfg"] = {"timm_model_name": "vit_of_tomorrow", "image_size": 32}


def _tokenizer_code(config: Config) -> None:
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}


def _wide(config: Config) -> None:
    config["vision_config"]["hidden_size"] = 64


def _code(config: Config) -> None:
    config["auto_map"] = {"AutoModel": "modeling.Mine"}


def _frames(config: Config) -> None:
    config["model_type"] = "xclip"


def _tower(config: Config) -> None:
    config["model_type"] = "siglip_vision_model"


@pytest.mark.parametrize(
    ("library", "spoil", "told"),
    [
        (
            "open_clip",
            _narrow,
            r"has shape \[\d+, 64\], expected \[\d+, 32\].* Take the",
        ),
        ("open_clip", _timm, r"The timm installed here, [\d.]+, does not have .*'vit_of_tomorrow'"),
        ("open_clip", _tokenizer_code, "its configuration has trust_remote_code: .* never does"),
        ("transformers", _wide, r"has shape \[32.*\], expected \[64.*\].* Take the config\.json"),
        ("transformers", _code, "its configuration has auto_map: .* clipcheck never does"),
        (
            "transformers",
            _frames,
            "it is a model of X-CLIP, .* clipcheck supports CLIPModel, Siglip",
        ),
        ("transformers", _tower, "expected SiglipVisionModel under 'architectures', found None"),
    ],
)
def test_bad_input_is_reported_in_one_line(
    library: str, spoil: Callable[[Config], None], told: str, tmp_path: Path
) -> None:
    model = small("clipa") if library == "open_clip" else architecture_of("siglip")
    write_folder(model, tmp_path / "m")
    name = "open_clip_config.json" if library == "open_clip" else "config.json"
    config = json.loads((tmp_path / "m" / name).read_text())
    spoil(config)
    (tmp_path / "m" / name).write_text(json.dumps(config))
    (found,) = check(tmp_path / "m", examples=1, isolation="none").judgements
    assert found.error is not None
    assert re.search(told, found.error)
    assert "\n" not in found.error
