from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import clipcheck
from clipcheck.audit.faults import fault_named
from clipcheck.checkpoints import registry
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.errors import RunError, UsageError
from clipcheck.gates.localisation import Localisation
from clipcheck.gates.result import GateResult
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness import diagnosing, phases
from clipcheck.harness.checking import check_files
from clipcheck.harness.declarations import EXAMPLES
from clipcheck.harness.options import CheckOptions
from clipcheck.harness.phases import OWN, SHARED
from clipcheck.inputs.counts import EDGE_CASES, SIZES
from clipcheck.models import loader
from clipcheck.report import notebook, text
from clipcheck.results import document as json
from clipcheck.results.judgement import Judgement, Result
from clipcheck.writers.archive import Alter, write_archive
from clipcheck.writers.convert import convert
from clipcheck.writers.synthesize import synthesize
from conftest import SeededArchive
from tests.samples import MINUTE, minute_config, minute_weights
from tests.system.test_progress import Listener
from tests.thorough import parametrize

Planted = Callable[[Callable[[loader.Both], Any]], None]
Written = Callable[[Alter], Path]


def gate(result: Result, name: str) -> GateResult:
    (judgement,) = result.judgements
    return gate_of(judgement, name)


def gate_of(judgement: Judgement, name: str) -> GateResult:
    return next(gate for gate in judgement.gates if gate.name == name)


