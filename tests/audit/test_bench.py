from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from clipcheck.audit import auditing, bench
from clipcheck.audit.auditing import audit
from clipcheck.audit.faults import CLEAN, FAULTS
from clipcheck.audit.faults.where import Spot
from clipcheck.audit.findings import Audit, Finding
from clipcheck.backends import registry
from clipcheck.backends.base import Missing
from clipcheck.checkpoints.architecture import ARCHITECTURES, ResNet, ViT
from clipcheck.checkpoints.keys import count_parameters
from clipcheck.errors import RunError, UnavailableError, UnknownModelError, UsageError
from clipcheck.gates.localisation import Localisation, Place, tower_of
from clipcheck.system.processes import Outcome
from clipcheck.writers.synthesize import architecture_named
from tests.system.test_progress import Listener

WEAK_AND_CLEAN = ("layer-norm-epsilon-1e-6", "batch-norm-by-hand")
LOCALISED = ("running-mean-updated", "relu-by-clamp")
TINY = ("tiny-vit", "tiny-resnet")


class Here:
    """Stands for worker processes: runs one job after another in this process, because each worker
    would import torch. The audit of tests/cli has real ones."""

    def __init__(self, _: int, __: object, work: Callable[[Any], object], *___: object) -> None:
        self._work = work
        self._job: Any = None

    def has_room(self, _: object) -> bool:
        return self._job is None

    def submit(self, job: object) -> None:
        self._job = job

    def wait(self) -> list[Outcome]:
        job, self._job = self._job, None
        return [Outcome(job.number, "done", found=self._work(job))]

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True, scope="module")
def _here() -> Iterator[None]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auditing, "Processes", Here)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def _smaller() -> Iterator[None]:
    """Make both small architectures smaller: one block of each kind, because tracing takes the
    time. They keep their vocabulary, which the classic assertion needs."""
    towers = {"tiny-vit": ViT(1, 64, 8), "tiny-resnet": ResNet((1, 1, 1, 1), 8)}
    with pytest.MonkeyPatch.context() as patch:
        for name, vision in towers.items():
            smaller = replace(ARCHITECTURES[name], vision=vision, text_layers=1, text_width=64)
            patch.setitem(ARCHITECTURES, name, smaller)
        yield


@pytest.fixture(scope="module")
def found(_here: None, _smaller: None) -> Audit:
    return audit(TINY, only=WEAK_AND_CLEAN)


@pytest.fixture(scope="module")
def localised(_here: None, _smaller: None) -> Audit:
    return audit(["tiny-resnet"], only=LOCALISED, localize=True)


@pytest.fixture(scope="module")
def shared(_here: None, _smaller: None) -> Audit:
    return audit(["tiny-vit"], only=["linear-by-addmm", "logit-scale-drifts", "empty-prompts"])


def of(found: Audit, name: str, architecture: str) -> Finding:
    (one,) = (f for f in found.findings if (f.name, f.architecture) == (name, architecture))
    return one


def test_a_weak_fault_is_caught_by_modules_though_the_classic_assertion_passes(
    found: Audit,
) -> None:
    for architecture in TINY:
        fault = of(found, "layer-norm-epsilon-1e-6", architecture)
        assert (fault.gate, fault.caught, fault.right) == ("modules", True, True)
        assert fault.margin > 3
        assert not fault.classic_caught
        assert not fault.clean


@pytest.mark.thorough
def test_a_gross_fault_is_also_caught_by_the_classic_assertion() -> None:
    (fault,) = audit(["tiny-vit"], only=["end-token-missing"]).findings
    assert fault.caught
    assert fault.classic_caught


def test_a_clean_variant_passes_well_within_its_limits(found: Audit) -> None:
    clean = of(found, "batch-norm-by-hand", "tiny-resnet")
    assert (clean.gate, clean.caught, clean.clean, clean.right) == (None, False, True, True)
    assert 0 < clean.margin < 0.9
    assert clean.greatest.keys() == {"features", "feature_row", "logits", "logit_row", "module"}


