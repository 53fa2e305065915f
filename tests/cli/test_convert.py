from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from clipcheck.audit.faults import fault_named
from clipcheck.backends.base import Missing
from clipcheck.backends.registry import find
from clipcheck.checkpoints.architecture import Activation
from clipcheck.checkpoints.checkpoint import same_bits
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.harness import checking
from clipcheck.writers.archive import write_archive
from conftest import Run
from tests.cli import minute
from tests.samples import (
    MINUTE,
    minute_config,
    minute_weights,
)
from tests.thorough import parametrize


def test_a_checkpoint_is_not_written_over(run: Run, minute_archive: Path, tmp_path: Path) -> None:
    path, link = tmp_path / "model.pt", tmp_path / "link.pt"
    path.write_bytes(minute_archive.read_bytes())
    link.symlink_to(path)
    for output in (path, link):
        done = run("convert", path, "-o", output)
        assert done.code == 2
        assert "expected an output other than the checkpoint, found the checkpoint" in done.err
    assert path.read_bytes() == minute_archive.read_bytes()


def test_a_state_dict_becomes_an_archive_that_was_checked(
    run: Run, minute_archive: Path, tmp_path: Path
) -> None:
    weights, archive = tmp_path / "weights.pt", tmp_path / "archive.pt"
    assert run("convert", minute_archive, "-o", weights, "--format", "state-dict").code == 0
    assert run("check", weights).code == 2
    done = run("convert", weights, "-o", archive)
    assert (done.code, done.out) == (2, "")
    assert "activation, heads and epsilon are not known" in done.err
    done = run("convert", weights, "-o", archive, "--architecture", minute_config(tmp_path))
    assert done.code == 0
    count = len(open_checkpoint(weights).tensors)
    assert f"\nread back: {count} tensors, bit for bit those of {weights}\n" in done.out
    assert re.search(r"\bjit\s+cpu\b", done.out)
    assert done.out.endswith("CONSISTENT: 1 checkpoint agrees between JIT and eager.\n")
    assert run("check", archive, "--examples", 1).code == 0


def test_an_archive_of_another_architecture_needs_the_option(run: Run, tmp_path: Path) -> None:
    path, output = tmp_path / "gelu.pt", tmp_path / "a.safetensors"
    gelu = MINUTE.with_blocks(activation=Activation.GELU)
    write_archive(MINUTE, minute_weights(), path, alter=fault_named("gelu-for-quickgelu").plant)
    for options in ((), ("--isolation", "none")):
        done = run("convert", path, "-o", output, *options)
        assert (done.code, done.out) == (2, "")
        assert f"clipcheck: {path}: this candidate uses GELU in the image and text" in done.err
        assert "Give the architecture with --architecture (in pytest" in done.err
        assert not output.exists()
    config = minute_config(tmp_path, gelu)
    done = run("convert", path, "-o", output, "--architecture", config)
    assert done.code == 0
    assert f"\ncomputes {gelu.summary()}: from --architecture {config}\n" in done.out


