"""From opened files to the two sides of a comparison."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from clipcheck.backends import loading
from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.base import Missing
from clipcheck.backends.loading import Sides, build, load_sides
from clipcheck.backends.registry import Choice, find
from clipcheck.backends.source import Source
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, Program, same_bits
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.errors import (
    ArchitectureError,
    ClipcheckError,
    RunError,
    UnavailableError,
    UsageError,
)
from conftest import SeededArchive
from tests.backends.kept import CPU, Kept, batch, expected, minute
from tests.samples import onnx_naming

BIAS, PROJECTION = "ln_final.bias", "text_projection"


@pytest.fixture
def archive(built: Path) -> Checkpoint:
    return open_checkpoint(minute(built, Format.ARCHIVE))


def load(
    subject: Checkpoint | Program,
    reference: Checkpoint | None,
    scratch: Path,
    dtype: str = "float32",
    *,
    archive: bool = False,
) -> Sides:
    artefacts = cast(Artefacts, Kept(scratch))
    return load_sides(subject, reference, CPU, dtype, scratch, artefacts, archive=archive)


def model_of(sides: Sides) -> Any:
    return sides.reference._model


def altered(checkpoint: Checkpoint, key: str, by: float) -> Checkpoint:
    return replace(
        checkpoint, tensors={**checkpoint.tensors, key: checkpoint.tensors[key].float() + by}
    )


def test_without_a_reference_both_sides_share_one_model(
    archive: Checkpoint, tmp_path: Path
) -> None:
    sides = load(archive, None, tmp_path)
    assert sides.source.checkpoint is archive
    assert sides.source.program is None
    assert sides.source.archive is None
    assert model_of(sides) is sides.source.model


def test_the_archive_is_loaded_with_its_eager_model_on_request(
    archive: Checkpoint, tmp_path: Path
) -> None:
    sides = load(archive, None, tmp_path, archive=True)
    opened = sides.source.archive
    assert opened is not None
    assert opened.runner.facts.scripted
    assert not isinstance(sides.source.model, torch.jit.ScriptModule)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_models_compute_in_the_requested_dtype(
    dtype: str, archive: Checkpoint, tmp_path: Path
) -> None:
    sides = load(archive, altered(archive, BIAS, 0), tmp_path, dtype)
    assert sides.source.dtype == dtype
    for model in (sides.source.model, model_of(sides)):
        assert model.visual.conv1.weight.dtype == getattr(torch, dtype)
        assert model.ln_final.bias.dtype == torch.float32


def test_a_given_reference_is_compared_with(archive: Checkpoint, tmp_path: Path) -> None:
    other = altered(archive, BIAS, 1)
    sides = load(archive, other, tmp_path)
    assert same_bits(sides.source.model.ln_final.bias, archive.tensors[BIAS].float())
    assert same_bits(model_of(sides).ln_final.bias, other.tensors[BIAS])
    pixels, tokens = batch(archive.architecture, 2, 3)
    (found,) = sides.reference.outputs([(pixels, tokens)])
    wanted = expected(model_of(sides), pixels, tokens)
    assert (found["text_features"] == wanted["text_features"]).all()
    own = expected(sides.source.model, pixels, tokens)
    assert (found["text_features"] != own["text_features"]).any()


def test_the_reference_is_rounded_to_what_the_candidate_stores(
    archive: Checkpoint, tmp_path: Path
) -> None:
    """What rounding does to the outputs is no fault of a conversion to half."""
    assert archive.tensors[PROJECTION].dtype == torch.float16
    finer = altered(archive, PROJECTION, 1e-6)
    rounded = finer.tensors[PROJECTION].half().float()
    assert not same_bits(rounded, finer.tensors[PROJECTION])
    assert same_bits(model_of(load(archive, finer, tmp_path)).text_projection, rounded)
    # And not where the candidate has them as fine.
    same = model_of(load(finer, altered(finer, PROJECTION, 0), tmp_path)).text_projection
    assert same_bits(same, finer.tensors[PROJECTION])


def test_a_weight_that_the_candidate_lacks_is_not_rounded(
    archive: Checkpoint, tmp_path: Path
) -> None:
    less = {key: t for key, t in archive.tensors.items() if key != "context_length"}
    sides = load(replace(archive, tensors=less), archive, tmp_path)
    assert same_bits(model_of(sides).ln_final.bias, archive.tensors[BIAS].float())


def test_other_dimensions_are_refused(
    archive: Checkpoint, seeded_archive: SeededArchive, tmp_path: Path
) -> None:
    other = open_checkpoint(seeded_archive("tiny-vit"))
    with pytest.raises(ArchitectureError, match="expected the dimensions of the ref") as caught:
        load(archive, other, tmp_path)
    assert caught.value.path == str(archive.path)
    assert archive.architecture.describe() in caught.value.problem
    assert other.architecture.describe() in caught.value.problem
    assert "--reference" in caught.value.remedy


def test_a_program_is_compared_with_the_model_of_its_checkpoint(
    archive: Checkpoint, tmp_path: Path
) -> None:
    program = Program(onnx_naming(tmp_path / "program.onnx"), Format.ONNX)
    sides = load(program, archive, tmp_path, archive=True)
    assert sides.source.program == program.path
    assert sides.source.checkpoint is archive
    assert sides.source.archive is None
    assert model_of(sides) is sides.source.model
    with pytest.raises(ValueError, match="no weights of its own"):
        load(program, None, tmp_path)


@pytest.mark.parametrize("found", ["float16", "float64", "float32", None])
def test_a_program_in_another_dtype_is_refused_before_anything_runs(
    found: str | None, archive: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program(tmp_path / "program.pt2", Format.PT2)
    monkeypatch.setattr(loading, "computing_dtype", lambda _: found)
    if found in ("float32", None):
        assert load(program, archive, tmp_path).source.program == program.path
        return
    told = f"{program.path}: expected a program that computes in float32, found {found}. "
    told += "Leave --dtype out, or" if found == "float16" else "Export it in "
    with pytest.raises(UsageError, match=f"^{re.escape(told)}"):
        load(program, archive, tmp_path)


# ------------------------------------------------------------------ building


@pytest.fixture
def source(archive: Checkpoint, tmp_path: Path) -> Source:
    return load(archive, None, tmp_path).source


def test_a_backend_is_built_with_a_value_for_each_option(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Source] = []
    built = SimpleNamespace(lacks=frozenset())

    def building(source: Source) -> SimpleNamespace:
        given.append(source)
        return built

    monkeypatch.setattr(find("compile"), "build", building)
    assert build(Choice("compile", {"dynamic": "auto"}), source) is built
    assert built.lacks == frozenset()
    assert given == [replace(source, options={"mode": "default", "dynamic": "auto"})]


def test_an_unavailable_or_unfit_backend_is_refused_before_anything_is_built(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find("clip"), "build", None)
    half = replace(source, dtype="float16")
    with pytest.raises(UnavailableError, match=r"^clip: .* not in float16\. Choose another back"):
        build(Choice("clip"), half)
    monkeypatch.setattr(find("clip"), "available", lambda: Missing("it is not there", "Get it."))
    with pytest.raises(UnavailableError, match=r"^clip: it is not there\. Get it\.$"):
        build(Choice("clip"), half)


def test_a_program_is_opened_even_if_its_checkpoint_is_unfit(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find("export"), "unfit", lambda *_: "it does not fit")
    built = SimpleNamespace(lacks=frozenset())
    monkeypatch.setattr(find("export"), "build", lambda _: built)
    assert build(Choice("export"), replace(source, program=tmp_path)) is built


def raising(error: BaseException) -> Any:
    def call(_: Source) -> None:
        raise error

    return call


def test_an_error_while_building_is_translated_once(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause = KeyError("no such thing")
    monkeypatch.setattr(find("trace"), "build", raising(cause))
    with pytest.raises(RunError, match=r"^trace: building failed \('no such thing'\)\. ") as caught:
        build(Choice("trace"), source)
    assert caught.value.__cause__ is cause
    ours = RunError("trace: tracing failed (so it is)", remedy="Do something.")
    monkeypatch.setattr(find("trace"), "build", raising(ours))
    with pytest.raises(ClipcheckError) as caught:
        build(Choice("trace"), source)
    assert caught.value is ours
    monkeypatch.setattr(find("trace"), "build", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        build(Choice("trace"), source)