def test_a_variant_is_planted_only_where_it_applies(found: Audit) -> None:
    assert len(found.findings) == 3
    assert found.passed
    assert [len(found.faults), len(found.clean)] == [2, 1]


def test_findings_come_in_the_order_of_the_catalogue(found: Audit) -> None:
    order = [variant.name for variant in (*FAULTS, *CLEAN)]
    positions = [order.index(finding.name) for finding in found.findings]
    assert positions == sorted(positions)


@pytest.mark.thorough
def test_several_seeds_kinds_of_weights_and_dtypes_are_all_judged() -> None:
    listener = Listener()
    found = audit(
        ["tiny-vit"],
        seeds=(0, 1),
        weights=("seeded", "outliers"),
        dtypes=("float32", "float16"),
        only=["logits-in-half"],
        progress=listener,
    )
    kinds = [(kind, dtype) for kind in ("seeded", "outliers") for dtype in ("float32", "float16")]
    assert [(f.seed, f.weights, f.dtype) for f in found.findings] == [
        (seed, *kind) for seed in (0, 1) for kind in kinds
    ]
    assert len({f.margin for f in found.findings}) == 8
    assert listener.words[0] == "judging 8 variants of 8 models"
    assert len(listener.words) == 9
    assert "1 variant judged (8 of 8)" in listener.words[-1]
    assert listener.shares[-1] == 1.0


@pytest.mark.thorough
def test_with_localize_a_fault_is_found_where_it_was_planted(localised: Audit) -> None:
    assert localised.passed
    assert {f.name for f in localised.sought} == set(LOCALISED) - {"relu-by-clamp"}
    for finding in localised.sought:
        assert finding.localised, finding
        assert finding.localisation is not None
        assert finding.localisation.found


@pytest.mark.thorough
def test_weights_changed_by_a_run_are_localised_to_their_module(localised: Audit) -> None:
    (place,) = of(localised, "running-mean-updated", "tiny-resnet").localisation.found  # type: ignore[union-attr]
    assert place.part == "its running_mean, which running changes"


def test_nothing_is_localised_by_default(found: Audit) -> None:
    assert not found.sought
    assert not any(finding.localised for finding in found.findings)


@pytest.mark.thorough
def test_a_fault_that_is_localised_elsewhere_fails_the_audit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = [Spot("transformer.resblocks.1.mlp.gelu")]
    monkeypatch.setattr(bench, "spots", lambda *_: elsewhere)
    found = audit(["tiny-vit"], only=["activation-clipped"], localize=True)
    (finding,) = found.sought
    assert finding.caught
    assert not finding.localised
    assert not found.passed


@pytest.mark.parametrize(
    ("place", "spot", "right"),
    [
        (("a.attn", ""), ("a.attn", ""), True),
        (("a.attn", "itself, or b"), ("a.attn", ""), True),
        (("a.attn", "what it is given"), ("a.attn", ""), False),
        (("a.attn", "what it is given"), ("a.attn", "what it is given"), True),
        (("a", "pooling and projection"), ("a", "pooling"), True),
        (("a", ""), ("a", "pooling"), False),
        (("b.relu3", ""), ("b.relu", ""), True),
        (("b.relu4", ""), ("b.relu", ""), False),
        (("b", ""), ("a", ""), False),
    ],
)
def test_a_place_is_right_if_module_and_part_match(
    place: tuple[str, str], spot: tuple[str, str], right: bool
) -> None:
    module, part = place
    assert bench.is_at(Place(tower="text", module=module, part=part), Spot(*spot)) is right


