"""Properties of torch.compile alone; the conformance tests check what it computes."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch._dynamo.utils import counters

from clipcheck.backends.aotinductor import quiet_about_cuda
from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.compile import Compile
from clipcheck.backends.source import Source
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.errors import RunError
from tests.backends.kept import CPU, Kept, assert_same, batch, expected, minute, source

FUNCTIONS = ["encode_image", "encode_text", "logits"]
Asked = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def made(built: Path, tmp_path: Path) -> Source:
    own = cast(Artefacts, Kept(tmp_path / "kept"))
    found = source(minute(built, Format.STATE_DICT), tmp_path, Compile)
    return dataclasses.replace(found, artefacts=own)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Make torch.compile return the model unchanged, and record its arguments."""
    asked: Asked = []

    def compile_nothing(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
        asked.append((function.__name__, how))
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return asked


def test_a_model_that_was_not_compiled_gets_a_warning_whatever_ran_before(
    made: Source, uncompiled: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(counters["stats"], "unique_graphs", 7)
    backend = Compile.build(made)
    pixels, tokens = batch(made.checkpoint.architecture, 2, 3)
    assert_same(backend.outputs(pixels, tokens), expected(made.model, pixels, tokens))
    doubt = "nothing was compared: torch.compile compiled no graph"
    assert backend.evidence().doubts == [doubt]
    counters["stats"]["unique_graphs"] += 1
    assert backend.evidence().doubts == []
    backend.close()


@pytest.mark.parametrize(("written", "dynamic"), [("true", True), ("false", False), ("auto", None)])
def test_its_options_are_those_of_torch(
    made: Source, uncompiled: Asked, written: str, dynamic: bool | None
) -> None:
    options = {"mode": "max-autotune", "dynamic": written}
    Compile.build(dataclasses.replace(made, options=options)).close()
    how = {"mode": "max-autotune", "dynamic": dynamic, "fullgraph": True}
    assert uncompiled == [(name, how) for name in FUNCTIONS]


def test_the_cache_key_has_everything_that_compiling_depends_on(
    made: Source, uncompiled: Asked
) -> None:
    kept = cast(Kept, made.artefacts)
    Compile.build(made).close()
    Compile.build(made).close()
    assert len(kept.built) == 1
    assert kept.built[0] == {
        "backend": "compile",
        "checkpoint": made.checkpoint.sha256,
        "model": made.checkpoint.origin.name,
        "architecture": repr(made.checkpoint.architecture),
        "torch": torch.__version__,
        "device": f"cpu {torch.backends.cpu.get_cpu_capability()}",
        "dtype": "float32",
        "mode": "default",
        "dynamic": "true",
    }
    Compile.build(dataclasses.replace(made, options={"mode": "default", "dynamic": "auto"})).close()
    assert len(kept.built) == 2


def test_inductor_uses_only_its_own_cache_folder(
    made: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no code is judged that somebody compiled before in another way."""
    seen: list[Path] = []

    def compile_a_file(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def call(*inputs: torch.Tensor) -> Any:
            place = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
            seen.append(place)
            assert os.environ["TRITON_CACHE_DIR"] == str(place / "triton")
            (place / "code.so").touch()
            return function(*inputs)

        return call

    monkeypatch.setattr(torch, "compile", compile_a_file)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere/else")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    Compile.build(made).close()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/somewhere/else"
    assert "TRITON_CACHE_DIR" not in os.environ
    (first,) = set(seen)
    assert first.parent == made.scratch

    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    seen.clear()
    Compile.build(made).close()
    assert len(list(made.scratch.glob("inductor-*/code.so"))) == 2


def test_a_failed_build_changes_no_settings(made: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise ValueError("no such operation")

    before = dict(os.environ)
    limit = torch._dynamo.config.recompile_limit
    monkeypatch.setattr(torch, "compile", lambda *_, **__: failing)
    with pytest.raises(RunError, match=r"^compile: encode_image failed \(no such operation\)\."):
        Compile.build(made)
    assert dict(os.environ) == before
    assert torch._dynamo.config.recompile_limit == limit


def test_torch_may_compile_for_enough_batch_sizes(made: Source, uncompiled: Asked) -> None:
    """Beyond its limit torch gives up, and by default that is 8."""
    backend = Compile.build(made)
    assert torch._dynamo.config.recompile_limit == 64
    assert torch._dynamo.config.accumulated_recompile_limit >= 3 * 64
    backend.close()


def test_it_is_unfit_for_mps(made: Source) -> None:
    assert Compile.unfit(made.checkpoint, CPU, "float32") is None
    assert (
        Compile.unfit(made.checkpoint, torch.device("mps"), "float32") == "Inductor is not for mps"
    )


@pytest.mark.parametrize(("device", "told"), [("cpu", ["another"]), ("cuda", ["No", "another"])])
def test_warnings_about_gpus_are_hidden_on_the_cpu(
    device: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    logger = logging.getLogger("torch.utils.cpp_extension")
    # What comes through its filters.
    monkeypatch.setattr(logger, "callHandlers", lambda record: found.append(record.getMessage()))
    with quiet_about_cuda(torch.device(device)):
        logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local")
        logger.warning("another warning")
    assert [message.split()[0] for message in found] == told
    logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local")
    assert len(found) == len(told) + 1
