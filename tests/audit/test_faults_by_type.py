"""Faults that are planted by the types of modules, in small models of libraries."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

from clipcheck.audit import auditing, small
from clipcheck.audit.auditing import CATALOGUE, audit
from clipcheck.audit.bench import Bench, Model
from clipcheck.audit.faults.by_type import CLEAN_TYPES, TYPE_FAULTS, altering
from clipcheck.audit.faults.selecting import last_block, running
from clipcheck.audit.faults.variant import CLEAN_FAMILY, FAMILIES, Variant
from clipcheck.checkpoints.library import LibraryArchitecture, read_transformers
from clipcheck.errors import UsageError
from clipcheck.families.base import DualEncoder
from clipcheck.families.registry import family
from clipcheck.writers.library import draw
from tests.audit.test_bench import Here
from tests.thorough import parametrize

ALL = (*TYPE_FAULTS, *CLEAN_TYPES)

QUICK = ("epsilons-of-another-library", "padding-attended-to")
"""A weak fault, and one of a text model of transformers."""

CLEAN = "attentions-step-by-step"


def built(name: str) -> DualEncoder:
    architecture = small.small(name)
    return family(architecture.library).build(architecture, draw(architecture))


def named(name: str) -> Variant:
    return next(variant for variant in ALL if variant.name == name)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "Processes", Here)


def test_faults_are_caught_and_a_clean_variant_passes() -> None:
    found = audit((), families=("roberta",), only=(*QUICK, CLEAN), localize=True)
    assert [finding for finding in found.findings if not finding.right] == []
    assert [finding.name for finding in found.faults if not finding.localised] == []
    assert found.faults == found.sought
    assert {finding.architecture for finding in found.findings} == {"roberta"}
    assert (len(found.faults), len(found.clean)) == (2, 1)


FAST = ("clipa", "metaclip2", "coca", "roberta", "convnext")
"""The models in which a variant takes a second or two; in the others it is up to ten."""

SLOW = ("siglip", "mobileclip", "Aimv2Model")
"""Those that have a logit bias, a scale of the residual, normalisations over a batch, or another
activation than GELU and QuickGELU."""


@functools.cache
def dealt() -> dict[str, list[str]]:
    """Assign each variant to the model with the fewest so far, among those that it applies to."""
    applying = {
        name: {v.name for v in ALL if v.applies_to(small.small(name), "trace")}
        for name in (*FAST, *SLOW)
    }
    found: dict[str, list[str]] = {name: [] for name in applying}
    for variant in ALL:
        able = [name for name in FAST if variant.name in applying[name]]
        able = able or [name for name in SLOW if variant.name in applying[name]]
        found[min(able, key=lambda name: len(found[name]))].append(variant.name)
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_each_variant_gets_the_right_verdict_in_one_of_the_models(name: str) -> None:
    """In all of them: `clipcheck audit --family all`."""
    found = audit((), families=(name,), only=dealt()[name], localize=True)
    assert [finding for finding in found.findings if not finding.right] == []
    assert [finding.name for finding in found.faults if not finding.localised] == []
    assert sorted(finding.name for finding in found.findings) == sorted(dealt()[name])


@pytest.mark.thorough
def test_a_block_that_an_exported_program_runs_twice_is_named(tmp_path: Path) -> None:
    """Not the first module in it, which is not shown as one call."""
    bench = Bench(Model("clipa", 0, "seeded", "float32"), tmp_path)
    assert bench.find(named("last-image-block-repeated"), "export", localize=True).localised


@parametrize("name", FAST, quick=2)
def test_most_variants_apply_to_each_model(name: str) -> None:
    architecture = small.small(name)
    chosen = [variant for variant in CATALOGUE if variant.applies_to(architecture, "trace")]
    assert sum(not variant.clean for variant in chosen) >= 18
    assert sum(variant.clean for variant in chosen) >= 6


def test_a_variant_does_not_apply_to_a_model_without_its_modules() -> None:
    clipa, roberta = small.small("clipa"), small.small("roberta")
    padding, mask = named("padding-attended-to"), named("text-mask-left-out")
    assert [padding.applies_to(each, "trace") for each in (clipa, roberta)] == [False, True]
    assert [mask.applies_to(each, "trace") for each in (clipa, roberta)] == [False, False]
    assert mask.applies_to(small.small("metaclip2"), "trace")
    assert padding.applies_to(roberta, "onnxruntime")
    assert not padding.applies_to(roberta, "openvino")
    assert not named("image-layer-in-bfloat16").applies_to(clipa, "onnxruntime")


def test_modules_that_do_not_run_are_not_selected() -> None:
    model = built("coca")
    selected = set(running(model))
    inner = model.get_submodule("model")
    decoder = set(inner.get_submodule("text_decoder").modules())
    assert decoder.isdisjoint(selected)
    assert set(running(model, visual=True)).isdisjoint(running(model, visual=False))


def test_each_tower_runs_once_for_all_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("clipa")
    run: list[str] = []
    for name in ("encode_image", "encode_text"):
        monkeypatch.setattr(model, name, counted(run, name, getattr(model, name)))
    assert sum(variant.finds is None or variant.finds(model) for variant in ALL) >= 24
    assert run == ["encode_image", "encode_text"]


def counted(run: list[str], name: str, method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(given: Tensor) -> Tensor:
        run.append(name)
        return method(given)

    return call


@pytest.fixture
def tower() -> LibraryArchitecture:
    config = {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModelWithProjection"],
        "eos_token_id": 2,
        "projection_dim": 24,
        **small.HF_TEXT,
    }
    architecture, _ = read_transformers(config, Path("config.json"))
    assert isinstance(architecture, LibraryArchitecture)
    return architecture


def test_a_single_tower_gets_only_variants_of_that_tower(tower: LibraryArchitecture) -> None:
    chosen = {v.name for v in TYPE_FAULTS if v.applies_to(tower, "trace")}
    assert chosen >= {"a-text-leaks-into-others", "epsilons-of-another-library"}
    assert chosen.isdisjoint({"scale-stale", "channels-in-reverse", "bright-images-otherwise"})


def test_a_single_tower_is_judged_by_its_own_outputs(
    tower: LibraryArchitecture, tmp_path: Path
) -> None:
    bench = Bench(Model("a tower", 0, "seeded", "float32"), tmp_path, tower)
    sound = bench.find(named(CLEAN), "trace")
    assert sound.gate is None
    faulty = bench.find(named("epsilons-of-another-library"), "trace")
    assert faulty.gate == "modules"
    assert not faulty.classic_caught


@pytest.mark.parametrize("name", ["clipa", "Aimv2Model", "AlignModel"])
def test_a_stale_scale_is_smaller(name: str) -> None:
    """AIMv2 bounds it from above, and ALIGN divides by it."""
    model = built(name)
    before = model.log_scale().item()
    altering.scale_less(model)
    assert before - model.log_scale().item() == pytest.approx(0.01, rel=0.01)


def test_the_last_block_belongs_to_the_tower() -> None:
    model = built("clipa")
    for visual, tower in ((True, "visual.transformer"), (False, "transformer")):
        blocks = model.get_submodule(f"model.{tower}.resblocks")
        assert isinstance(blocks, nn.ModuleList)
        assert last_block(visual=visual)(model) == [blocks[-1]]


def test_blocks_that_change_the_shape_are_not_skipped() -> None:
    """Those of EfficientNet give other channels and fewer places."""
    model = built("AlignModel")
    assert last_block(visual=True)(model) == []
    assert len(last_block(visual=False)(model)) == 1


def test_entries_have_known_families_and_unique_names() -> None:
    counts = Counter(variant.name for variant in CATALOGUE)
    assert [variant.name for variant in ALL if counts[variant.name] != 1] == []
    assert {variant.family for variant in TYPE_FAULTS} <= set(FAMILIES)
    assert {variant.family for variant in CLEAN_TYPES} == {CLEAN_FAMILY}
    assert [v.name for v in ALL if not v.reason or "\n" in v.reason or len(v.reason) > 100] == []


def test_an_unknown_family_and_other_weights_are_refused() -> None:
    with pytest.raises(UsageError, match="a small model of a family, found 'clippa'") as caught:
        audit((), families=("clippa",))
    assert "clipa" in str(caught.value.remedy)
    with pytest.raises(UsageError, match="expected seeded weights"):
        audit((), families=("clipa",), weights=("trained",))
