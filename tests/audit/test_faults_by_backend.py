"""The catalogue of other backends: each fault is caught, no clean variant is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper

from clipcheck.audit.bench import Bench, Model
from clipcheck.audit.faults import CLEAN, CLEAN_FAMILY, FAMILIES, FAULTS, Variant
from clipcheck.audit.faults.by_backend import BACKEND_FAULTS, CLEAN_BACKENDS, graphs
from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.names import BACKENDS
from clipcheck.backends.registry import find
from clipcheck.backends.source import Source
from clipcheck.checkpoints.architecture import ARCHITECTURES, Architecture, ResNet, ViT
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.models.loader import load_eager
from clipcheck.writers.convert import write
from clipcheck.writers.synthesize import architecture_named
from tests.models import TINY
from tests.samples import MINUTE, minute_weights
from tests.thorough import quick_first

ALL = (*BACKEND_FAULTS, *CLEAN_BACKENDS)
FAST = ("clip", "open_clip", "transformers", "trace", "script", "export", "onnxruntime", "openvino")
"""The ones where planting takes the least time come first."""
SLOW = ("compile", "aotinductor", "executorch")
"""They take most of a minute for each variant: `clipcheck audit --backend all` plants into them."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Bench]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for name in TINY:
            patch.setitem(ARCHITECTURES, name, smallest(name))
        yield {
            name: Bench(Model(name, 0, "seeded", "float32"), tmp_path_factory.mktemp("backends"))
            for name in TINY
        }
    torch.set_num_threads(threads)


def smallest(name: str) -> Architecture:
    """Return one layer of each kind, because exporting takes the time."""
    architecture = architecture_named(name)
    vision = architecture.vision
    layers = (
        replace(vision, layers=1) if isinstance(vision, ViT) else replace(vision, layers=(1,) * 4)
    )
    return replace(architecture, vision=layers, text_layers=1)


SAMPLE = (
    "text-block-skipped",
    "quickgelu-slope-1.7",
    "batch-norm-epsilon-1e-3-in-one",
    "layer-norm-epsilon-1e-6",
    "one-layer-in-bfloat16",
    "residual-stream-clipped-at-100",
    "logits-clamped-at-90",
    "quickgelu-by-silu",
)
"""The faults and clean variants of archives that are planted into programs here: of a wiring, an
activation, a normalisation of each kind, a precision and a limit. `clipcheck audit --backend
export` plants all, which takes ten minutes."""


def is_tried(variant: Variant) -> bool:
    """Whether a variant is one of the backends' own, or of the sample."""
    archives = {each.name for each in (*FAULTS, *CLEAN)}
    of_programs = variant.plants.keys() <= {"export", "onnxruntime"}
    return variant.name in SAMPLE or not (variant.name in archives and of_programs)


def cases(variants: tuple[Variant, ...], *quick: tuple[str, str]) -> Any:
    """Pair each variant with the first small architecture and the fastest backend that it applies
    to; the unaltered model with every fast one. The ``quick`` ones, by backend and name, come
    first."""
    found = {}
    for variant in filter(is_tried, variants):
        fast = [backend for backend in FAST if backend in variant.plants]
        for backend in fast if variant.name == "as-it-is" else fast[:1]:
            names = [name for name in TINY if variant.applies_to(architecture_named(name), backend)]
            found[backend, variant.name] = pytest.param(
                backend, names[0], variant, id=f"{backend}-{variant.name}"
            )
    order = [*quick, *sorted(found.keys() - set(quick))]
    cases = quick_first([found[key] for key in order], len(quick))
    return pytest.mark.parametrize(("backend", "name", "variant"), cases)


@cases(BACKEND_FAULTS, ("trace", "features-normalised"))
def test_a_fault_is_caught(
    benches: dict[str, Bench], backend: str, name: str, variant: Variant, tmp_path: Path
) -> None:
    gates, _ = benches[name].judge(variant, backend, tmp_path)
    assert not all(gate.passed for gate in gates)
    assert max(gate.margin for gate in gates) > 2  # none is near the limit


@cases(CLEAN_BACKENDS, ("transformers", "attention-eager"))
def test_a_clean_variant_passes(
    benches: dict[str, Bench], backend: str, name: str, variant: Variant, tmp_path: Path
) -> None:
    gates, _ = benches[name].judge(variant, backend, tmp_path)
    assert [gate.name for gate in gates if not gate.passed] == []
    assert max(gate.margin for gate in gates) < 0.8


# ---------------------------------------------------------------------------- the catalogue


def test_names_are_unique_and_in_kebab_case() -> None:
    names = Counter(variant.name for variant in ALL)
    assert [name for name, count in names.items() if count > 1] == []
    assert not [n for n in names if set(n) - set("abcdefghijklmnopqrstuvwxyz0123456789-.")]
    assert max(map(len, names)) < 40


