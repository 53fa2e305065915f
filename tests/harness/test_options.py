"""The options of a check: what is accepted, and what refused."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import clipcheck
from clipcheck.errors import ClipcheckError, UnknownModelError, UsageError
from clipcheck.gates.registry import NAMES
from clipcheck.gates.tolerances import Allclose
from clipcheck.harness.named_files import files_named
from clipcheck.harness.options import CheckOptions
from clipcheck.inputs.counts import EDGE_CASES
from tests.samples import minute_config


def test_the_defaults_are_those_of_the_classic_assertion_and_hold_all_edge_cases() -> None:
    options = CheckOptions()
    assert options.limits == Allclose() == Allclose(0.01, 0.1)
    assert options.examples == EDGE_CASES + 12
    assert (options.backends, options.dtypes, options.devices) == ((), (), (None,))
    assert (options.told, options.seed, options.exhaustive) == (None, 0, False)


def test_one_or_several_are_taken() -> None:
    options = CheckOptions(backend="trace", dtype="float16", device="cpu")
    assert (options.backends, options.dtypes, options.devices) == (
        ("trace",), ("float16",), ("cpu",)
    )  # fmt: skip
    options = CheckOptions(backend=["jit", "trace"], dtype=["float16"], device=["cpu", "mps"])
    assert options.backends == ("jit", "trace")
    assert [str(choice) for choice in options.choices] == ["jit", "trace"]
    assert (options.dtypes, options.devices) == (("float16",), ("cpu", "mps"))


def test_gates_are_chosen_by_name() -> None:
    assert CheckOptions().gates == NAMES
    assert CheckOptions(select="top1").gates == ("top1",)
    assert CheckOptions(select=["top1", "allclose"], ignore="top1").gates == ("allclose",)


def test_options_cannot_be_changed_and_a_changed_copy_is_validated() -> None:
    options = CheckOptions(seed=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.seed = 4  # type: ignore[misc]
    assert dataclasses.replace(options, atol=0.5).limits == Allclose(0.5, 0.1)
    with pytest.raises(UsageError, match="expected atol"):
        dataclasses.replace(options, atol=-1)


def test_programs_are_kept_unless_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPCHECK_CACHE", "/kept")
    assert CheckOptions().artefacts is not None
    assert CheckOptions(cache=False).artefacts is None


def test_an_architecture_in_a_file_is_named_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = minute_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert CheckOptions(architecture=config.name).told == str(config)
    assert CheckOptions(architecture="ViT-B/32").told == "ViT-B/32"


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        ({"examples": 0}, UsageError, "at least 1 example without --images or --prompts"),
        ({"examples": "3"}, UsageError, "expected at least 1 example, found '3'"),
        ({"examples": True}, UsageError, "expected at least 1 example, found True"),
        ({"seed": True}, UsageError, "expected a seed of at least 0, found True"),
        ({"rtol": True}, UsageError, "expected rtol to be a number of at least 0, found True"),
        ({"exhaustive": "no"}, UsageError, "expected exhaustive to be True or False, found 'no'"),
        ({"fail_fast": 1}, UsageError, "expected fail_fast to be True or False, found 1"),
        ({"cache": None}, UsageError, "expected cache to be True or False, found None"),
        ({"seed": -1}, UsageError, "expected a seed of at least 0, found -1"),
        ({"seed": 0.5}, UsageError, "expected a seed of at least 0, found 0.5"),
        ({"atol": float("nan")}, UsageError, "expected atol to be a number of at least 0"),
        ({"rtol": float("inf")}, UsageError, "expected rtol to be a number of at least 0"),
        ({"atol": "0.1"}, UsageError, "expected atol to be a number of at least 0, found '0.1'"),
        ({"dtype": "half"}, UsageError, "expected a dtype, found 'half'. .* name is 'float16'"),
        ({"dtype": ["float32", 16]}, UsageError, "expected a dtype, found 16"),
        ({"backend": "tracer"}, UsageError, "nearest name is 'trace'"),
        ({"select": "fidelty"}, UsageError, "found 'fidelty'. The nearest name is 'fidelity'"),
        ({"ignore": [3]}, UsageError, "expected a gate, found 3"),
        ({"device": []}, UsageError, "expected a device, found none"),
        ({"budget": "int9"}, UsageError, "expected a budget, found 'int9'"),
        ({"budget": 3}, UsageError, "expected a budget as text, found 3"),
        ({"isolation": "full"}, UsageError, "expected an isolation, found 'full'"),
        ({"reference": 3}, UsageError, "released name of a reference, found an object of type int"),
        ({"map": "image_features"}, UsageError, "expected NAME=MEANING, as image_embeds="),
        ({"map": ["a=pixel"]}, UsageError, "The nearest name is 'pixels'"),
        ({"require": "batch"}, UsageError, "expected require to be dynamic-batch, found 'batch'"),
        ({"architecture": "ViT-B-32"}, UnknownModelError, "nearest name is 'ViT-B/32'"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_read(
    given: dict[str, Any], kind: type[ClipcheckError], told: str
) -> None:
    with pytest.raises(kind, match=told):
        CheckOptions(**given)


@pytest.mark.parametrize("given", [{}, {"a.pt": 1}, 3, None, b"a.pt"])
def test_what_is_no_name_is_no_checkpoint(given: object) -> None:
    with pytest.raises(UsageError, match="expected the path or the released name of a checkpoint"):
        files_named(given)


def test_checkpoints_are_named_one_or_several() -> None:
    assert files_named("a.pt") == files_named(Path("a.pt")) == ["a.pt"]
    assert files_named(["a.pt", Path("b.pt")]) == ["a.pt", "b.pt"]
    with pytest.raises(UsageError, match="expected a checkpoint, found none"):
        files_named([])


def test_check_takes_them_as_keywords_and_nothing_else() -> None:
    taken = inspect.signature(clipcheck.check).parameters
    assert [*taken] == ["checkpoints", *(field.name for field in dataclasses.fields(CheckOptions))]
    told = r"^clipcheck\.check\(\) got an .* 'atoll'\. The nearest name is 'atol'; all of them: b"
    with pytest.raises(TypeError, match=told):
        clipcheck.check("gone.pt", atoll=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^clipcheck\.check\(\): too many positional arguments$"):
        clipcheck.check("gone.pt", "jit")  # type: ignore[misc,call-arg]


def test_options_that_are_not_given_import_nothing() -> None:
    code = "import sys; from clipcheck.harness.options import CheckOptions; CheckOptions(seed=1)"
    told = "print(*sorted({'numpy', 'torch', 'open_clip'} & sys.modules.keys()))"
    command = [sys.executable, "-c", f"{code}; {told}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "\n"
