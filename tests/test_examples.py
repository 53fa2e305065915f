"""Each script of examples/ runs, with small models, and fakes for what is not installed."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import clipcheck
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.report.text import render
from tests.samples import MINUTE, minute_weights

FOLDER = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.thorough


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    weights = {k: t.float() if t.is_floating_point() else t for k, t in minute_weights().items()}
    path = tmp_path_factory.mktemp("examples") / "model.safetensors"
    return Checkpoint(
        path=path, format=Format.SAFETENSORS, model=MINUTE, tensors=weights, told="a test"
    )


def test_every_example_is_listed_and_tested() -> None:
    names = {path.name for path in FOLDER.glob("*.py")}
    assert set(re.findall(r"`(\w+\.py)` \|", (FOLDER / "README.md").read_text("utf-8"))) == names
    tested = Path(__file__).read_text("utf-8")
    assert [name for name in names if name.removesuffix(".py") not in tested] == []


def test_release(minute_archive: Path, tmp_path: Path) -> None:
    result = load("release").judge(str(minute_archive), str(tmp_path / "report"), examples=4)
    assert result, render(result)
    assert (tmp_path / "report" / "report.html").is_file()


def test_http_service(minute_archive: Path) -> None:
    from tests.services import listening

    model, _ = clipcheck.load(minute_archive, device="cpu", jit=True)

    class Service:
        def encode_image(self, pixels: np.ndarray) -> np.ndarray:
            found: np.ndarray = model.encode_image(torch.from_numpy(pixels)).detach().numpy()
            return found

        def encode_text(self, ids: np.ndarray) -> np.ndarray:
            found: np.ndarray = model.encode_text(torch.from_numpy(ids)).detach().numpy()
            return found

    with listening(Service()) as address:
        result = load("http_service").compare(str(minute_archive), address)
    assert result, render(result)


class FakeTensorRT(ModuleType):
    """The part of TensorRT's interface that the example calls: an engine is a name of a method."""

    def __init__(self, model: Any) -> None:
        super().__init__("tensorrt")
        self.model = model
        self.TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
        self.Logger = lambda level: level
        self.Logger.WARNING = 1  # type: ignore[attr-defined]
        self.nptype = lambda kind: kind
        self.Runtime = lambda _: SimpleNamespace(deserialize_cuda_engine=self.engine)

    def engine(self, plan: bytes) -> Any:
        method, model = plan.decode(), self.model
        given = np.float32 if method == "encode_image" else np.int32
        state: dict[str, Any] = {}

        def run(_: int) -> bool:
            shape = state["shape"]
            count = int(np.prod(shape)) * 4
            raw = (ctypes.c_char * count).from_address(state["rows"])
            rows = np.frombuffer(raw, given).reshape(shape).copy()
            with torch.inference_mode():
                features = getattr(model, method)(torch.from_numpy(rows)).numpy()
            ctypes.memmove(state["features"], features.tobytes(), features.nbytes)
            return True

        context = SimpleNamespace(
            set_input_shape=lambda _, shape: state.update(shape=shape),
            get_tensor_shape=lambda _: (state["shape"][0], MINUTE.embed_dim),
            set_tensor_address=lambda name, address: state.update({name: address}),
            execute_async_v3=run,
        )
        names = ["rows", "features"]
        return SimpleNamespace(
            num_io_tensors=2,
            get_tensor_name=names.__getitem__,
            get_tensor_mode=lambda name: "in" if name == "rows" else "out",
            get_tensor_dtype=lambda name: given if name == "rows" else np.float32,
            create_execution_context=lambda: context,
        )


def test_tensorrt_engine_with_a_fake(
    minute_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = clipcheck.load(minute_archive, device="cpu", jit=False)
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRT(model.float()))
    example = load("tensorrt_engine")
    monkeypatch.setattr(example, "DEVICE", "cpu")
    for tower in ("image", "text"):
        (tmp_path / f"model.{tower}.plan").write_text(f"encode_{tower}")
    pair = example.open_beside(str(tmp_path / "model.pt"))
    result = clipcheck.compare(minute_archive, pair, examples=4)
    assert result, render(result)


def test_finetuned_int8(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from clipcheck.writers.directories import write_open_clip

    write_open_clip(checkpoint, tmp_path / "folder")
    result = load("finetuned_int8").main(tmp_path / "folder", tmp_path / "int8.onnx")
    assert result.judgements[0].error is None, render(result)
    assert any(gate.name == "budget" for gate in result.judgements[0].gates)


def test_text_encoder(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=100,
        max_position_embeddings=8,
        bos_token_id=98,
        eos_token_id=99,
    )
    transformers.CLIPTextModel(config).eval().save_pretrained(tmp_path / "text_encoder")
    result = load("text_encoder").compare(str(tmp_path / "text_encoder"))
    assert result, render(result)


def test_my_model(minute_archive: Path) -> None:
    example = FOLDER / "test_my_model.py"
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(example)]
    env = {**os.environ, "MY_MODEL": str(minute_archive)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert "2 passed" in done.stdout, done.stdout


def test_failing_report(minute_archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_MODEL", str(minute_archive))
    example = load("failing_report")
    assert "FAIL" in example.result._repr_html_()
