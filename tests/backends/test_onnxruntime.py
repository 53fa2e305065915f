from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from packaging.version import Version

from clipcheck.backends import sandboxes
from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.base import Backend
from clipcheck.backends.held import _is_folded, _is_scaled
from clipcheck.backends.onnxruntime import ONNXRuntime
from clipcheck.backends.source import ProgramFile, Source
from clipcheck.checkpoints.architecture import ARCHITECTURES
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, Program
from clipcheck.checkpoints.onnx_data import computing_dtype
from clipcheck.checkpoints.opening import open_subject
from clipcheck.errors import RunError, UnavailableError, UsageError
from clipcheck.families import eager
from tests.backends.kept import (
    CPU,
    Kept,
    artefact,
    assert_near,
    batch,
    expected,
    minute,
    source,
)
from tests.samples import MINUTE_RESNET
from tests.thorough import parametrize

NEAR = 1e-5
"""Share of the greatest value: ONNX Runtime's own kernels were 4e-6 off at most."""


@pytest.fixture(scope="module")
def made(small_archive: Path, built: Path) -> Source:
    return source(small_archive, built, ONNXRuntime)


@pytest.fixture(scope="module")
def backend(made: Source) -> Iterator[Backend]:
    found = ONNXRuntime.build(made)
    yield found
    found.close()


@pytest.fixture
def vit(built: Path) -> Source:
    return source(minute(built, Format.ARCHIVE), built, ONNXRuntime)


def with_options(made: Source, **options: str) -> Source:
    return dataclasses.replace(made, options={**made.options, **options})


@parametrize("level", ONNXRuntime.options["optimization"].values, quick=1)
def test_every_optimisation_level_gives_all_outputs(vit: Source, level: str) -> None:
    backend = ONNXRuntime.build(with_options(vit, optimization=level))
    pixels, tokens = batch(vit.checkpoint.architecture, 2, 3)
    assert_near(backend.outputs(pixels, tokens), expected(vit.model, pixels, tokens), NEAR)
    backend.close()