def test_a_sound_archive_is_consistent(minute_archive: Path) -> None:
    result = clipcheck.check(minute_archive)
    assert result.passed
    assert result.exit_code == 0
    (judgement,) = result.judgements
    assert [gate.name for gate in judgement.gates] == [
        "integrity", "allclose", "fidelity", "modules", "top1", "repeatability"
    ]  # fmt: skip
    assert (judgement.backend, judgement.reference) == ("jit", "eager")
    assert judgement.dtype == "float32"
    assert judgement.examples == EXAMPLES
    assert judgement.sha256 is not None
    assert judgement.released is None
    assert judgement.seconds.keys() >= {"load", "run", "eager", "float64", "candidate", "modules"}
    assert 0 < gate(result, "allclose").figures["logits_per_image"]["max_abs"] < 1e-3


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Planted:
    """Plant a fault into both loaded models, for checks in this process."""
    load = loader.load_checkpoint_both

    def plant(fault: Callable[[loader.Both], Any]) -> None:
        def faulty(*arguments: Any) -> loader.Both:
            both = load(*arguments)
            return fault(both) or both

        monkeypatch.setattr(loader, "load_checkpoint_both", faulty)

    return plant


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Writes an archive with altered code."""

    def write(alter: Alter) -> Path:
        path = tmp_path / "model.pt"
        write_archive(MINUTE, minute_weights(), path, alter=alter)
        return path

    return write


@pytest.mark.thorough
def test_another_projection_is_inconsistent(minute_archive: Path, planted: Planted) -> None:
    def negate(both: loader.Both) -> None:
        both.eager_model.text_projection = torch.nn.Parameter(-both.eager_model.text_projection)

    planted(negate)
    result = clipcheck.check(minute_archive, isolation="none", examples=EDGE_CASES)
    assert not result.passed
    assert result.exit_code == 1
    assert gate(result, "integrity").passed
    assert not gate(result, "allclose").passed


def test_fail_fast_stops_at_the_first_that_does_not_pass_and_says_what_was_not_run(
    minute_archive: Path,
) -> None:
    names = [minute_archive, "gone.pt", "b.pt", "c.pt"]
    result = clipcheck.check(names, examples=EDGE_CASES, fail_fast=True, device=["cpu", "cpu"])
    assert [each.checkpoint for each in result.judgements] == [
        str(minute_archive), str(minute_archive), "gone.pt", "gone.pt"
    ]  # fmt: skip
    reason = "gone.pt did not pass, and --fail-fast stops there"
    assert [(each.checkpoint, each.reason) for each in result.left_out] == [
        ("b.pt", reason), ("c.pt", reason)
    ]  # fmt: skip
    assert len({each.run for each in result.judgements}) == 1


def test_without_fail_fast_all_are_judged() -> None:
    result = clipcheck.check(["a.pt", "b.pt"])
    assert [each.checkpoint for each in result.judgements] == ["a.pt", "b.pt"]
    assert result.left_out == ()


def test_comparing_a_model_with_itself_is_no_pass(minute_archive: Path, planted: Planted) -> None:
    def same(both: loader.Both) -> None:
        both.archive.module = both.eager_model

    planted(same)
    result = clipcheck.check(minute_archive, isolation="none", examples=EDGE_CASES)
    assert result.exit_code == 1
    assert "nothing was compared" in gate(result, "integrity").message


@pytest.mark.thorough
def test_weights_that_the_interpreter_reads_otherwise_fail_integrity(
    minute_archive: Path, planted: Planted
) -> None:
    planted(lambda both: replace(both, differing={"ln_final.bias": "has other bits"}))
    result = clipcheck.check(minute_archive, isolation="none", examples=EDGE_CASES)
    assert result.exit_code == 1
    assert "ln_final.bias" in gate(result, "integrity").message


@pytest.mark.thorough
def test_a_buffer_that_contradicts_the_architecture_fails_integrity(
    minute_archive: Path, tmp_path: Path
) -> None:
    opened = open_checkpoint(minute_archive)
    tensors = {**opened.tensors, "input_resolution": torch.tensor(999)}
    path = tmp_path / "contradicts.pt"
    convert(replace(opened, tensors=tensors), path, Format.ARCHIVE)
    result = clipcheck.check(path, examples=EDGE_CASES)
    assert "input_resolution is 999" in gate(result, "integrity").message
    assert "raw inputs become 999x999 pixels and 8 tokens" in gate(result, "integrity").message
    assert result.exit_code == 1


def test_nan_on_both_sides_is_no_pass_and_names_no_module(
    minute_archive: Path, planted: Planted
) -> None:
    def poison(both: loader.Both) -> None:
        # Shared by both models, so that both give NaN and are, in a way, the same.
        with torch.no_grad():
            both.eager_model.text_projection.fill_(float("nan"))

    planted(poison)
    result = clipcheck.check(minute_archive, isolation="none", examples=EDGE_CASES)
    (judgement,) = result.judgements
    assert judgement.error is not None
    assert judgement.error.startswith("the eager model itself is not finite: text features of ")
    assert "in float64, so nothing can be compared with it" in judgement.error
    assert not judgement.gates
    assert result.exit_code == 2


@pytest.mark.thorough
def test_more_examples_than_the_edge_cases_are_all_compared(minute_archive: Path) -> None:
    result = clipcheck.check(minute_archive, examples=EDGE_CASES + 5)
    assert result.judgements[0].examples == EDGE_CASES + 5
    elements = gate(result, "allclose").figures["logits_per_image"]["elements"]
    assert elements == sum(images * prompts for images, prompts in SIZES) + 5 * 4


@pytest.mark.thorough
def test_an_exhaustive_check_walks_the_whole_vocabulary(minute_archive: Path) -> None:
    few, all_ids = (
        clipcheck.check(minute_archive, examples=EDGE_CASES, exhaustive=exhaustive).judgements[0]
        for exhaustive in (False, True)
    )
    assert all_ids.passed
    # 98 ids, six to a prompt, and seven lengths.
    prompts = gate_of(all_ids, "top1").figures["rows"]["compared"]
    assert int(prompts) >= int(gate_of(few, "top1").figures["rows"]["compared"]) + 17 + 7


def test_what_cannot_be_judged_does_not_stop_the_others(
    minute_archive: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.pt"
    empty.touch()
    result = clipcheck.check([empty, "no-such-model", minute_archive], examples=EDGE_CASES)
    assert [judgement.passed for judgement in result.judgements] == [False, False, True]
    assert "empty" in str(result.judgements[0].error)
    assert "no-such-model" in str(result.judgements[1].error)
    assert result.exit_code == 2
    assert not result.passed


def test_a_state_dict_alone_cannot_be_judged_and_the_remedy_is_named(
    minute_archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    convert(open_checkpoint(minute_archive), path, Format.STATE_DICT)
    result = clipcheck.check(path, architecture=minute_config(tmp_path))
    assert result.exit_code == 2
    (judgement,) = result.judgements
    assert "clipcheck convert" in str(judgement.error)
    assert judgement.gates == ()
    assert not judgement.passed
    assert judgement.sha256 is not None  # What was known before it failed is kept.


@pytest.mark.thorough
def test_a_device_that_is_not_there_cannot_be_judged(minute_archive: Path) -> None:
    missing = f"cuda:{torch.cuda.device_count()}"
    result = clipcheck.check(minute_archive, device=["cpu", missing], examples=EDGE_CASES)
    assert [judgement.passed for judgement in result.judgements] == [True, False]
    assert missing in str(result.judgements[1].error)
    assert result.exit_code == 2


@pytest.mark.thorough
def test_the_released_name_depends_on_the_hash_alone(
    minute_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = clipcheck.check(minute_archive, examples=EDGE_CASES).judgements[0].sha256
    assert digest is not None
    known = replace(registry.find("ViT-B/32"), sha256=digest)
    monkeypatch.setitem(registry.RELEASED, "ViT-B/32", known)
    assert clipcheck.check(minute_archive, examples=EDGE_CASES).judgements[0].released == "ViT-B/32"


def test_a_model_that_fails_to_run_cannot_be_judged(minute_archive: Path, planted: Planted) -> None:
    def cripple(both: loader.Both) -> None:
        both.eager_model.text_projection = torch.nn.Parameter(torch.zeros(3, 3))

    planted(cripple)
    result = clipcheck.check(minute_archive, isolation="none")
    assert result.exit_code == 2
    assert "eager: encode_text failed" in str(result.judgements[0].error)


def test_defects_of_our_own_are_not_swallowed(minute_archive: Path, planted: Planted) -> None:
    planted(lambda both: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        clipcheck.check(minute_archive, isolation="none")


def test_nothing_judged_is_no_pass() -> None:
    assert not Result((), {}).passed
    assert Result((), {}).exit_code == 2
    assert not Judgement("x", "cpu").passed


def test_assert_consistent_is_silent_or_raises_with_the_report(
    minute_archive: Path, planted: Planted
) -> None:
    clipcheck.assert_consistent(minute_archive, examples=1, isolation="none")
    planted(lambda both: replace(both, differing={"ln_final.bias": "has other bits"}))
    with pytest.raises(AssertionError, match=r"(?s)^INCONSISTENT: .*\n  integrity: ") as caught:
        clipcheck.assert_consistent(minute_archive, examples=1, isolation="none")
    assert caught.traceback[-1].ishidden(caught)


def test_assert_consistent_takes_what_check_takes_and_nothing_else() -> None:
    assert inspect.signature(clipcheck.assert_consistent) == inspect.signature(clipcheck.check)
    with pytest.raises(TypeError, match=r"^clipcheck\.assert_consistent\(\) got an .* 'atoll'"):
        clipcheck.assert_consistent("x.pt", atoll=3)
    with pytest.raises(TypeError, match=r"assert_consistent\(\): missing .* 'checkpoints'$"):
        clipcheck.assert_consistent()


@pytest.fixture(scope="module")
def failing(minute_archive: Path) -> clipcheck.Result:
    return clipcheck.check(minute_archive, examples=EDGE_CASES, atol=0, rtol=0)


def test_a_result_is_true_where_it_passed(failing: clipcheck.Result) -> None:
    assert not failing
    assert not failing.passed
    passed = replace(
        failing,
        judgements=(
            replace(
                failing.judgements[0],
                gates=(GateResult(name="integrity", passed=True, message="same"),),
            ),
        ),
    )
    assert passed
    assert (passed.failures, failing.failures) == ((), failing.judgements)
    assert not Result((), {})


def test_a_result_is_shown_in_brief(failing: clipcheck.Result, minute_archive: Path) -> None:
    assert repr(failing) == "<Result NOT PASSED: 1 run, 1 failed, 0 not judged>"
    assert str(failing) == text.brief(failing).plain
    assert repr(failing.judgements[0]) == (
        f"<Judgement FAILED: {str(minute_archive)!r}, jit on cpu in float32>"
    )
    assert failing._repr_html_() == notebook.render(failing)
    assert failing.to_json() == json.render(failing)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (
            torch.nn.Sequential(torch.nn.Linear(1, 1)),
            "torch.nn.modules.container.Sequential",
        ),
        (torch.jit.ScriptModule(), "torch.jit._script.ScriptModule"),
        (torch.nn.Linear(1, 1).state_dict(), "collections.OrderedDict"),
        ({"model.pt": 1}, "dict"),
        (torch.zeros(1), "torch.Tensor"),
        (b"model.pt", "bytes"),
        (["model.pt", None], "NoneType"),
        (3, "int"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_object_in_place_of_a_name_is_refused_with_a_remedy(given: Any, kind: str) -> None:
    with pytest.raises(UsageError, match=r"^expected the path or the released name of a reference"):
        clipcheck.check("x.pt", reference=given)
    with pytest.raises(
        UsageError, match=rf"type {re.escape(kind)}\. clipcheck .* torch\.jit\.save"
    ):
        clipcheck.check(given)


@pytest.mark.thorough
def test_the_limits_reach_the_gate(minute_archive: Path) -> None:
    result = clipcheck.check(minute_archive, atol=0.0, rtol=0.0, examples=EDGE_CASES)
    assert result.exit_code == 1
    assert "(limit 0: atol 0 + rtol 0 x reference)" in gate(result, "allclose").message


@pytest.mark.thorough
def test_the_same_seed_gives_the_same_figures_and_another_gives_others(
    minute_archive: Path,
) -> None:
    figures = [
        gate(clipcheck.check(minute_archive, seed=seed), "allclose").figures["logits_per_image"][
            "max_abs"
        ]
        for seed in (1, 1, 2)
    ]
    assert figures[0] == figures[1]
    assert figures[0] != figures[2]


@pytest.mark.thorough
def test_the_same_inputs_are_known_by_their_digest(minute_archive: Path) -> None:
    first, other, more = (
        clipcheck.check(minute_archive, examples=examples, seed=seed).judgements[0]
        for examples, seed in ((2, 1), (2, 2), (3, 1))
    )
    (again,) = clipcheck.check(minute_archive, backend="trace", examples=2, seed=1).judgements
    assert again.inputs == first.inputs
    assert len({first.inputs, other.inputs, more.inputs}) == 3
    assert len({each.run for each in (first, again, other)}) == 3


def test_progress_is_reported(minute_archive: Path) -> None:
    told: list[str] = []
    check_files(minute_archive, CheckOptions(), told.append)
    assert told == [
        f"{minute_archive}: {what}"
        for what in (
            "reading",
            "drawing images and prompts",
            "loading on cpu in float32",
            "running the eager model",
            "running the eager model in float64",
            "jit: building",
            "jit: running",
            "jit: running its modules one by one",
        )
    ]


@pytest.mark.thorough
def test_the_share_that_is_done_grows_to_all_of_it(minute_archive: Path) -> None:
    listener = Listener()
    check_files([minute_archive, "gone.pt"], CheckOptions(examples=EDGE_CASES), listener)
    shares = [share for share in listener.shares if share is not None]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, pytest.approx(1.0))
    half = Listener()
    check_files(minute_archive, CheckOptions(examples=1, dtype=["bfloat16", "float16"]), half)
    assert not any("modules" in words for words in half.words)
    assert half.shares[-1] == pytest.approx(1.0)


@pytest.mark.thorough
def test_progress_grows_with_batches_and_modules(
    minute_archive: Path,
) -> None:
    listener = Listener()
    check_files(minute_archive, CheckOptions(examples=EDGE_CASES), listener)
    shares = {**SHARED, **OWN}
    ends = dict(zip(shares, accumulate(shares.values()), strict=True))
    for phase in ("eager", "float64", "candidate", "modules"):
        # Reading comes before, and takes 4 per cent.
        last = 0.04 + 0.96 * ends[phase] / ends["modules"]
        first = last - 0.96 * shares[phase] / ends["modules"]
        within = {share for share in listener.shares if share and first < share < last - 1e-9}
        assert len(within) >= 3, phase


@pytest.mark.thorough
def test_the_search_for_the_smallest_input_is_reported_without_a_share(
    minute_archive: Path,
) -> None:
    listener = Listener()
    check_files(minute_archive, CheckOptions(examples=EDGE_CASES, atol=0, rtol=0), listener)
    smallest, other, first = listener.words[-3:]
    assert smallest.endswith("shrinking the failing input, mostly within a minute")
    assert other.endswith("comparing with other architectures")
    assert first.endswith("the module that departs first")
    assert listener.shares.count(None) >= 1


def test_the_classic_limits_are_the_defaults() -> None:
    parameters = inspect.signature(clipcheck.check).parameters
    assert (parameters["atol"].default, parameters["rtol"].default) == (0.01, 0.1)


@pytest.mark.thorough
def test_the_archive_runs_without_tf32(
    minute_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's TF32 is no fault of the archive's."""
    from clipcheck.harness import judging

    seen: list[tuple[str, bool]] = []
    run = judging.run_candidate

    def noting(*arguments: Any) -> Any:
        allowed = torch.backends.cudnn.allow_tf32
        seen.append((torch.get_float32_matmul_precision(), allowed))
        return run(*arguments)

    monkeypatch.setattr(judging, "run_candidate", noting)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    clipcheck.check(minute_archive, examples=EDGE_CASES)
    assert seen == [("highest", False)]