def test_a_fault_of_both_towers_has_to_be_found_in_both() -> None:
    planted = [Spot("visual.ln_pre"), Spot("visual.ln_post"), Spot("ln_final")]
    spots = [(tower_of(spot.name), spot) for spot in planted]
    subject: Any = SimpleNamespace(_spots=lambda _: spots)
    image, text = (
        Place(tower="image", module="visual.ln_pre"),
        Place(tower="text", module="ln_final"),
    )
    for places, right in (([image, text], True), ([image], False), ([], False)):
        found = Localisation(places)
        assert bench.Bench.is_right(subject, found, FAULTS[0]) is right


def test_jobs_of_a_model_are_consecutive_and_spare_cores_become_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auditing, "cores", lambda: 8)
    models = [bench.Model(name, 0, "seeded", "float32") for name in TINY]
    few = frozenset(["layer-norm-epsilon-1e-6", "heads-interleaved"])
    jobs = auditing._jobs(models, ["jit"], few, None, localize=False)
    assert [job.number for job in jobs] == list(range(4))
    assert [job.model for job in jobs] == [models[0]] * 2 + [models[1]] * 2
    assert {job.threads for job in jobs} == {2}
    sizes = [count_parameters(architecture_named(name)) for name in TINY]
    assert [job.memory for job in jobs] == [16 * sizes[0]] * 2 + [16 * sizes[1]] * 2
    assert {job.threads for job in auditing._jobs(models, ["jit"], few, 3, localize=False)} == {3}


@pytest.mark.parametrize(
    ("architecture", "weights", "planted"),
    [
        ("tiny-vit", "seeded", True),
        ("tiny-resnet", "seeded", False),
        ("tiny-resnet", "trained", True),
    ],
)
def test_a_resnet_with_seeded_weights_is_not_judged_by_a_budget(
    architecture: str, weights: str, planted: bool
) -> None:
    models = [auditing.Model(architecture, 0, weights, "float32")]
    jobs = auditing._jobs(models, ["onnxruntime"], frozenset(), 1, localize=False)
    assert any(job.variant.budget for job in jobs) is planted
    assert any(not job.variant.budget for job in jobs)


def test_a_crashed_worker_is_reported_with_its_variant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def died(self: Here) -> list[Outcome]:
        return [Outcome(self._job.number, "died", reason="it was ended by SIGKILL")]

    monkeypatch.setattr(Here, "wait", died)
    with pytest.raises(RunError) as caught:
        audit(["tiny-vit"], only=["heads-interleaved"])
    assert caught.value.problem == (
        "heads-interleaved in tiny-vit, seed 0, seeded weights, float32 (jit): the worker "
        "process ended while it judged this variant (it was ended by SIGKILL)"
    )


