"""The catalogue: each fault changes outputs, and no clean variant does."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from clipcheck.audit.faults import CLEAN, CLEAN_FAMILY, FAMILIES, FAULTS, Variant
from clipcheck.checkpoints.architecture import Architecture, ResNet, ViT
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.families.eager import CLIP, build
from clipcheck.models.torchscript import load_archive, patch
from clipcheck.system import torchscript_support
from clipcheck.writers.archive import write_archive
from clipcheck.writers.synthesize import synthesize
from tests.models import TINY, small
from tests.thorough import parametrize, quick_first

ALL = (*FAULTS, *CLEAN)
CPU = torch.device("cpu")

LEAST_OF_FAULTS = 5
"""How many times the error is that of float32. Only the epsilons of LayerNorm are under 30, since
seeded activations have a variance of one; the others are over 30."""
MOST_OF_CLEAN = 2.5

Subjects = dict[str, "Subject"]
Batch = tuple[torch.Tensor, torch.Tensor]
Outputs = list[torch.Tensor]
Weights = dict[str, torch.Tensor]


class Subject(NamedTuple):
    """A small architecture, its weights, and its expected outputs for each batch."""

    architecture: Architecture
    weights: Weights
    batches: list[Batch]
    expected: list[Outputs]
    rounding: list[float]


def smallest(name: str) -> Architecture:
    """Return as few layers as the variants need, because tracing takes the time."""
    architecture = small(name)
    if isinstance(architecture.vision, ViT):
        return replace(architecture, vision=replace(architecture.vision, layers=2))
    return architecture


def images(architecture: Architecture) -> torch.Tensor:
    """Return six images: noise, one flat, one saturated, one flat in its upper half, and a
    gradient."""
    side = architecture.image_resolution
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(6, 3, side, side, generator=generator)
    pixels[1] = 0.7
    pixels[3] = 2 * pixels[3].sign()
    pixels[4, :, : side // 2] = -0.4
    pixels[5] = torch.linspace(-1.7, 2, side).outer(torch.linspace(1, 0.2, side))
    return pixels


def texts(architecture: Architecture) -> torch.Tensor:
    """Return texts of all lengths, with the empty and the full one, one of a single id, and one
    with id 0."""
    most = architecture.vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(7, architecture.context_length, dtype=torch.int32)
    for row, length in zip(ids, (20, 2, 3, 12, 77, 66, 10), strict=True):
        row[0], row[length - 1] = most - 2, most - 1
        row[1 : length - 1] = torch.randint(1, most - 2, (length - 2,), generator=generator)
    ids[3, 1:11] = most // 3
    ids[6, 4] = 0
    return ids


def outputs(model: Any, batch: Batch) -> Outputs:
    pixels, ids = batch
    with torch.inference_mode():
        found = (model.encode_image(pixels), model.encode_text(ids), *model(pixels, ids))
    return [output.double() for output in found]


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the RMSE of the worst row, or infinity if outputs cannot be compared."""
    if found.shape != expected.shape or not found.isfinite().all():
        return math.inf
    return float((found - expected).square().mean(dim=-1).sqrt().max())