REDUCED = ("float16", "bfloat16")


@pytest.fixture(scope="module")
def in_all_dtypes(seeded_archive: SeededArchive) -> Result:
    return clipcheck.check(
        seeded_archive("tiny-resnet"), dtype=["float32", *REDUCED], examples=EDGE_CASES
    )


@pytest.mark.thorough
@parametrize("dtype", REDUCED, quick=1)
def test_a_reduced_dtype_is_judged_by_precision_in_place_of_structure(
    in_all_dtypes: Result, dtype: str
) -> None:
    single, *others = in_all_dtypes.judgements
    assert [judgement.dtype for judgement in (single, *others)] == ["float32", *REDUCED]
    reduced = others[REDUCED.index(dtype)]
    assert [gate.name for gate in reduced.gates] == [
        "integrity", "allclose", "precision", "top1", "repeatability"
    ]  # fmt: skip
    assert single.passed
    assert gate_of(reduced, "precision").passed
    assert gate_of(reduced, "repeatability").passed


@pytest.mark.thorough
def test_a_fault_in_half_precision_is_seen_by_precision(written: Written) -> None:
    bad = written(fault_named("gelu-for-quickgelu").plant)
    (judgement,) = clipcheck.check(bad, dtype="float16", examples=EDGE_CASES).judgements
    assert not gate_of(judgement, "precision").passed