def test_optimisation_level_and_threads_reach_the_session(
    vit: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    ONNXRuntime.build(vit)
    seen: list[Any] = []

    opens = onnxruntime.InferenceSession

    def session(path: Path, settings: Any, **how: Any) -> Any:
        seen.append(settings)
        return opens(path, settings, **how)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    levels = onnxruntime.GraphOptimizationLevel
    for level in ONNXRuntime.options["optimization"].values:
        ONNXRuntime.build(with_options(vit, optimization=level)).close()
    assert [settings.graph_optimization_level for settings in seen] == [
        levels.ORT_DISABLE_ALL,
        levels.ORT_ENABLE_BASIC,
        levels.ORT_ENABLE_EXTENDED,
        levels.ORT_ENABLE_LAYOUT,
        levels.ORT_ENABLE_ALL,
    ]
    assert {settings.intra_op_num_threads for settings in seen} == {3}


def test_entries_of_the_configuration_reach_the_session(
    vit: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []

    class Options(onnxruntime.SessionOptions):
        def add_session_config_entry(self, key: str, value: str) -> None:
            seen.append((key, value))

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    ONNXRuntime.build(with_options(vit, config="a.b=1+c=d=e")).close()
    assert seen == [("a.b", "1"), ("c", "d=e")]


@pytest.mark.parametrize("written", ["a", "=1", "a=1+b"])
def test_an_entry_of_the_configuration_without_key_or_value_is_refused(
    vit: Source, written: str
) -> None:
    with pytest.raises(UsageError, match=r"expected config=KEY=VALUE, found '"):
        ONNXRuntime.build(with_options(vit, config=written))


def test_the_default_level_is_onnx_runtimes_own() -> None:
    default = ONNXRuntime.options["optimization"].default
    level = onnxruntime.SessionOptions().graph_optimization_level
    assert level == getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{default.upper()}")


@pytest.mark.thorough
@pytest.mark.skipif(
    Version(onnxruntime.__version__) < Version("1.31"),
    reason="it opens no ResNet in half precision: it inserts casts to another type",
)
def test_a_resnet_computes_in_half_precision(built: Path) -> None:
    made = source(minute(built, Format.ARCHIVE, MINUTE_RESNET), built, ONNXRuntime, "float16")
    assert ONNXRuntime.unfit(made.checkpoint, CPU, "float16") is None
    backend = ONNXRuntime.build(made)
    pixels, tokens = batch(made.checkpoint.architecture, 2, 3)
    assert_near(backend.outputs(pixels, tokens), expected(made.model, pixels, tokens), atol=5e-3)
    backend.close()


def test_weights_are_compared_directly_and_transposed(backend: Backend, made: Source) -> None:
    found = backend.evidence()
    keys = set(made.model.state_dict())
    if isinstance(made.model.visual, eager.ModifiedResNet):
        # The image tower's convolutions have taken these up.
        keys -= {key for key in keys if "bn" in key or "downsample" in key}
        keys -= {key for key in keys if "conv" in key}
    assert found.weights == len(keys - {"logit_scale"})
    assert not found.differing
    assert not found.doubts


def one_file(path: Path) -> Path:
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w", size_threshold=100)
    return path


def a_file_for_each(path: Path) -> Path:
    kept = {"all_tensors_to_one_file": False, "size_threshold": 100}
    onnx.save(onnx.load(path), path, save_as_external_data=True, **kept)
    return path


def hub(path: Path) -> Path:
    """Lay a program out like a hub's cache: links to files with other names."""
    one_file(path)
    snapshot = path.parent / "snapshot"
    snapshot.mkdir()
    for number, name in enumerate((path.name, "w")):
        (path.parent / name).rename(path.parent / f"blob{number}")
        (snapshot / name).symlink_to(f"../blob{number}")
    return snapshot / path.name


@parametrize("lay", [hub, one_file, a_file_for_each])
@parametrize("isolation", ["process", "none"], quick=1)
def test_external_weight_files_are_run_and_compared(
    lay: Callable[[Path], Path],
    isolation: sandboxes.Isolation,
    vit: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandboxes, "_MOST_NAMED", 10)
    ONNXRuntime.build(vit).close()
    whole = artefact(vit)
    path = tmp_path / "m.onnx"
    path.write_bytes(whole.read_bytes())
    path = lay(path)
    subject = open_subject(path)
    assert isinstance(subject, Program)
    assert (len(subject.data) > 10) == (lay is a_file_for_each)
    weights = vit.model.state_dict()
    with sandboxes.sandbox_for(subject, CPU, isolation) as sandbox:
        found = ONNXRuntime.open_program(
            ProgramFile(
                path=path,
                device=CPU,
                dtype=None,
                sizes=vit.sizes,
                weights=weights,
                options={},
                sandbox=sandbox,
            )
        )
        with contextlib.closing(found):
            given = batch(vit.checkpoint.architecture, 2, 3)
            outputs = found.outputs(*given)
            assert_near(outputs, expected(vit.model, *given), NEAR)
            evidence = found.evidence()
            # The exponential of logit_scale is a constant of the program.
            assert (evidence.weights, evidence.differing) == (len(weights) - 1, {})
            assert found.size == subject.size > whole.stat().st_size / 2


@parametrize("keep_io_types", [True, False], quick=1)
def test_a_program_converted_to_half_is_run_and_compared(
    keep_io_types: bool, vit: Source, tmp_path: Path
) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    ONNXRuntime.build(vit).close()
    path = tmp_path / "half.onnx"
    program = onnx.load(artefact(vit))
    onnx.save(convert_float_to_float16(program, keep_io_types=keep_io_types), path)
    assert computing_dtype(path) == "float16"
    architecture, weights = vit.checkpoint.architecture, vit.model.state_dict()
    found = ONNXRuntime.open_program(
        ProgramFile(
            path=path, device=CPU, dtype="float16", sizes=vit.sizes, weights=weights, options={}
        )
    )
    with contextlib.closing(found):
        outputs = found.outputs(*batch(architecture, 2, 3))
        assert {array.dtype for array in outputs.values()} == {np.dtype("float16")}
        assert not found.evidence().differing


def test_a_weight_with_other_bits_is_named(vit: Source) -> None:
    ONNXRuntime.build(vit)
    weights = dict(vit.model.state_dict())
    weights["ln_final.bias"] = weights["ln_final.bias"] + 1
    found = ONNXRuntime.open_program(
        ProgramFile(
            path=artefact(vit), device=CPU, dtype=None, sizes=vit.sizes, weights=weights, options={}
        )
    ).evidence()
    assert found.differing == {"ln_final.bias": "the program has other bits than the file"}


def test_an_unidentified_weight_is_not_counted(vit: Source) -> None:
    ONNXRuntime.build(vit)
    weights = dict(vit.model.state_dict())
    path = artefact(vit)
    before = (
        ONNXRuntime.open_program(
            ProgramFile(
                path=path, device=CPU, dtype=None, sizes=vit.sizes, weights=weights, options={}
            )
        )
        .evidence()
        .weights
    )
    key = "transformer.resblocks.0.mlp.c_fc.weight"
    weights[key] = weights[key] + 1
    found = ONNXRuntime.open_program(
        ProgramFile(path=path, device=CPU, dtype=None, sizes=vit.sizes, weights=weights, options={})
    ).evidence()
    assert before is not None
    assert found.weights == before - 1
    assert not found.differing


def test_the_program_contains_no_path_of_this_machine(vit: Source) -> None:
    ONNXRuntime.build(vit)
    program = onnx.load(artefact(vit), load_external_data=False)
    del program.graph.initializer[:]
    assert str(Path(eager.__file__).parent).encode() not in program.SerializeToString()


def test_an_unknown_provider_is_refused_with_the_available_ones(vit: Source) -> None:
    message = (
        r"^onnxruntime: expected execution providers out of .*CPUExecutionProvider.*, "
        r"found 'NoneProvider'\. Name one of these"
    )
    with pytest.raises(UnavailableError, match=message):
        ONNXRuntime.build(with_options(vit, providers="CPUExecutionProvider+NoneProvider"))


def test_several_providers_are_used_in_their_order(
    vit: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    ONNXRuntime.build(vit)
    seen: list[list[str]] = []

    def session(*_: Any, providers: list[str], **__: Any) -> None:
        seen.append(providers)
        raise RuntimeError("stopped")

    available = ["CPUExecutionProvider", "OneProvider"]
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    with pytest.raises(RunError, match="stopped"):
        ONNXRuntime.build(with_options(vit, providers="OneProvider+CPUExecutionProvider"))
    # Once as asked for, then with less optimisation: that may be the reason.
    assert len(seen) > 1
    assert all(each == ["OneProvider", "CPUExecutionProvider"] for each in seen)


def test_a_provider_that_did_not_start_gets_a_warning(
    vit: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    ONNXRuntime.build(vit)
    made = onnxruntime.InferenceSession

    def fallen_back(path: Path, settings: Any, providers: list[str], **_: Any) -> Any:
        return made(path, settings, providers=["CPUExecutionProvider"])

    available = ["CPUExecutionProvider", "OneProvider"]
    monkeypatch.setattr(onnxruntime, "InferenceSession", fallen_back)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    backend = ONNXRuntime.build(with_options(vit, providers="OneProvider"))
    assert backend.evidence().doubts == [
        "OneProvider could not be started, and CPUExecutionProvider ran in its place"
    ]


def test_an_error_of_onnx_runtime_is_translated(vit: Source, tmp_path: Path) -> None:
    ONNXRuntime.build(vit)
    path = tmp_path / "program.onnx"
    program = onnx.load(artefact(vit))
    program.graph.node[0].op_type = "Nonsense"
    onnx.save(program, path)
    with pytest.raises(RunError, match=r"^onnxruntime: opening the program failed \(.*ONNXRuntime"):
        ONNXRuntime.open_program(
            ProgramFile(path=path, device=CPU, dtype=None, sizes=vit.sizes, weights={}, options={})
        )


def test_an_error_of_the_exporter_is_translated(
    vit: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    fresh = dataclasses.replace(vit, artefacts=cast(Artefacts, Kept(tmp_path)))
    with pytest.raises(RunError, match=r"^onnxruntime: exporting failed \(no such operator\)\."):
        ONNXRuntime.build(fresh)


@pytest.mark.parametrize("absent", [["onnxruntime"], ["onnx", "onnxscript"]])
def test_it_is_not_available_without_its_libraries(
    absent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ONNXRuntime.available() is None
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in absent else find(name)
    )
    missing = ONNXRuntime.available()
    assert missing is not None
    are = "is" if len(absent) == 1 else "are"
    assert missing.reason == f"{' and '.join(absent)} {are} not installed"
    assert missing.remedy == 'Run: pip install "clipcheck[onnx]".'


def test_it_reports_its_version() -> None:
    assert ONNXRuntime.version() == f"onnxruntime {onnxruntime.__version__}"


UNFIT = {
    ("ViT-B/32", "cpu", "float32"): None,
    ("ViT-L/14", "cpu", "float32"): None,
    ("ViT-B/32", "cpu", "bfloat16"): "no convolution in bfloat16",
    ("ViT-B/32", "xpu", "float32"): "no execution provider that clipcheck knows for xpu",
    ("ViT-B/32", "cuda", "float32"): "has no CUDAExecutionProvider; it has .*CPUExecutionProvider",
    ("RN50x64", "cpu", "float32"): r"its weights are 2\.\d GB, and one ONNX file holds 2\.1 GB",
    ("RN50x64", "cpu", "float16"): None,
}


@pytest.mark.parametrize(("architecture", "device", "dtype"), UNFIT)
def test_it_says_which_checkpoints_are_unfit(
    architecture: str, device: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    checkpoint = Checkpoint(
        path=Path("x"), format=Format.ARCHIVE, model=ARCHITECTURES[architecture], tensors={}
    )
    reason = UNFIT[architecture, device, dtype]
    found = ONNXRuntime.unfit(checkpoint, torch.device(device), dtype)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(reason, found)


def test_a_convolution_with_folded_batch_norm_is_identified_by_its_channels() -> None:
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    folded = weight * torch.tensor([0.5, 2.0, -1.0, 3.0]).reshape(4, 1, 1, 1)
    assert _is_scaled(folded, weight)
    assert _is_scaled(folded.half(), weight)
    altered = folded.clone()
    altered[0, 0, 0, 0] += 0.01
    assert not _is_scaled(altered, weight)
    weights = {"c.weight": weight, "n.running_mean": torch.zeros(4)}
    assert _is_folded("c.weight", weights, {"c.weight"}, {"c.weight"})
    # The program still has the statistics, or there are none of so many channels.
    assert not _is_folded("c.weight", weights, set(weights), {"c.weight"})
    other = {**weights, "n.running_mean": torch.zeros(5)}
    assert not _is_folded("c.weight", other, {"c.weight"}, {"c.weight"})