def archive(subject: Subject, variant: Variant, path: Path) -> Any:
    """Write an archive with ``variant`` planted, and load it for float32 on the CPU."""
    with torchscript_support.silenced():
        write_archive(subject.architecture, subject.weights, path, alter=variant.plant)
        model = load_archive(path, CPU)
        patch(model, CPU, torch.float32, ["float16"])
        return model.float()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults") / "model.pt"


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Use one thread and no optimisation: both cost more than they save for small models."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torchscript_support.silenced(), torch.jit.optimized_execution(False):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Make torch forget the classes of traced modules, which keep their weights (as in
    torch/testing/_internal/jit_utils.py): two gigabytes for this file."""
    yield
    torchscript_support.forget_classes()
    torch.jit._state._clear_class_state()


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    return {name: subject_named(name) for name in TINY}


def subject_named(name: str) -> Subject:
    architecture = smallest(name)
    weights = synthesize(architecture)
    pixels, ids = images(architecture), texts(architecture)
    batches = [(pixels, ids), (pixels[:1], ids[4:5]), (pixels[:3], ids[1:3])]
    plain, expected = (
        [outputs(eager(architecture, weights, dtype), batch) for batch in batches]
        for dtype in (torch.float32, torch.float64)
    )
    # By output, the greatest over the batches.
    rounding = [
        max(map(distance, *pairs))
        for pairs in zip(zip(*plain, strict=True), zip(*expected, strict=True), strict=True)
    ]
    return Subject(architecture, weights, batches, expected, rounding)


def eager(architecture: Architecture, weights: Weights, dtype: torch.dtype) -> CLIP:
    cast = {key: t.to(dtype) if t.is_floating_point() else t for key, t in weights.items()}
    return build(architecture, cast)


def error(subject: Subject, variant: Variant, path: Path) -> float:
    """Return the greatest error over all batches and outputs, as a multiple of float32's rounding
    error."""
    model = archive(subject, variant, path)
    torch.manual_seed(0)
    return max(
        distance(found, wanted) / rounding
        for batch, expected in zip(subject.batches, subject.expected, strict=True)
        for found, wanted, rounding in zip(
            outputs(model, batch), expected, subject.rounding, strict=True
        )
    )


def some(variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """Return the first variant of each family that ordinary inputs show. `clipcheck audit`, which
    runs before a change lands, requires all of them, in both architectures."""
    shown = [variant for variant in variants if not variant.hidden]
    return tuple({variant.family: variant for variant in reversed(shown)}.values())


def some_clean() -> tuple[Variant, ...]:
    """Return every third clean variant, and one for a ResNet. `clipcheck audit` requires all."""
    return tuple(v for v in CLEAN if v.name == "batch-norm-folded" or v in CLEAN[::3])


def cases(variants: tuple[Variant, ...], *quick: str) -> Any:
    """Pair each variant with the first small architecture that it applies to."""
    first = {v.name: next(name for name in TINY if v.applies_to(small(name))) for v in variants}
    found = [
        pytest.param(first[variant.name], variant, id=f"{variant.name}-{first[variant.name]}")
        for variant in sorted(variants, key=lambda variant: variant.name not in quick)
    ]
    assert quick == () or {variant.name for variant in variants} >= set(quick)
    return pytest.mark.parametrize(("name", "variant"), quick_first(found, len(quick)))


# ---------------------------------------------------------------------------- the catalogue


def test_there_are_enough_faults_and_clean_variants() -> None:
    assert len(FAULTS) >= 66
    assert len(CLEAN) >= 16


def test_names_are_unique_and_in_kebab_case() -> None:
    names = [variant.name for variant in ALL]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert [
        name for name in names if set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-.")
    ] == []


def test_every_reason_is_one_line() -> None:
    assert [v.name for v in ALL if not v.reason or "\n" in v.reason or len(v.reason) > 100] == []


def test_every_family_has_several_faults_and_clean_variants_have_their_own() -> None:
    counts = Counter(variant.family for variant in FAULTS)
    assert set(counts) == set(FAMILIES)
    assert min(counts.values()) >= 3
    assert {variant.family for variant in CLEAN} == {CLEAN_FAMILY}


@pytest.mark.parametrize("kind", [ViT, ResNet])
def test_each_kind_of_image_tower_has_enough_faults_and_clean_variants(kind: type) -> None:
    assert sum(kind in variant.kinds for variant in FAULTS) >= 66
    assert sum(kind in variant.kinds for variant in CLEAN) >= 16
    assert all(set(variant.kinds) <= {ViT, ResNet} and variant.kinds for variant in ALL)


def test_a_variant_of_one_kind_does_not_apply_to_the_other() -> None:
    variant = next(v for v in FAULTS if v.kinds == (ViT,))
    assert [variant.applies_to(small(name)) for name in TINY] == [True, False]


# ------------------------------------------------------------------------- what they compute


@parametrize("name", TINY)
def test_an_archive_without_a_plant_is_as_exact_as_float32(
    subjects: Subjects, name: str, path: Path
) -> None:
    nothing = Variant(
        name="nothing",
        family=CLEAN_FAMILY,
        reason="for comparison",
        plant=lambda model: None,
    )
    assert error(subjects[name], nothing, path) < MOST_OF_CLEAN


@cases(some(FAULTS), "causal-mask-missing", "stem-padded-by-replication")
def test_a_fault_changes_the_outputs(
    subjects: Subjects, name: str, variant: Variant, path: Path
) -> None:
    assert error(subjects[name], variant, path) > LEAST_OF_FAULTS


@cases(some_clean(), "batch-norm-folded")
def test_a_clean_variant_does_not_change_the_outputs(
    subjects: Subjects, name: str, variant: Variant, path: Path
) -> None:
    assert error(subjects[name], variant, path) < MOST_OF_CLEAN


@cases(
    tuple(v for v in FAULTS if v.name in ("running-mean-updated", "logit-scale-drifts")),
    "running-mean-updated",
)
def test_planting_a_fault_does_not_change_weights_yet(
    subjects: Subjects, name: str, variant: Variant, path: Path
) -> None:
    archive(subjects[name], variant, path)
    stored, made = open_checkpoint(path).tensors, synthesize(smallest(name))
    assert [key for key, tensor in made.items() if not torch.equal(stored[key], tensor)] == []