@pytest.mark.thorough
def test_a_sound_model_with_sharp_attention_is_not_rejected_in_bfloat16(tmp_path: Path) -> None:
    """Rounding alone takes a logit beyond eight units in the last place."""
    weights = synthesize(MINUTE, seed=1)
    for tower in ("visual.transformer", "transformer"):
        weights[f"{tower}.resblocks.0.attn.in_proj_weight"][:128] *= 4  # queries and keys
    path = tmp_path / "sharp.pt"
    write_archive(MINUTE, weights, path)
    (judgement,) = clipcheck.check(path, dtype="bfloat16", examples=EDGE_CASES).judgements
    assert judgement.passed
    logits = gate_of(judgement, "precision").figures["logits"]
    assert logits["max_abs"] > LIMITS["bfloat16"].logit_cap(100)


@pytest.mark.thorough
def test_what_overflows_in_the_eager_model_as_well_could_not_be_judged(tmp_path: Path) -> None:
    weights = minute_weights()
    weights["ln_final.weight"] *= 1e6  # Beyond half precision, and well within float32.
    write_archive(MINUTE, weights, tmp_path / "large.pt")
    result = clipcheck.check(
        tmp_path / "large.pt", dtype=["float16", "float32"], examples=EDGE_CASES
    )
    half, single = result.judgements
    assert half.error == (
        "the eager model itself is not finite: text features of prompt 0 (3 tokens), in float16, "
        "so nothing can be compared with it. The numbers overflow: choose a --dtype with a wider "
        "range than float16."
    )
    assert not half.gates
    assert result.exit_code == 2
    assert single.passed


