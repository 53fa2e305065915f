"""Compiling takes long: the package is built once for all of these tests, in all workers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from packaging.version import Version

from clipcheck.backends import aotinductor
from clipcheck.backends.aotinductor import AOTInductor, open_package
from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.base import Backend
from clipcheck.backends.source import Source
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.errors import DamagedError, RunError
from clipcheck.gates.integrity import Evidence
from tests.backends.kept import (
    CPU,
    Kept,
    artefact,
    assert_near,
    batch,
    minute,
    source,
)
from tests.samples import flipped


@pytest.fixture(scope="module")
def made(built: Path) -> Source:
    """Build from the smallest model: compiling takes longer with each different layer."""
    return source(minute(built, Format.STATE_DICT), built, AOTInductor)


@pytest.fixture(scope="module")
def backend(made: Source) -> Iterator[Backend]:
    found = AOTInductor.build(made)
    yield found
    found.close()


def opened_package(path: Path, made: Source) -> AOTInductor:
    """Open a package as a user's, in this process."""
    return AOTInductor(
        "aotinductor",
        AOTInductor.open_here(path, CPU, {}),
        sizes=made.sizes,
        path=path,
        evidence=lambda *_: Evidence(weights=None),
    )


@pytest.mark.thorough
def test_weights_of_a_package_cannot_be_read(backend: Backend) -> None:
    found = backend.evidence()
    assert found.weights is None
    assert not found.doubts


@pytest.mark.thorough
def test_its_size_is_that_of_the_package(backend: Backend, made: Source) -> None:
    assert backend.size == artefact(made).stat().st_size


@pytest.mark.thorough
def test_compiling_leaves_no_files_in_the_working_folder(backend: Backend, made: Source) -> None:
    places = [path for path in made.scratch.iterdir() if not (path / "lock").exists()]
    assert [path for path in places if path.is_dir()] == []


@pytest.mark.thorough
def test_a_fixed_batch_size_is_found_by_trying(made: Source, tmp_path: Path) -> None:
    class Images(torch.nn.Module):  # little to compile
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.flatten(1)[:, : made.checkpoint.architecture.embed_dim] * 2

    pixels, _ = batch(made.checkpoint.architecture, 5, 1)
    program = torch.export.export(Images(), (torch.from_numpy(pixels[:2]),))
    path = tmp_path / "package.pt2"
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    wanted = Images()(torch.from_numpy(pixels)).numpy()
    opened = opened_package(path, made)
    np.testing.assert_allclose(opened.encode_image(pixels), wanted, rtol=0, atol=1e-5)
    assert opened.batches == ((2, None),)


@pytest.mark.thorough
def test_the_package_says_which_ids_it_takes(backend: Backend, made: Source) -> None:
    """Its code would take any others for these."""
    architecture = made.checkpoint.architecture
    path = artefact(made)
    opened = opened_package(path, made)
    for images, texts in ((2, 3), (1, 3), (1, 1)):
        pixels, tokens = batch(architecture, images, texts)
        assert_near(opened.outputs(pixels, tokens), backend.outputs(pixels, tokens), 1e-5)
    opened.close()


@pytest.mark.thorough
def test_an_error_is_translated_without_its_cpp_location(backend: Backend, made: Source) -> None:
    pixels, tokens = batch(made.checkpoint.architecture, 1, 1)
    # torch 2.9 prints the reason, and raises that the call of its own function failed.
    old = Version(torch.__version__) < Version("2.10")
    reason = "run_func_" if old else "index out of bounds: "
    message = rf"^aotinductor: running the program failed \({reason}[^\n]*\)\. "
    with pytest.raises(RunError, match=message) as raised:
        backend.outputs(pixels, np.full_like(tokens, 10**6))
    assert "Exception raised from" not in str(raised.value)


@pytest.mark.thorough
def test_an_error_of_the_compiler_is_translated(
    made: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such operator")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    fresh = dataclasses.replace(made, artefacts=cast(Artefacts, Kept(tmp_path)), scratch=tmp_path)
    with pytest.raises(RunError, match=r"^aotinductor: compiling failed \(no such operator\)\."):
        AOTInductor.build(fresh)


@pytest.mark.thorough
def test_an_error_of_the_loader_is_translated(
    made: Source, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise RuntimeError("no such symbol")

    monkeypatch.setattr(torch._inductor, "aoti_load_package", fail)
    with pytest.raises(RunError, match=r"^aotinductor: loading failed \(no such symbol\)\."):
        AOTInductor.build(made)


@pytest.mark.thorough
def test_code_that_was_altered_is_not_loaded(
    made: Source, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: str) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)
    contents = artefact(made).read_bytes()
    path = tmp_path / "package.pt2"
    path.write_bytes(flipped(contents, contents.index(b"\x7fELF") + 1000))
    with pytest.raises(DamagedError, match="was altered"):
        open_package(path, CPU, made.sizes, None)


@pytest.mark.thorough
def test_the_artefact_depends_on_the_hardware(
    made: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(tmp_path)
    monkeypatch.setattr(aotinductor, "_compile", lambda _, path: path.write_bytes(b""))
    for capability in ("DEFAULT", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda c=capability: c)
        with pytest.raises(RunError):
            AOTInductor.build(dataclasses.replace(made, artefacts=cast(Artefacts, kept)))
    assert [key["hardware"] for key in kept.built] == ["DEFAULT", "AVX2"]


@pytest.mark.thorough
def test_it_is_available_where_there_is_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", f"{compiler} -O1")
    assert AOTInductor.available() is None


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("cxx", "platform", "looked_for"),
    [(None, "linux", "g++"), (None, "darwin", "clang++"), ("none++", "linux", "none++")],
)
def test_it_is_not_available_without_a_compiler(
    cxx: str | None,
    platform: str,
    looked_for: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.delenv("CXX", raising=False)
    if cxx is not None:
        monkeypatch.setenv("CXX", cxx)
    missing = AOTInductor.available()
    assert missing is not None
    assert missing.reason == f"there is no C++ compiler {looked_for!r} here"
    assert "set CXX" in missing.remedy


@pytest.mark.thorough
@pytest.mark.parametrize(("device", "fits"), [("cpu", True), ("cuda", True), ("mps", False)])
def test_it_is_unfit_for_devices_without_compiled_code(
    made: Source, device: str, fits: bool
) -> None:
    reason = AOTInductor.unfit(made.checkpoint, torch.device(device), "float32")
    assert reason == (None if fits else f"AOTInductor packs no code for {device}")