def test_an_archive_that_does_not_pass_is_not_kept(
    run: Run,
    minute_archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checking, "check_files", lambda *a, **k: checking.Result((), {}))
    done = run("convert", minute_archive, "-o", tmp_path / "a.pt")
    assert done.code == 2
    assert "was deleted" in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_convert_can_change_the_dtype(run: Run, minute_archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    done = run("convert", minute_archive, "-o", path, "--dtype", "float32", "--quiet")
    assert done.code == 0
    assert f"bit for bit those of {minute_archive}, cast to float32\nCONSISTENT: 1 " in done.out
    assert open_checkpoint(path).dtypes == ["float32"]


def test_a_name_that_says_another_format_is_refused_before_anything_is_read(
    run: Run, tmp_path: Path
) -> None:
    for command in ("convert", "synthesize"):
        done = run(command, "gone.pt", "-o", tmp_path / "x.onnx", "--format", "archive")
        assert done.code == 2
        assert "x.onnx: its suffix means onnx, but --format is archive" in done.err
    done = run("convert", "gone.pt", "-o", f"{tmp_path}/new/")
    assert done.err.endswith("Give --format transformers or --format open_clip.\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
@parametrize(
    ("form", "dtype"),
    [("open_clip", None), ("pt2", None), ("transformers", None), ("onnx", "float16")],
)
def test_what_is_converted_is_checked_and_can_be_checked_again(
    run: Run, tmp_path: Path, form: str, dtype: str | None
) -> None:
    archive, path = minute(tmp_path / "minute.pt"), tmp_path / f"minute.{form}"
    options = [] if dtype is None else ["--dtype", dtype]
    given = ["--format", form] if path.suffix in (".transformers", ".open_clip") else []
    done = run("convert", archive, "-o", path, *given, *options)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{path}: ")
    assert re.search(rf" [kM]B, weights of {re.escape(str(archive))}\n", done.out)
    assert f"\ncomputes {MINUTE.summary()}: from its own code, which was run\n" in done.out
    precise = "precision" if dtype else "fidelity"
    assert re.search(rf"integrity +allclose +{precise} ", done.out)
    assert done.out.endswith("CONSISTENT: 1 checkpoint agrees with the reference.\n")
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([archive.name, path.name])
    check = run("check", path, "--reference", archive, "--examples", 1, *options)
    assert check.code == 0, check.out


@pytest.mark.thorough
def test_weights_come_back_from_a_folder_as_they_were(run: Run, tmp_path: Path) -> None:
    archive = minute(tmp_path / "minute.pt")
    folder, back = tmp_path / "folder", tmp_path / "back.pt"
    assert run("convert", archive, "-o", folder, "--format", "transformers").code == 0
    assert run("convert", folder, "-o", back, "--format", "state-dict").code == 0
    first, last = open_checkpoint(archive).tensors, open_checkpoint(back).tensors
    floats = [key for key, tensor in first.items() if tensor.is_floating_point()]
    assert all(same_bits(first[key], last[key]) for key in floats)
    assert len(floats) > 20


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_a_program_that_computes_something_else_is_not_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    import torch

    from clipcheck.models import whole

    forward = whole.Whole.forward

    def negating(self: whole.Whole, pixels: torch.Tensor, tokens: torch.Tensor) -> Any:
        found = forward(self, pixels, tokens)
        return {**found, "text_features": -found["text_features"]}

    monkeypatch.setattr(whole.Whole, "forward", negating)
    archive, path = minute(tmp_path / "minute.pt"), tmp_path / "program"
    path.write_bytes(b"what was there before")
    done = run("convert", archive, "-o", path, "--format", form)
    assert done.code == 2
    assert done.err.startswith(f"clipcheck: the {form} that was written is not consistent")
    assert "FAIL  fidelity " in done.err
    assert done.err.endswith(" This is a bug in clipcheck: please report it.\n")
    assert path.read_bytes() == b"what was there before"
    assert {each.name for each in tmp_path.iterdir()} == {archive.name, path.name}


@pytest.mark.thorough
@parametrize("form", ["transformers", "open_clip"], quick=1)
def test_a_folder_whose_weights_are_others_is_not_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    from clipcheck.backends import modules

    run_method = modules.ModuleBackend.outputs

    def negating(self: modules.ModuleBackend, *given: object) -> dict[str, object]:
        found = run_method(self, *given)
        return {name: -array if name == "text_features" else array for name, array in found.items()}

    monkeypatch.setattr(modules.ModuleBackend, "outputs", negating)
    archive = minute(tmp_path / "minute.pt")
    done = run("convert", archive, "-o", tmp_path / "folder", "--format", form)
    assert done.code == 2
    assert f"the {form} that was written is not consistent, and was deleted" in done.err
    assert [each.name for each in tmp_path.iterdir()] == [archive.name]


@pytest.mark.parametrize("form", ["transformers", "open_clip"])
def test_a_folder_takes_no_dtype(run: Run, tmp_path: Path, form: str) -> None:
    options = ["-o", tmp_path / "folder", "--format", form, "--dtype", "float16"]
    done = run("convert", tmp_path / "gone.pt", *options)
    assert done.code == 2
    assert done.err == (
        f"clipcheck: --dtype has no effect on folders of {form}, which keep the weights bit for "
        "bit. Convert to safetensors with --dtype first, then convert that file to a folder.\n"
    )


@parametrize(
    ("form", "backend"),
    [("onnx", "onnxruntime"), ("transformers", "transformers"), ("open_clip", "open_clip")],
    quick=1,
)
def test_without_the_library_that_would_check_it_nothing_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, backend: str
) -> None:
    missing = Missing(f"{backend} is not installed", "Install it.")
    monkeypatch.setattr(find(backend), "available", lambda: missing)
    archive = minute(tmp_path / "minute.pt")
    done = run("convert", archive, "-o", tmp_path / "made", "--format", form)
    assert done.code == 2
    assert done.err == f"clipcheck: {backend}: {backend} is not installed. Install it.\n"
    assert [each.name for each in tmp_path.iterdir()] == [archive.name]