def test_if_no_dtype_avoids_overflow_the_weights_are_checked(tmp_path: Path) -> None:
    weights = {key: tensor.float() for key, tensor in minute_weights().items()}
    weights["ln_final.weight"] *= 1e38
    weights["text_projection"] *= 1e3
    assert _why_not(tmp_path, weights, "float32").endswith(
        ", in float32, so nothing can be compared with it. The numbers overflow, and no dtype has "
        "a wider range than float32: look for weights that are too large, and for variances close "
        "to zero."
    )


def test_weights_that_overflow_in_a_dtype_are_reported(tmp_path: Path) -> None:
    weights = {key: tensor.float() for key, tensor in minute_weights().items()}
    weights["text_projection"] *= 1e8
    assert _why_not(tmp_path, weights, "float16").endswith(
        ", in float64, so nothing can be compared with it. Look for weights that overflow in "
        "float16, and for zeros; or choose a --dtype with a wider range than float16."
    )


def _why_not(folder: Path, weights: dict[str, torch.Tensor], dtype: str) -> str:
    path = folder / "large.pt"
    write_archive(MINUTE, weights, path)
    (found,) = clipcheck.check(path, dtype=dtype, examples=EDGE_CASES, isolation="none").judgements
    assert found.error is not None
    return found.error


