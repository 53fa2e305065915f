from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipcheck.errors import ClipcheckError, OutputError
from clipcheck.harness import checking
from clipcheck.harness.declarations import EXAMPLES
from clipcheck.harness.options import CheckOptions
from clipcheck.plugin import run
from clipcheck.plugin.choices import Choices
from clipcheck.plugin.run import Run
from clipcheck.plugin.sharing import Case
from clipcheck.report import evidence
from clipcheck.results.failing import FailingExample
from clipcheck.results.judgement import Judgement, Result
from clipcheck.system import memory
from conftest import SeededArchive
from tests.samples import minute_config

CASE = Case("new.pt", "jit", "cpu", "float32")


def runs(folder: Path, **given: object) -> Run:
    choices = Choices.of({f"--clip-{name}": value for name, value in given.items()}.get, folder)
    return Run(choices, folder, folder / "shared")


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record the arguments of each check, which finds nothing."""
    seen: list[dict[str, Any]] = []

    def check(path: str, options: CheckOptions) -> Result:
        seen.append({"path": path, **vars(options)})
        return Result((Judgement(path, str(options.device), dtype=options.dtypes[0]),), {})

    monkeypatch.setattr(checking, "check_files", check)
    return seen


def test_a_checkpoint_is_checked_as_requested(
    tmp_path: Path, checked: list[dict[str, Any]]
) -> None:
    config = minute_config(tmp_path)
    given = {"atol": "0.5", "rtol": "0.25", "examples": "3", "seed": "7", "key": "model"}
    found = runs(tmp_path, **given, architecture="minute.json").judgement(CASE)
    options = CheckOptions(
        architecture=str(config),
        backend="jit",
        device="cpu",
        dtype="float32",
        seed=7,
        atol=0.5,
        rtol=0.25,
        key="model",
        examples=3,
    )
    assert checked == [{"path": str(tmp_path / "new.pt"), **vars(options)}]
    assert found.checkpoint == "new.pt"


def test_gates_that_no_test_looks_at_are_not_judged(
    tmp_path: Path, checked: list[dict[str, Any]]
) -> None:
    needs = {CASE: {"top1", "fidelity"}}
    Run(Choices.of({}.get, tmp_path), tmp_path, tmp_path / "shared", needs).judgement(CASE)
    assert [each["select"] for each in checked] == [["fidelity", "top1"]]


def test_options_about_given_models_do_not_apply_to_seeded_ones(
    tmp_path: Path, checked: list[dict[str, Any]]
) -> None:
    seeded = replace(CASE, model="seeded:tiny-vit")
    runs(tmp_path, key="model", architecture="ViT-B/32").judgement(seeded)
    assert (checked[0]["architecture"], checked[0]["key"]) == (None, None)


def test_a_check_takes_its_own_number_of_examples_unless_it_is_given_one(
    tmp_path: Path, checked: list[dict[str, Any]]
) -> None:
    runs(tmp_path).judgement(CASE)
    assert checked[0]["examples"] == EXAMPLES


def test_all_tests_of_a_checkpoint_share_one_judgement(
    tmp_path: Path, checked: list[dict[str, Any]]
) -> None:
    one, other = runs(tmp_path), runs(tmp_path)
    assert one.judgement(CASE) is one.judgement(CASE)
    assert other.judgement(CASE) == one.judgement(CASE)
    assert len(checked) == 1


def test_memory_is_reserved_while_it_is_judged(
    tmp_path: Path, checked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new.pt").write_bytes(bytes(1000))
    held: list[str] = []

    def check(*_: object) -> run.Finding:
        held.extend(file.read_text() for file in (tmp_path / "shared").glob("*.reserved"))
        raise RuntimeError

    monkeypatch.setattr(Run, "_check", check)
    runs(tmp_path).judgement(CASE)
    assert held == [str(memory.estimate(1000))]


def test_a_failing_input_is_kept_for_another_run(
    tmp_path: Path, checked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[str, Path]] = []

    def keep_inputs(result: Result, folder: Path) -> Result:
        kept.append((result.judgements[0].checkpoint, folder))
        example = FailingExample(
            images=(),
            prompts=("a",),
            shrunk=True,
            output="text_features",
            message="far off",
            saved="there",
        )
        saved = replace(result.judgements[0], failing_example=example)
        return replace(result, judgements=(saved,))

    monkeypatch.setattr(evidence, "keep_inputs", keep_inputs)
    assert runs(tmp_path).judgement(CASE).saved == "there"
    runs(tmp_path, report="found").judgement(replace(CASE, dtype="float16"))
    assert kept == [
        ("new.pt", tmp_path / "shared" / evidence.INPUTS),
        ("new.pt", tmp_path / "found" / evidence.INPUTS),
    ]


def test_the_verdict_stays_if_its_input_cannot_be_saved(
    tmp_path: Path, checked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep_inputs(*_: object) -> Result:
        raise OutputError("expected room, found none", remedy="Make some.")

    monkeypatch.setattr(evidence, "keep_inputs", keep_inputs)
    assert runs(tmp_path).judgement(CASE).error is None


def test_what_fails_for_another_reason_is_an_error_of_that_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(*_: object, **__: object) -> Result:
        raise MemoryError("can't allocate 12 GB\nof memory")

    monkeypatch.setattr(checking, "check_files", check)
    found = runs(tmp_path).judgement(CASE)
    assert found.error == (
        "expected a result, found MemoryError: can't allocate 12 GB. The traceback is in the "
        "output of this test; unless memory ran out, please report it."
    )
    assert (found.checkpoint, found.device, found.dtype) == ("new.pt", "cpu", "float32")
    assert "MemoryError: can't allocate 12 GB" in capsys.readouterr().err


def test_a_warning_does_not_change_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(*_: object, **__: object) -> Result:
        warnings.warn("deprecated", stacklevel=1)
        return Result((Judgement("new.pt", "cpu"),), {})

    monkeypatch.setattr(checking, "check_files", check)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("error")
        assert runs(tmp_path).judgement(CASE).error is None
    assert [str(warning.message) for warning in seen] == ["deprecated"]


def test_both_models_are_loaded_once_and_compute_the_same(
    tmp_path: Path, seeded_archive: SeededArchive
) -> None:
    case = Case(str(seeded_archive("tiny-vit")), "jit", "cpu", "float32")
    loads = runs(tmp_path)
    pair = loads.pair(case)
    assert loads.pair(case) is pair
    assert (pair.reference.name, pair.candidate.name) == ("eager", "jit")
    pixels, tokens = np.zeros((2, 3, 32, 32), np.float32), np.full((3, 77), 49407, np.int32)
    one, other = (model.outputs(pixels, tokens) for model in (pair.reference, pair.candidate))
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=1e-4, atol=1e-4)


def test_only_the_last_checkpoint_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Case] = []
    monkeypatch.setattr(Run, "_load", lambda self, case: loaded.append(case) or object())
    loads = runs(tmp_path)
    other = Case("other.pt", "jit", "cpu", "float32")
    for case in (CASE, CASE, other, other, CASE):
        loads.pair(case)
    assert loaded == [CASE, other, CASE]


def test_a_file_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    (tmp_path / "new.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ClipcheckError, match=r"new\.pt"):
        runs(tmp_path).pair(CASE)
