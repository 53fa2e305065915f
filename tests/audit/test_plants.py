"""Each fault of the catalogue alters the model that it is planted into."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipcheck.audit.faults import FAULTS
from clipcheck.audit.faults.by_type import TYPE_FAULTS
from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.small import small
from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.source import Source
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.families.base import DualEncoder
from clipcheck.families.registry import family
from clipcheck.harness.trial import lengths_for
from clipcheck.system import torchscript_support
from clipcheck.writers import archive
from clipcheck.writers.archive import Alter
from clipcheck.writers.library import draw
from clipcheck.writers.synthesize import synthesize
from tests.samples import MINUTE, MINUTE_RESNET

SUBJECTS = [replace(each, context_length=77) for each in (MINUTE, MINUTE_RESNET)]
"""Faults cut and shift texts of the released length."""

_NAMES = re.compile(r"\.___torch_mangle_\d+| # .*")
"""What differs between two traces of one model: torch numbers classes, and notes lines of code."""


def traced(architecture: Architecture, weights: dict[str, Tensor], alter: Alter) -> list[Any]:
    """Return everything that an archive consists of: code, constants and weights."""
    torchscript_support.forget_classes()
    module = archive._trace(architecture, archive.buffers(architecture) | weights, alter)
    graphs = [module._c._get_method(name).inlined_graph for name in module._c._method_names()]
    constants = [
        node.t("value").tolist()
        for graph in graphs
        for node in graph.findAllNodes("prim::Constant")
        if node.hasAttribute("value") and node.kindOf("value") == "t"
    ]
    state = {key: tensor.tolist() for key, tensor in module.state_dict().items()}
    return [_NAMES.sub("", str(graph)) for graph in graphs] + [constants, state]


def epsilon_set_again(model: Any) -> None:
    model.ln_final.eps = float(model.ln_final.eps)


def vacuous(faults: Sequence[Variant], architecture: Architecture) -> list[str]:
    """Return the names of faults that leave an archive unchanged."""
    weights = {key: tensor.float() for key, tensor in synthesize(architecture).items()}

    def given() -> dict[str, Tensor]:
        return {key: tensor.clone() for key, tensor in weights.items()}

    with torchscript_support.silenced():
        plain = traced(architecture, given(), epsilon_set_again)
        assert traced(architecture, given(), lambda _: None) == plain
        return [
            fault.name
            for fault in faults
            if fault.plant and traced(architecture, given(), fault.plant) == plain
        ]


@pytest.mark.thorough
@pytest.mark.parametrize("architecture", SUBJECTS, ids=["ViT", "ResNet"])
def test_a_fault_of_each_family_alters_the_archive(architecture: Architecture) -> None:
    """All: `clipcheck audit`, which runs before a change lands. It has to catch each."""
    applying = [fault for fault in FAULTS if fault.applies_to(architecture)]
    faults = list({fault.family: fault for fault in applying}.values())
    assert len(faults) > 5
    assert vacuous(faults, architecture) == []


# ------------------------------------------------------------------- models of libraries


def outputs(model: DualEncoder, pixels: Tensor, tokens: Tensor) -> list[Tensor]:
    with torch.no_grad():
        image, text = model.encode_image(pixels), model.encode_text(tokens)
        return [image, text, *model.logits(image, text)]


def apart(found: Tensor, plain: Tensor) -> bool:
    """Whether two outputs differ by more than float64 rounds."""
    return float((found - plain).abs().max() / plain.abs().max()) > 1e-9


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["clipa", "ChineseCLIPModel"])
def test_each_fault_alters_the_outputs_of_a_library_model(name: str, tmp_path: Path) -> None:
    architecture = small(name)
    weights = {key: tensor.double() for key, tensor in draw(architecture).items()}
    model = family(architecture.library).build(architecture, weights)
    checkpoint: Any = None
    cpu, artefacts = torch.device("cpu"), Artefacts(None, tmp_path)
    source = Source(
        checkpoint=checkpoint,
        model=model,
        device=cpu,
        dtype="float64",
        options={},
        scratch=tmp_path,
        artefacts=artefacts,
    )
    side = model.image_resolution
    # Noise and an almost white image; prompts of every length.
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    pixels[2] = 1
    tokens = torch.from_numpy(lengths_for(architecture, 0).tokens)
    plain = outputs(model, pixels, tokens)
    faults = [fault for fault in TYPE_FAULTS if fault.applies_to(architecture, "trace")]
    assert len(faults) > 10
    for fault in faults:
        with fault.plants["trace"](source) as planted:
            found = outputs(planted.model, pixels, tokens)
        assert any(map(apart, found, plain)), fault.name
    assert not any(map(apart, outputs(model, pixels, tokens), plain))