def test_one_checkpoint_that_needs_no_other_dtype_is_judged_in_float32(
    minute_archive: Path,
) -> None:
    from clipcheck.harness.files import Files, default_dtypes

    half = open_checkpoint(minute_archive)
    assert default_dtypes(Files(half, None, None), torch.device("cpu")) == ("float32",)
    gpu = torch.device("cuda:0")
    assert default_dtypes(Files(half, None, None), gpu) == ("float32", "float16")
    weights = {key: tensor.float() for key, tensor in half.tensors.items()}
    single = Files(replace(half, tensors=weights), None, None)
    assert default_dtypes(single, gpu) == ("float32",)


@pytest.mark.thorough
def test_a_weight_that_is_not_used_fails_integrity(written: Written) -> None:
    def skip(model: Any) -> None:
        model.transformer.resblocks[0].forward = lambda x: x

    (judgement,) = clipcheck.check(written(skip), examples=EDGE_CASES).judgements
    message = gate_of(judgement, "integrity").message
    assert "12 weights have no effect on encode_text: transformer.resblocks.0." in message
    assert "12 weights have no effect on forward" in message
    assert "effect on encode_image" not in message


@pytest.mark.thorough
def test_an_archive_that_fails_on_some_batch_is_inconsistent_and_says_on_which(
    written: Written,
) -> None:
    def in_pairs(model: Any) -> None:
        encode = model.encode_image

        def encode_pairs(image: torch.Tensor) -> torch.Tensor:
            rows = image.shape[0]
            return encode(image).reshape(rows // 2, 2, 64).reshape(rows, 64)

        model.encode_image = encode_pairs

    result = clipcheck.check(written(in_pairs), examples=EDGE_CASES)
    assert result.exit_code == 1
    integrity = gate(result, "integrity")
    assert not integrity.passed
    assert "forward failed" in integrity.message
    assert "in a batch of 1 image and 2 prompts" in integrity.message


@pytest.mark.thorough
def test_a_layer_that_gives_bfloat16_is_judged_and_is_no_defect_of_ours(written: Written) -> None:
    def in_bfloat16(model: Any) -> None:
        block = model.transformer.resblocks[0]
        norm, attend = block.ln_1.forward, block.attn.forward
        block.ln_1.forward = lambda x: norm(x).to(torch.bfloat16)
        block.attn.forward = lambda x, mask: attend(x.type_as(block.ln_1.weight).half(), mask)

    (judgement,) = clipcheck.check(written(in_bfloat16), examples=EDGE_CASES).judgements
    assert judgement.error is None
    modules = gate_of(judgement, "modules")
    assert not modules.passed
    assert modules.message.startswith("transformer.resblocks.0.ln_1 (forward): error ")


def test_the_command_line_asks_for_as_many_images_as_hold_all_edge_cases() -> None:
    from clipcheck.cli import check as command

    assert inspect.signature(command.check).parameters["examples"].default == EXAMPLES


def test_what_fails_has_a_place_and_what_passes_has_none(
    minute_archive: Path, written: Written
) -> None:
    (passed,) = clipcheck.check(minute_archive, examples=EDGE_CASES).judgements
    assert passed.localisation is None
    bad = written(fault_named("empty-prompts").plant)
    (failed,) = clipcheck.check(bad, examples=EDGE_CASES).judgements
    assert failed.failing is not None
    (place,) = failed.departures
    # Nothing departs on the inputs of the gate: it is the one that was found to fail.
    assert (place.module, place.given) == ("text_projection", "the input that fails")
    assert failed.seconds["localisation"] > 0


@pytest.fixture(scope="module")
def drifted(tmp_path_factory: pytest.TempPathFactory) -> Judgement:
    """Return the judgement of an archive whose weights change when it runs."""
    path = tmp_path_factory.mktemp("drifts") / "model.pt"
    alter = fault_named("logit-scale-drifts").plant
    write_archive(MINUTE, minute_weights(), path, alter=alter)
    (judgement,) = clipcheck.check(path, device="cpu", examples=EDGE_CASES).judgements
    return judgement


@pytest.mark.thorough
def test_weights_that_running_changes_fail_without_a_failing_input(drifted: Judgement) -> None:
    assert not drifted.passed
    assert drifted.failing is None


def test_weights_that_running_changes_have_a_place(
    drifted: Judgement,
) -> None:
    assert [place.tower for place in drifted.departures] == ["logits"]


@pytest.mark.thorough
@parametrize(
    "error",
    [RunError("broke off", remedy="Look."), RuntimeError("no memory"), MemoryError("no memory")],
    quick=1,
)
def test_the_verdict_stays_if_the_place_cannot_be_searched(
    written: Written, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(diagnosing, "first_departures", fails)
    bad = written(fault_named("activation-clipped").plant)
    (failed,) = clipcheck.check(bad, examples=EDGE_CASES).judgements
    assert failed.gates
    assert failed.error is None
    assert not failed.departures
    assert all(str(error)[:9] in place.reason for place in failed.localisation or ())


@pytest.mark.thorough
def test_the_place_is_looked_for_in_the_dtype_and_with_the_seed_of_the_check(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def noted(source: Any, _: Any, **more: Any) -> Any:
        model = source.model
        asked.append((model.dtype, model.logit_scale, source.dtype, more["seed"]))
        return Localisation.nowhere()

    monkeypatch.setattr(diagnosing, "first_departures", noted)
    bad = written(fault_named("logit-scale-drifts").plant)
    (failed,) = clipcheck.check(
        bad, examples=EDGE_CASES, dtype="bfloat16", device="cpu", seed=5, isolation="none"
    ).judgements
    ((own, scale, dtype, seed),) = asked
    assert (own, dtype, seed) == (torch.bfloat16, "bfloat16", 5)
    # As it is in the file: running has lowered it by then.
    assert scale.item() == minute_weights()["logit_scale"].to(scale.dtype).item()
    assert failed.localisation == Localisation.nowhere().places
    assert (failed.peak_memory or 0) > 1 << 27


@pytest.mark.parametrize(("platform", "size"), [("linux", 3 * 1024), ("darwin", 3)])
def test_memory_is_counted_in_bytes_on_every_system(
    monkeypatch: pytest.MonkeyPatch, platform: str, size: int
) -> None:
    resource = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_maxrss=3))
    monkeypatch.setitem(sys.modules, "resource", resource)
    monkeypatch.setattr(sys, "platform", platform)
    assert phases.peak_memory(None) == size


def test_memory_is_unknown_if_the_system_does_not_report_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert phases.peak_memory(None) is None
