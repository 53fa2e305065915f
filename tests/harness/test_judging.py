"""Candidates, judged against a reference that has already run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from clipcheck.backends.base import Backend
from clipcheck.errors import RunError
from clipcheck.gates.integrity import Evidence
from clipcheck.gates.modules import Coverage, ModuleError
from clipcheck.gates.result import LOGITS, OUTPUTS, GateResult
from clipcheck.gates.tolerances import Allclose, Budget
from clipcheck.harness.judging import judge
from clipcheck.harness.phases import Stopwatch
from clipcheck.harness.running import Run, run_candidate
from clipcheck.harness.trial import Trial
from clipcheck.inputs.batches import Batch, Inputs, batches, every_length
from clipcheck.inputs.counts import EDGE_CASES, SIZES
from clipcheck.inputs.dealing import Effort
from clipcheck.system.progress import Advance

SMALL = Inputs(resolution=16, context_length=8, vocab_size=100, grid=2)
SOUND = Evidence(weights=9)
COVERAGE = Coverage(
    errors=[
        ModuleError(module="conv1", method="forward", candidate=1e-7, reference=1e-7, size=1.0)
    ],
    skipped={},
)

Named = dict[str, np.ndarray]

_generator = np.random.default_rng(0)
FROM_PIXELS = _generator.standard_normal((3 * 16 * 16, 12)) / 16
FROM_IDS = _generator.standard_normal((8 * 100, 12))


def exact(pixels: np.ndarray, tokens: np.ndarray) -> Named:
    """Compute a model of two tables, in which rows do not depend on each other."""
    images = pixels.reshape(len(pixels), -1).astype(np.float64) @ FROM_PIXELS + 1
    texts = FROM_IDS[tokens + 100 * np.arange(8)].sum(axis=1)
    unit_images, unit_texts = (x / np.linalg.norm(x, axis=1)[:, None] for x in (images, texts))
    logits = 100 * unit_images @ unit_texts.T
    return dict(zip(OUTPUTS, (images, texts, logits, logits.T.copy()), strict=True))


def of_lengths(lengths: np.ndarray | None) -> list[Named]:
    if lengths is None:
        return []
    pixels = np.zeros((1, 3, 16, 16), dtype=np.float32)
    return [{"text_features": exact(pixels, lengths)["text_features"]}]


@dataclass
class TwinTables:
    """Stands for the eager model; counts its runs."""

    scale: float = 100.0
    ran: list[tuple[str, int]] = field(default_factory=list)

    def outputs(
        self,
        inputs: Sequence[tuple[np.ndarray, np.ndarray]],
        advance: Advance,
        lengths: np.ndarray | None = None,
    ) -> list[Named]:
        self.ran.append(("own", len(inputs)))
        found = [exact(*pair) for pair in inputs] + of_lengths(lengths)
        return [{key: x.astype(np.float32) for key, x in each.items()} for each in found]

    def exact_outputs(
        self,
        inputs: Sequence[tuple[np.ndarray, np.ndarray]],
        advance: Advance,
        lengths: np.ndarray | None = None,
    ) -> list[Named]:
        self.ran.append(("exact", len(inputs)))
        return [exact(*pair) for pair in inputs] + of_lengths(lengths)


Change = Callable[[int, Named], Named]


class Tables(Backend):
    """A candidate; ``change`` gets the number of the call, from 1, and the right outputs."""

    name = "jit"

    def __init__(self, change: Change = lambda _, outputs: outputs) -> None:
        self.change = change
        self.calls: list[tuple[np.ndarray, np.ndarray]] = []
        self._now: Named = {}

    def __call__(self, pixels: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.calls.append((pixels, tokens))
        right = {key: x.astype(np.float32) for key, x in exact(pixels, tokens).items()}
        self._now = self.change(len(self.calls), right)
        return self._now["logits_per_image"], self._now["logits_per_text"]

    def encode_image(self, pixels: np.ndarray) -> np.ndarray:
        return self._now["image_features"]

    def encode_text(self, tokens: np.ndarray) -> np.ndarray:
        return self._now["text_features"]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(len(pixels), len(tokens)) for pixels, tokens in self.calls]


@pytest.fixture(scope="module")
def drawn() -> list[Batch]:
    return list(batches(EDGE_CASES, SMALL, 0))


@pytest.fixture(scope="module")
def trial(drawn: list[Batch]) -> Trial:
    return Trial.of(TwinTables(), drawn, "float32", Stopwatch())  # type: ignore[arg-type]


def judged(
    trial: Trial, run: Run, coverage: Coverage | None = COVERAGE, evidence: Evidence = SOUND
) -> Mapping[str, GateResult]:
    evidence = replace(evidence, failures=run.failures)
    return {gate.name: gate for gate in judge(trial, run, evidence, coverage, Allclose())}


def failing(gates: Mapping[str, GateResult]) -> list[str]:
    return [name for name, gate in gates.items() if not gate.passed]


# --------------------------------------------------------------------------- calls


FIRST, *OTHERS = list(SIZES)


def test_the_first_batch_runs_three_times_the_others_once_rows_alone_and_the_first_again(
    trial: Trial, drawn: list[Batch]
) -> None:
    candidate = Tables()
    run = run_candidate(trial, candidate)
    assert candidate.sizes == [FIRST, FIRST, FIRST, *OTHERS, (1, 1), (1, 1), FIRST]
    for call in (0, 1, 2, 9):
        assert candidate.calls[call][0].tobytes() == drawn[0].pixels.tobytes()
        assert candidate.calls[call][1].tobytes() == drawn[0].tokens.tobytes()
    large = drawn[2]
    for call, row in ((7, 0), (8, -1)):
        assert (candidate.calls[call][0] == large.pixels[[row]]).all()
        assert (candidate.calls[call][1] == large.tokens[[row]]).all()
    assert [(repeat.what, repeat.number, repeat.rows) for repeat in run.repeats] == [
        ("in the second call", 0, {"image": [0, 1], "prompt": [0]}),
        ("in the third call", 0, {"image": [0, 1], "prompt": [0]}),
        ("alone in a batch", 2, {"image": [0], "prompt": [0]}),
        ("alone in a batch", 2, {"image": [4], "prompt": [3]}),
        ("after all other calls", 0, {"image": [0, 1], "prompt": [0]}),
    ]
    assert run.failures == []


def test_beside_a_budget_whole_batches_are_run_again_and_the_population_once(
    drawn: list[Batch],
) -> None:
    lossy = Trial.of(
        TwinTables(),  # type: ignore[arg-type]
        drawn,
        "float32",
        Stopwatch(),
        budget=Budget(cosine=0.9),
        population=drawn[3:],
    )
    candidate = Tables(lambda _, outputs: {key: 1.01 * x for key, x in outputs.items()})
    run = run_candidate(lossy, candidate)
    assert candidate.sizes == [FIRST, FIRST, FIRST, *OTHERS, FIRST, *list(SIZES)[3:]]
    gates = judged(lossy, run)
    assert gates["budget"].passed
    assert gates["fidelity"].message.startswith("cannot fail with a budget; worst error")
    assert failing(gates) == []
    assert failing(judged(replace(lossy, budget=Budget(top1=0.9)), run)) == ["budget"]


def test_cases_have_what_each_side_gave_and_what_the_rows_are(
    trial: Trial, drawn: list[Batch]
) -> None:
    run = run_candidate(trial, Tables())
    assert len(run.cases) == len(drawn)
    for case, batch in zip(run.cases, drawn, strict=True):
        right = exact(batch.pixels, batch.tokens)
        assert case.rows == batch.rows
        assert case.first_rows == batch.first_rows
        for name in OUTPUTS:
            assert case.exact[name].tobytes() == right[name].tobytes()
            assert case.reference[name].dtype == np.float32
            assert (case.candidate[name] == right[name].astype(np.float32)).all()


def test_the_outputs_of_a_case_are_those_of_the_first_call(trial: Trial) -> None:
    run = run_candidate(
        trial, Tables(lambda call, outputs: {k: x + call for k, x in outputs.items()})
    )
    right = trial.reference[0]["text_features"]
    assert (run.cases[0].candidate["text_features"] == right + 1).all()
    for repeat, call in zip(run.repeats, (2, 3, 8, 9, 10), strict=True):
        rows = repeat.rows["prompt"]
        expected = trial.reference[repeat.number]["text_features"][rows] + np.float32(call)
        assert repeat.outputs["text_features"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("examples", [1, 2, 3])
def test_fewer_batches_are_run_and_judged_as_well(examples: int) -> None:
    few = Trial.of(TwinTables(), list(batches(examples, SMALL, 0)), "float32", Stopwatch())  # type: ignore[arg-type]
    candidate = Tables()
    run = run_candidate(few, candidate)
    assert len(run.cases) == len(few.batches)
    assert candidate.sizes[:3] == [(min(examples, 2), 1)] * 3
    assert candidate.sizes[-3:] == [(1, 1), (1, 1), (min(examples, 2), 1)]
    assert failing(judged(few, run)) == []


def test_the_reference_runs_once_however_many_candidates_there_are(drawn: list[Batch]) -> None:
    reference, watch = TwinTables(scale=14.0), Stopwatch()
    found = Trial.of(reference, drawn, "float16", watch)  # type: ignore[arg-type]
    for _ in range(3):
        run_candidate(found, Tables())
    assert reference.ran == [("own", 5), ("exact", 5)]
    assert (found.scale, found.dtype) == (14.0, "float16")
    assert list(watch.seconds) == ["eager", "float64"]


def test_a_stopwatch_adds_up_by_phase_even_if_a_phase_fails() -> None:
    watch = Stopwatch()
    with watch.phase("one"):
        pass
    first = watch.seconds["one"]
    with pytest.raises(ZeroDivisionError), watch.phase("one"):
        _ = 1 / 0
    with watch.phase("two"):
        pass
    assert watch.seconds["one"] > first >= 0
    assert list(watch.seconds) == ["one", "two"]


# ------------------------------------------------------------------ rows that are dealt anew

LENGTHS = every_length(SMALL, 0)
SOME = Effort(images=(3, 20), prompts=(9, 4), squares=(2,), singles=(2, 3, 1))


class Dealt(Tables):
    """Records the sizes of batches by method; ``wrong`` says which outputs are off."""

    def __init__(self, wrong: Callable[[str, int, int], bool] = lambda *_: False) -> None:
        super().__init__()
        self.wrong = wrong
        self.sizes_of: dict[str, list[int]] = {"encode_image": [], "encode_text": []}

    def outputs(self, pixels: np.ndarray, tokens: np.ndarray) -> Named:
        return {key: x.astype(np.float32) for key, x in exact(pixels, tokens).items()}

    def encode_image(self, pixels: np.ndarray) -> np.ndarray:
        tokens = np.zeros((1, 8), dtype=np.int64)
        return self._given("encode_image", self.outputs(pixels, tokens)["image_features"])

    def encode_text(self, tokens: np.ndarray) -> np.ndarray:
        pixels = np.zeros((1, 3, 16, 16), dtype=np.float32)
        return self._given("encode_text", self.outputs(pixels, tokens)["text_features"])

    def _given(self, method: str, features: np.ndarray) -> np.ndarray:
        sizes = self.sizes_of[method]
        sizes.append(len(features))
        return features * (1.01 if self.wrong(method, len(sizes), len(features)) else 1)


@pytest.fixture(scope="module")
def dealt(drawn: list[Batch]) -> Trial:
    reference: Any = TwinTables()
    return Trial.of(reference, drawn, "float32", Stopwatch(), lengths=LENGTHS, effort=SOME)


def test_rows_are_regrouped_into_the_requested_batch_sizes(dealt: Trial) -> None:
    candidate = Dealt()
    run = run_candidate(dealt, candidate)
    assert sorted(candidate.sizes_of["encode_image"]) == [1, 1, 3, 20]
    assert sorted(candidate.sizes_of["encode_text"]) == [1, 1, 1, 4, 9]
    assert sorted(candidate.sizes) == [(1, 1), (2, 2)]
    assert [case.rows["prompt"] for case in run.lengths] == [("5 tokens",)]  # No other has it.
    gates = judged(dealt, run)
    assert failing(gates) == []
    assert gates["fidelity"].figures["lengths"]["rmse_ratio"] <= 1.5


@pytest.mark.parametrize(
    ("method", "size", "gate", "words"),
    [
        ("encode_image", 20, "repeatability", "in a batch of 20 moved by"),
        ("encode_image", 1, "repeatability", "alone moved by"),
        ("encode_text", 9, "fidelity", "a prompt of"),
    ],
)
def test_a_batch_size_with_wrong_outputs_is_named(
    dealt: Trial, method: str, size: int, gate: str, words: str
) -> None:
    run = run_candidate(dealt, Dealt(lambda called, _, rows: (called, rows) == (method, size)))
    gates = judged(dealt, run)
    assert gate in failing(gates)
    assert words in gates[gate].message


def test_a_late_call_with_wrong_outputs_is_found(dealt: Trial) -> None:
    run = run_candidate(dealt, Dealt(lambda method, call, _: (method, call) == ("encode_image", 4)))
    assert failing(judged(dealt, run)) == ["repeatability"]


class HidesNaN(Dealt):
    """Treats NaN as 0."""

    def outputs(self, pixels: np.ndarray, tokens: np.ndarray) -> Named:
        return super().outputs(np.nan_to_num(pixels), tokens)


def test_a_candidate_that_has_numbers_where_the_eager_model_gives_nan_is_named(
    dealt: Trial,
) -> None:
    gates = judged(dealt, run_candidate(dealt, HidesNaN()))
    assert failing(gates) == ["integrity"]
    assert gates["integrity"].message == (
        "jit: image_features of an image with a NaN in it has numbers, where the eager model "
        "gives NaN"
    )


def test_only_lengths_that_no_prompt_has_are_added(dealt: Trial) -> None:
    number = len(dealt.batches)
    of_lengths = {row.row for call in dealt.calls for row in call.prompts if row.batch == number}
    rows = [row for batch in dealt.batches for row in batch.tokens]
    drawn = {int(row.argmax()) - 1 for row in rows if np.count_nonzero(row == 99) == 1}
    assert of_lengths.isdisjoint(drawn)
    assert of_lengths | drawn == set(range(len(LENGTHS.tokens)))


def test_a_prompt_length_with_wrong_outputs_is_named(dealt: Trial) -> None:
    class Wrong(Dealt):
        def encode_text(self, tokens: np.ndarray) -> np.ndarray:
            wrong = tokens.argmax(axis=1) == 4
            return super().encode_text(tokens) * np.where(wrong, 1.01, 1)[:, None]

    gates = judged(dealt, run_candidate(dealt, Wrong()))
    assert "text features of a prompt of 5 tokens" in gates["fidelity"].message


# --------------------------------------------------------------------------- gates


def test_runs_that_no_chosen_gate_needs_are_skipped(drawn: list[Batch], dealt: Trial) -> None:
    def ran(*gates: str) -> tuple[Dealt, Mapping[str, GateResult]]:
        reference: Any = TwinTables()
        trial = Trial.of(
            reference, drawn, "float32", Stopwatch(), lengths=LENGTHS, effort=SOME, gates=gates
        )
        candidate = Dealt()
        return candidate, judged(trial, run_candidate(trial, candidate))

    whole = judged(dealt, run_candidate(dealt, Dealt()))
    candidate, found = ran("fidelity", "top1")
    # As measured by all gates: prompts of every length are still run, and nothing else again.
    assert found == {name: whole[name] for name in ("fidelity", "top1")}
    assert candidate.sizes_of["encode_image"] == []
    assert len(candidate.sizes_of["encode_text"]) > 0
    candidate, found = ran("allclose")
    assert found == {"allclose": whole["allclose"]}
    assert candidate.sizes_of["encode_text"] == []
    for name in ("integrity", "repeatability"):
        candidate, found = ran(name)
        assert found == {name: whole[name]}
        assert sum(candidate.sizes_of["encode_image"]) > 0


def test_in_float32_there_are_six_gates_in_this_order(trial: Trial) -> None:
    gates = judged(trial, run_candidate(trial, Tables()))
    assert list(gates) == ["integrity", "allclose", "fidelity", "modules", "top1", "repeatability"]
    assert failing(gates) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_the_gate_precision_replaces_fidelity_and_modules(
    drawn: list[Batch], dtype: str
) -> None:
    half = Trial.of(TwinTables(), drawn, dtype, Stopwatch())  # type: ignore[arg-type]
    gates = judged(half, run_candidate(half, Tables()), coverage=None)
    assert list(gates) == ["integrity", "allclose", "precision", "top1", "repeatability"]
    assert failing(gates) == []


def test_limits_are_those_of_the_dtype(drawn: list[Batch]) -> None:
    def shifted(_: int, outputs: Named) -> Named:
        return {key: x * np.float32(1 + 2**-12) for key, x in outputs.items()}

    for dtype, passes in (("float32", False), ("float16", True)):
        found = Trial.of(TwinTables(), drawn, dtype, Stopwatch())  # type: ignore[arg-type]
        coverage = COVERAGE if dtype == "float32" else None
        near = judged(found, run_candidate(found, Tables(shifted)), coverage)
        assert near["fidelity" if dtype == "float32" else "precision"].passed is passes


def test_the_scale_reaches_the_gates(trial: Trial) -> None:
    """What is two roundings for a scale of 100 is two hundred for a scale of 1."""

    def shifted(_: int, outputs: Named) -> Named:
        logits = {name: outputs[name] + 200 * 2.0**-24 for name in LOGITS}
        return {**outputs, **logits}

    for scale, passes in ((100.0, True), (1.0, False)):
        lucky = Trial(
            batches=trial.batches,
            reference=trial.exact,
            exact=trial.exact,
            scale=scale,
            dtype="float32",
        )
        gates = judged(lucky, run_candidate(lucky, Tables(shifted)))
        assert gates["fidelity"].passed is passes


@pytest.mark.parametrize(
    ("calls", "where"),
    [
        ([2], "in the second call"),
        ([3], "in the third call"),
        ([8], "alone in a batch"),
        ([9], "alone in a batch"),
        ([10], "after all other calls"),
    ],
)
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_call_that_gives_something_else_the_next_time_is_unstable(
    trial: Trial, calls: list[int], where: str, name: str
) -> None:
    def change(call: int, outputs: Named) -> Named:
        return {**outputs, name: outputs[name] * (1.01 if call in calls else 1)}

    gates = judged(trial, run_candidate(trial, Tables(change)))
    assert failing(gates) == ["repeatability"]
    assert f" {where} moved by " in gates["repeatability"].message
    assert gates["repeatability"].message.startswith(f"{name} of ")


def test_a_candidate_that_is_off_fails_where_it_is_off(trial: Trial) -> None:
    def change(_: int, outputs: Named) -> Named:
        return {**outputs, "image_features": outputs["image_features"] * 1.001}

    gates = judged(trial, run_candidate(trial, Tables(change)))
    assert failing(gates) == ["fidelity"]
    off = Coverage(
        errors=[
            ModuleError(module="conv1", method="forward", candidate=1e-5, reference=1e-7, size=1.0)
        ],
        skipped={},
    )
    assert failing(judged(trial, run_candidate(trial, Tables()), off)) == ["modules"]


# --------------------------------------------------------------------------- failures


def failing_on(*calls: int) -> Change:
    def change(call: int, outputs: Named) -> Named:
        if call in calls:
            raise RunError("jit: forward failed (sizes)", remedy="Look.")
        return outputs

    return change


def test_a_batch_that_fails_leaves_a_reason_and_no_outputs(trial: Trial) -> None:
    run = run_candidate(trial, Tables(failing_on(5)))
    reason = "jit: forward failed (sizes), in a batch of 5 images and 4 prompts"
    assert run.failures == [reason]
    assert [bool(case.candidate) for case in run.cases] == [True, True, False, True, True]
    gates = judged(trial, run)
    assert gates["integrity"].message == reason
    assert gates["integrity"].figures["runs"] == {"batches": 5, "failed": 1}
    assert failing(gates) == [name for name in gates if name != "modules"]


def test_a_repeat_that_fails_leaves_a_reason_and_fails_repeatability(trial: Trial) -> None:
    run = run_candidate(trial, Tables(failing_on(3)))
    reason = "jit: forward failed (sizes), in a batch of 2 images and 1 prompt"
    assert run.failures == [reason]
    assert all(case.candidate for case in run.cases)
    gates = judged(trial, run)
    assert failing(gates) == ["integrity", "repeatability"]
    assert "in the third call: missing" in gates["repeatability"].message


def test_a_candidate_that_never_runs_is_called_as_often_and_passes_nothing(trial: Trial) -> None:
    candidate = Tables(failing_on(*range(1, 99)))
    run = run_candidate(trial, candidate)
    assert len(candidate.calls) == len(run.failures) == 10
    gates = judged(trial, run, Coverage(errors=[], skipped={}))
    assert failing(gates) == list(gates)


def test_another_error_than_that_it_cannot_run_is_not_swallowed(trial: Trial) -> None:
    def change(_: int, outputs: Named) -> Named:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_candidate(trial, Tables(change))