def test_an_error_while_building_a_variant_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = RunError("trace: tracing failed", remedy="Do something.")

    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(bench.Bench, "find", failing)
    with pytest.raises(RunError) as caught:
        audit(["tiny-vit"], only=["heads-interleaved"])
    assert caught.value is error


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"architectures": ["ViT-Z"]}, UnknownModelError, "'ViT-Z'"),
        ({"weights": ["wide"]}, UsageError, "expected a kind of weights, found 'wide'"),
        ({"dtypes": ["half"]}, UsageError, "expected a dtype, found 'half'"),
        ({"architectures": ["RN50"], "weights": ["trained"]}, UsageError, "at most 20,000,000 par"),
        ({"only": ["no-such-fault"]}, UsageError, "no variant is named 'no-such-fault'"),
        ({"architectures": []}, UsageError, "found none"),
        ({"seeds": []}, UsageError, "found none"),
        ({"backends": ["eager"]}, UsageError, "expected a backend to plant .* found 'eager'"),
        ({"backends": ["compile:mode=default"]}, UsageError, "found 'compile:mode=default'"),
        ({"backends": ["onxruntime"]}, UsageError, "found 'onxruntime'"),
        ({"backends": []}, UsageError, "found none"),
    ],
)
def test_unknown_names_are_refused_before_anything_runs(
    arguments: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        audit(**arguments)


FAULT = Finding(
    name="f",
    family="weights",
    reason="r",
    clean=False,
    architecture="tiny-vit",
    seed=0,
    weights="seeded",
    dtype="float32",
    gate="fidelity",
    margin=9.0,
    classic_caught=False,
    backend="jit",
)
HARMLESS = replace(FAULT, name="c", family="clean", clean=True, gate=None, margin=0.3)


def test_an_audit_passes_if_every_fault_is_caught_and_every_clean_variant_passes() -> None:
    assert Audit([FAULT, HARMLESS]).passed
    assert not Audit([replace(FAULT, gate=None), HARMLESS]).passed
    assert not Audit([FAULT, replace(HARMLESS, gate="modules")]).passed
    assert not Audit([]).passed


@pytest.mark.thorough
def test_parts_of_the_catalogue_judge_each_variant_once(shared: Audit) -> None:
    assert [finding.name for finding in shared.findings] == [
        "empty-prompts", "logit-scale-drifts", "linear-by-addmm"
    ]  # fmt: skip


@pytest.mark.thorough
def test_a_weight_changed_by_a_run_is_reported(shared: Audit) -> None:
    assert of(shared, "logit-scale-drifts", "tiny-vit").gate == "integrity"


# ------------------------------------------------------------------------- other backends


WAYS = ("layer-norm-epsilon-1e-3", "end-of-text-by-legacy-id", "logits-in-half")


@pytest.mark.thorough
def test_faults_are_planted_into_every_backend_that_is_named() -> None:
    backends = ["transformers", "trace", "jit", "trace"]
    found = audit(["tiny-vit"], backends=backends, only=WAYS)
    assert [(f.backend, f.name) for f in found.findings] == [
        ("jit", "logits-in-half"),
        ("trace", "layer-norm-epsilon-1e-3"),
        ("transformers", "layer-norm-epsilon-1e-3"),
        ("transformers", "end-of-text-by-legacy-id"),
    ]
    assert found.passed
    assert found.left_out == {}
    assert [finding.name for finding in found.clean] == ["end-of-text-by-legacy-id"]


@pytest.mark.thorough
def test_all_skips_backends_that_cannot_run_here_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in set(auditing.BACKENDS) - {"clip", "trace"}:
        missing = Missing(f"no {name}", "Install it.")
        monkeypatch.setattr(registry.find(name), "available", lambda missing=missing: missing)
    found = audit(["tiny-vit"], backends=["all"], only=["logit-scale-not-exponentiated"])
    assert [finding.backend for finding in found.findings] == ["trace", "clip"]
    assert found.left_out["onnxruntime"] == "no onnxruntime. Install it."
    assert found.left_out.keys() == set(auditing.BACKENDS) - {"clip", "trace"}
    with pytest.raises(UnavailableError, match="compile: no compile"):
        audit(["tiny-vit"], backends=["all", "compile"])


@pytest.mark.thorough
def test_faults_of_other_backends_are_not_localised() -> None:
    found = audit(["tiny-vit"], backends=["trace"], only=WAYS, localize=True)
    assert found.passed
    assert not found.sought


@pytest.mark.thorough
def test_a_block_that_a_program_skips_is_localised_to_it() -> None:
    found = audit(
        ["tiny-vit"], backends=["onnxruntime"], only=["text-block-skipped"], localize=True
    )
    assert found.passed
    assert [finding.localised for finding in found.sought] == [True]


@pytest.mark.thorough
def test_a_budget_catches_faults_in_int8_and_passes_the_sound_program() -> None:
    names = ("int8-zero-point-off", "int8-logit-scale-quantised", "int8-dynamic")
    found = audit(["tiny-vit"], backends=["onnxruntime"], only=names).findings
    assert {each.name: (each.caught, each.gate) for each in found} == {
        "int8-zero-point-off": (True, "integrity"),
        "int8-logit-scale-quantised": (True, "budget"),
        "int8-dynamic": (False, None),
    }
    margins = {each.name: each.margin for each in found}
    assert margins["int8-dynamic"] < 1 < margins["int8-logit-scale-quantised"]