def test_a_name_shared_with_the_catalogue_of_archives_is_the_same_kind_of_fault() -> None:
    archives = {variant.name: variant.family for variant in (*FAULTS, *CLEAN)}
    assert [v.name for v in ALL if archives.get(v.name, v.family) != v.family] == []


def test_every_reason_is_one_line() -> None:
    assert [v.name for v in ALL if not v.reason or "\n" in v.reason or len(v.reason) > 100] == []


def test_every_family_is_known_and_clean_variants_have_their_own() -> None:
    assert {variant.family for variant in BACKEND_FAULTS} <= set(FAMILIES)
    assert {variant.family for variant in CLEAN_BACKENDS} == {CLEAN_FAMILY}


def test_every_backend_except_jit_and_eager_has_several_faults() -> None:
    faults = Counter(backend for variant in BACKEND_FAULTS for backend in variant.plants)
    clean = Counter(backend for variant in CLEAN_BACKENDS for backend in variant.plants)
    assert faults.keys() == clean.keys() == set(BACKENDS) - {"jit", "eager"}
    assert min(faults[backend] for backend in FAST) >= 5
    assert all(2 <= faults[backend] <= 3 for backend in SLOW)


def test_a_variant_has_a_dtype_that_its_backend_supports_on_the_cpu(
    source: Source,
) -> None:
    for variant in ALL:
        for backend in variant.plants:
            assert find(backend).unfit(source.checkpoint, CPU, variant.dtype) is None


def test_a_variant_is_planted_only_where_it_applies() -> None:
    vit, resnet = (architecture_named(name) for name in TINY)
    stem = next(v for v in ALL if v.kinds == (ResNet,))
    assert not any(stem.applies_to(vit, backend) for backend in stem.plants)
    dropped = next(v for v in ALL if v.name == "causal-mask-dropped")
    assert dropped.kinds == (ViT, ResNet)
    assert dropped.applies_to(vit, "transformers")
    assert not dropped.applies_to(resnet, "transformers")
    assert not stem.applies_to(resnet, "transformers")


# ------------------------------------------------------------------------------- planting


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("source")
    path = folder / "minute.safetensors"
    write(MINUTE, minute_weights(), path, Format.SAFETENSORS)
    checkpoint = open_checkpoint(path)
    model = load_eager(checkpoint, CPU, torch.float32)
    return Source(
        checkpoint=checkpoint,
        model=model,
        device=CPU,
        dtype="float32",
        options={},
        scratch=folder,
        artefacts=Artefacts(None, folder),
    )


def test_planting_leaves_the_source_as_it_was(source: Source) -> None:
    from clipcheck.backends.clip import import_clip

    kinds = [type(module) for module in source.model.modules()]
    training = [module.training for module in source.model.modules()]
    weights = {key: tensor.clone() for key, tensor in source.model.state_dict().items()}
    library = import_clip().model
    before = (library.QuickGELU.forward, library.CLIP.build_attention_mask)
    for variant in ALL:
        for backend in variant.plants.keys() - {"export", "onnxruntime", "openvino"}:
            if not variant.applies_to(MINUTE, backend):
                continue
            with variant.plants[backend](source) as planted:
                assert planted.device == source.device
    assert [type(module) for module in source.model.modules()] == kinds
    assert [module.training for module in source.model.modules()] == training
    assert all(torch.equal(weights[k], t) for k, t in source.model.state_dict().items())
    stored = minute_weights()
    assert all(torch.equal(stored[k], t) for k, t in source.checkpoint.tensors.items())
    assert (library.QuickGELU.forward, library.CLIP.build_attention_mask) == before


def test_functions_of_a_library_are_restored_after_an_error(source: Source) -> None:
    from clipcheck.backends.clip import import_clip

    fault = next(v for v in ALL if v.name == "causal-mask-dropped")
    library = import_clip().model
    own = library.CLIP.build_attention_mask
    planted = fault.plants["clip"](source)
    planted.__enter__()
    assert library.CLIP.build_attention_mask is not own
    assert planted.__exit__(KeyError, KeyError(), None) is False
    assert library.CLIP.build_attention_mask is own


def test_an_altered_model_is_not_taken_from_the_cache(source: Source) -> None:
    fault = next(v for v in ALL if v.name == "causal-mask-dropped")
    with fault.plants["aotinductor"](source) as planted:
        assert planted.artefacts is not source.artefacts


@pytest.mark.parametrize(
    "alter",
    [
        graphs.without_mask,
        graphs.multiplied_mask,
        graphs.softmax_over_queries,
        graphs.pad_behind,
        graphs.slope(1.7),
        graphs.constants_in_half,
        graphs.convolutions_in_half,
        graphs.epsilon(1e-3),
        graphs.rows_of_example,
    ],
)
def test_an_alteration_that_finds_nothing_is_an_error(alter: Any) -> None:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    program = helper.make_model(helper.make_graph([node], "nothing", [value], [output]))
    with pytest.raises(ValueError, match="the fault would change nothing"):
        alter(program)
