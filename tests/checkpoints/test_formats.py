from __future__ import annotations

import codecs
import io
import os
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from clipcheck.checkpoints import download
from clipcheck.checkpoints.architecture import BUFFERS, ResNet
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, same_bits
from clipcheck.checkpoints.formats import locate, open_checkpoint
from clipcheck.errors import (
    ArchitectureError,
    CheckpointError,
    DamagedError,
    UnknownFormatError,
    UnknownModelError,
    UnsafeError,
)
from tests.oracles import open_clip, reference_clip
from tests.samples import (
    MINUTE,
    Weights,
    code_record,
    flipped,
    minute_bytes,
    minute_weights,
    repacked,
    saved,
)
from tests.thorough import parametrize


def opened(data: bytes, folder: Path, name: str = "file") -> Checkpoint:
    path = folder / name
    path.write_bytes(data)
    checkpoint = open_checkpoint(path)
    checkpoint.verify()
    assert checkpoint.path == path
    return checkpoint


def assert_same_weights(found: Mapping[str, torch.Tensor], expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert same_bits(found[key], tensor), key
        assert not found[key].requires_grad


# ------------------------------------------------------------------ told by content

FILES: dict[str, tuple[Format, Callable[[], bytes]]] = {
    "archive": (Format.ARCHIVE, lambda: minute_bytes(Format.ARCHIVE)),
    "state dict": (Format.STATE_DICT, lambda: minute_bytes(Format.STATE_DICT)),
    "legacy state dict": (Format.STATE_DICT, lambda: saved(minute_weights(), legacy=True)),
    "safetensors": (Format.SAFETENSORS, lambda: minute_bytes(Format.SAFETENSORS)),
}


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.safetensors", "x.zip", "x.jpg", "x", "RN50x"])
@pytest.mark.parametrize("file", FILES)
def test_the_content_decides_the_format_whatever_the_name(
    tmp_path: Path, file: str, name: str
) -> None:
    form, data = FILES[file]
    checkpoint = opened(data(), tmp_path, name)
    assert (checkpoint.format, checkpoint.architecture) == (form, MINUTE)
    assert_same_weights(checkpoint.tensors, minute_weights())


def test_an_archive_without_constants_or_code_is_recognised(tmp_path: Path) -> None:
    data = minute_bytes(Format.ARCHIVE)
    for prefix in ("constants", "code/"):
        part = repacked(data, drop=lambda name, prefix=prefix: name.startswith(prefix))  # type: ignore[misc]
        assert opened(part, tmp_path, f"no {prefix[:4]}").format is Format.ARCHIVE


def test_an_archive_needs_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the file was given to torch")

    monkeypatch.setattr(torch.jit, "load", never)
    monkeypatch.setattr(torch, "load", never)
    opened(minute_bytes(Format.ARCHIVE), tmp_path)


# ------------------------------------------------------------------ state dicts of all kinds

Wrap = Callable[[Weights], object]


def training_state(weights: Weights, key: str) -> dict[str, object]:
    """Return what training code saves: the weights, and the state for resuming."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=1e-3)
    parameter.sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "name": "a run",
        key: weights,
        "optimizer": optimizer.state_dict(),
        "scaler": {"scale": 65536.0, "growth_interval": 2000},
    }


WRAPPED: dict[str, Wrap] = {
    "bare": lambda weights: weights,
    "ordered": OrderedDict,
    "state_dict": lambda weights: {"state_dict": weights},
    "model": lambda weights: {"model": OrderedDict(weights)},
    "training, state_dict": lambda weights: training_state(weights, "state_dict"),
    "training, model": lambda weights: training_state(weights, "model"),
    "parameters": lambda weights: {
        key: torch.nn.Parameter(t) if t.is_floating_point() else t for key, t in weights.items()
    },
}
ALTERED: dict[str, Callable[[Weights], Weights]] = {
    "as released": lambda weights: weights,
    "all half": lambda weights: {key: tensor.half() for key, tensor in weights.items()},
    "all float": lambda weights: {key: tensor.float() for key, tensor in weights.items()},
    "no buffers": lambda weights: {k: t for k, t in weights.items() if k not in BUFFERS},
    "bfloat16": lambda weights: {
        key: t.bfloat16() if t.is_floating_point() else t for key, t in weights.items()
    },
    "other strides": lambda weights: {
        key: t.t().contiguous().t() if t.ndim == 2 else t for key, t in weights.items()
    },
}


@parametrize("legacy", [False, True], quick=1, ids=["zip", "legacy"])
@parametrize("prefix", ["", "module."], quick=1, ids=["plain", "parallel"])
@pytest.mark.parametrize("altered", ALTERED)
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_state_dict_is_found_in_whatever_training_code_saves(
    tmp_path: Path, wrapped: str, altered: str, prefix: str, legacy: bool
) -> None:
    weights = ALTERED[altered](minute_weights())
    prefixed = {f"{prefix}{key}": tensor for key, tensor in weights.items()}
    checkpoint = opened(saved(WRAPPED[wrapped](prefixed), legacy=legacy), tmp_path)
    assert (checkpoint.format, checkpoint.architecture) == (Format.STATE_DICT, MINUTE)
    assert_same_weights(checkpoint.tensors, weights)


@pytest.mark.parametrize("prefix", ["", "module."], ids=["plain", "parallel"])
def test_safetensors_may_have_the_parallel_prefix(tmp_path: Path, prefix: str) -> None:
    weights = {f"{prefix}{key}": tensor for key, tensor in minute_weights().items()}
    checkpoint = opened(save(weights, {"author": "somebody"}), tmp_path)
    assert checkpoint.format is Format.SAFETENSORS
    assert_same_weights(checkpoint.tensors, minute_weights())


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_what_open_clip_trains_and_saves_is_read(tmp_path: Path, tower: str) -> None:
    cfg = open_clip().model
    vision = (
        cfg.CLIPVisionCfg(layers=1, width=64, patch_size=8, image_size=16)
        if tower == "vit"
        else cfg.CLIPVisionCfg(layers=(1, 1, 1, 1), width=4, image_size=64)
    )
    text = cfg.CLIPTextCfg(context_length=8, vocab_size=100, width=64, heads=1, layers=1)
    model = cfg.CLIP(64, vision, text, quick_gelu=True)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    weights = dict(model.state_dict())
    # The dict of open_clip_train/main.py; it trains under DistributedDataParallel.
    training = {
        "epoch": 1,
        "name": "run",
        "state_dict": {f"module.{key}": tensor for key, tensor in weights.items()},
        "optimizer": optimizer.state_dict(),
    }
    checkpoint = opened(saved(training), tmp_path)
    assert isinstance(checkpoint.architecture.vision, ResNet) is (tower == "resnet")
    assert checkpoint.dtypes == ["float32"]
    assert_same_weights(checkpoint.tensors, weights)


def test_what_the_reference_model_saves_is_read(tmp_path: Path) -> None:
    model = reference_clip().model.CLIP(64, 16, 1, 64, 8, 8, 100, 64, 1, 1)
    reference_clip().model.convert_weights(model)
    checkpoint = opened(saved(model.state_dict()), tmp_path)
    assert checkpoint.architecture == MINUTE
    assert checkpoint.dtypes == ["float16", "float32"]
    assert_same_weights(checkpoint.tensors, model.state_dict())


def test_a_state_dict_is_mapped_and_not_copied(tmp_path: Path) -> None:
    checkpoint = opened(saved(minute_weights()), tmp_path)
    assert _is_mapped(checkpoint.tensors["token_embedding.weight"], checkpoint.path)


def test_an_archive_is_mapped_and_not_copied(tmp_path: Path) -> None:
    checkpoint = opened(minute_bytes(Format.ARCHIVE), tmp_path)
    assert _is_mapped(checkpoint.tensors["token_embedding.weight"], checkpoint.path)


def _is_mapped(tensor: torch.Tensor, path: Path) -> bool:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell what is mapped")
    for line in maps.read_text().splitlines():
        if line.endswith(str(path)):
            first, last = (int(end, 16) for end in line.split()[0].split("-"))
            if first <= tensor.data_ptr() < last:
                return True
    return False


# ------------------------------------------------------------------ weights of no use


def with_weight(key: str, tensor: torch.Tensor) -> Weights:
    return {**minute_weights(), key: tensor}


KEY = "visual.proj"
UNUSABLE = {
    "int8": (KEY, torch.ones(64, 64, dtype=torch.int8)),
    "bool": (KEY, torch.ones(64, 64, dtype=torch.bool)),
    "complex64": (KEY, torch.ones(64, 64, dtype=torch.complex64)),
    "float8_e4m3fn": (KEY, torch.ones(64, 64).to(torch.float8_e4m3fn)),
    "float32 without values": (KEY, torch.ones(64, 64, device="meta")),
    "int64": (KEY, torch.ones(64, 64, dtype=torch.int64)),
    "float32": ("vocab_size", torch.tensor(99.5)),
    "float64": ("vocab_size", torch.tensor(float("nan"), dtype=torch.float64)),
    "complex128": ("vocab_size", torch.tensor(100 + 0j, dtype=torch.complex128)),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_weights_that_no_clip_model_can_hold_are_named(tmp_path: Path, kind: str) -> None:
    key, tensor = UNUSABLE[kind]
    with pytest.raises(ArchitectureError) as caught:
        opened(saved(with_weight(key, tensor)), tmp_path)
    assert caught.value.problem == (
        "expected dense weights of float16, bfloat16, float32 or float64 and whole numbers in "
        f"the buffers, found {key} ({kind})"
    )


def test_sparse_weights_are_refused_before_they_are_made(tmp_path: Path) -> None:
    with pytest.raises(
        ArchitectureError, match=r"found tensors of torch\._utils\._rebuild_sparse_tensor"
    ):
        opened(saved(with_weight(KEY, torch.eye(64).to_sparse())), tmp_path)


def test_quantized_weights_are_refused_before_they_are_made(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates them
        quantized = torch.quantize_per_tensor(torch.ones(64, 64), 0.1, 0, torch.qint8)
        data = saved(with_weight(KEY, quantized))
    with pytest.raises(
        ArchitectureError, match=r"found tensors of torch\._utils\._rebuild_qtensor"
    ):
        opened(data, tmp_path)


def test_five_of_many_such_weights_are_named_and_the_others_counted(tmp_path: Path) -> None:
    bytes_only = {key: tensor.to(torch.uint8) for key, tensor in minute_weights().items()}
    with pytest.raises(ArchitectureError, match=r"logit_scale \(uint8\), .*\) and 33 more\. Save"):
        opened(saved(bytes_only), tmp_path)


def test_an_archives_weights_are_judged_in_the_same_way(tmp_path: Path) -> None:
    pickled = _pickle_of(minute_bytes(Format.ARCHIVE))
    altered = pickled.replace(b"HalfStorage", b"ShortStorage", 1)
    with pytest.raises(ArchitectureError, match=r"text_projection \(int16\)"):
        opened(repacked(minute_bytes(Format.ARCHIVE), {"data.pkl": altered}), tmp_path)


def _pickle_of(archive: bytes) -> bytes:
    reader = torch._C.PyTorchFileReader(io.BytesIO(archive))
    pickled: bytes = reader.get_record("data.pkl")
    return pickled


# ------------------------------------------------------------------ what is no state dict

NO_STATE_DICTS: dict[str, tuple[object, str]] = {
    "a tensor": (torch.ones(2), "expected a dict of tensors by name, found a tensor"),
    "a list": ([torch.ones(2)], "expected a dict of tensors by name, found a list"),
    "an object": (np.ones(2), "expected a dict of tensors by name, found an object of another cl"),
    "tensors that are no model": ({"a": torch.ones(1), "b": 3}, "its 1 keys begin with 'a'"),
    "the most tensors": (
        {"x": {"a": torch.ones(1)}, "y": {"b": {"c": torch.ones(1), "d": torch.ones(1)}}},
        "its 2 keys begin with 'c', 'd'",
    ),
    "no tensors": ({"state_dict": {}}, "found none under its keys: state_dict"),
    "arrays": ({"visual.proj": np.ones(2)}, "found none under its keys: visual.proj"),
    "numbers as keys": ({1: torch.ones(1)}, "found none under its keys, which are no names"),
    "nothing": ({}, "expected a dict of tensors by name, found one without any keys"),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("case", NO_STATE_DICTS)
def test_another_object_is_refused_with_what_it_is(tmp_path: Path, case: str, legacy: bool) -> None:
    value, problem = NO_STATE_DICTS[case]
    with pytest.raises(ArchitectureError, match=re.escape(problem)):
        opened(saved(value, legacy=legacy), tmp_path)


class Calling:
    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, f"{os.name}.system"),
        (eval, "eval"),
        (torch.nn.Linear, "torch.nn.modules.linear.Linear"),
    ],
)
def test_a_pickle_that_would_run_code_is_refused_by_name(
    tmp_path: Path, function: Any, name: str, legacy: bool
) -> None:
    trace = tmp_path / "trace"
    value = {**minute_weights(), "x": Calling(function, f"touch {trace}")}
    with pytest.raises(UnsafeError) as caught:
        opened(saved(value, legacy=legacy), tmp_path)
    assert caught.value.problem == (
        f"its pickle asks for {name}, which could run code; nothing was run"
    )
    assert not trace.exists()


def test_an_invalid_pickle_is_reported_as_damage_in_a_few_words(tmp_path: Path) -> None:
    legacy = saved(minute_weights(), legacy=True)
    problems = set()
    for position in range(15, 400):
        try:
            opened(flipped(legacy, position, 0xFF), tmp_path)
        except DamagedError as error:
            problems.add(error.problem)
        except (ArchitectureError, UnsafeError):
            pass  # other keys, or another name where one of torch's was
    assert any(problem.startswith("its pickle cannot be read (") for problem in problems)
    for problem in problems:
        assert "weights_only" not in problem
        assert "\n" not in problem
        assert len(problem) < 200


def test_a_bare_pickle_is_not_read_at_all(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError, match="found bytes that begin with 80 04"):
        opened(pickle.dumps({"a": 1}, protocol=4), tmp_path)


# ------------------------------------------------------------------ archives that are not sound


def test_big_endian_weights_are_refused(tmp_path: Path) -> None:
    data = repacked(minute_bytes(Format.ARCHIVE), {"byteorder": b"big"})
    with pytest.raises(DamagedError, match="its weights are big-endian"):
        opened(data, tmp_path)


def test_an_archive_from_before_the_byte_order_was_recorded_is_read(tmp_path: Path) -> None:
    data = repacked(minute_bytes(Format.ARCHIVE), drop=lambda name: name == "byteorder")
    assert_same_weights(opened(data, tmp_path).tensors, minute_weights())


def test_a_record_shorter_than_its_tensor_is_refused(tmp_path: Path) -> None:
    data = repacked(minute_bytes(Format.ARCHIVE), {"data/9": bytes(100)})
    with pytest.raises(DamagedError, match="data/9' has 100 bytes, fewer than its tensor needs"):
        opened(data, tmp_path)


@pytest.mark.parametrize("form", [Format.ARCHIVE, Format.STATE_DICT])
def test_a_missing_pickle_is_named(tmp_path: Path, form: Format) -> None:
    data = repacked(minute_bytes(form), drop=lambda name: name == "data.pkl")
    with pytest.raises(DamagedError, match=r"the record 'data\.pkl' is missing"):
        opened(data, tmp_path)


EARLY = ("data.pkl", "version", "byteorder")


@pytest.mark.parametrize(
    ("form", "name"),
    [
        *((form, name) for form in (Format.ARCHIVE, Format.STATE_DICT) for name in EARLY),
        (Format.ARCHIVE, "constants.pkl"),
        (Format.ARCHIVE, "constants/0"),
        (Format.ARCHIVE, "code"),
    ],
)
def test_records_that_decide_how_a_file_is_read_are_verified_on_opening(
    tmp_path: Path, form: Format, name: str
) -> None:
    data = minute_bytes(form)
    name = code_record(data) if name == "code" else name
    altered = repacked(data, {name: b"X" * 40})
    at = altered.index(b"X" * 40)
    path = tmp_path / "file"
    path.write_bytes(flipped(altered, at))
    with pytest.raises(DamagedError, match=f"{re.escape(name)}' was altered"):
        open_checkpoint(path)


# ------------------------------------------------------------------ what is no checkpoint

FOREIGN = {
    "text": (b"hello, world\n", r"text that begins with 'hello, world\n'"),
    "long text": (b"x" * 1000, "text that begins with 'xxxxxxxxxxxxxxxxxxxxxxxx'"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, which stands"),
    "html": (b"\n<!DOCTYPE html>\n<html>", "an HTML page, as servers send in place"),
    "xhtml": (b"<HTML lang='en'>", "an HTML page, as servers send in place"),
    "binary": (bytes(range(100)), "bytes that begin with 00 01 02 03 04 05 06 07"),
    "png": (b"\x89PNG\r\n\x1a\n", "bytes that begin with 89 50 4e 47"),
    "nearly safetensors": ((1000).to_bytes(8, "little") + b"{", "bytes that begin with e8 03"),
    "two bytes of a zip file": (b"PK", "text that begins with 'PK'"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_another_file_is_described(tmp_path: Path, case: str) -> None:
    data, description = FOREIGN[case]
    with pytest.raises(UnknownFormatError) as caught:
        opened(data, tmp_path)
    assert caught.value.problem.startswith(
        "expected a TorchScript archive, a state dict saved by torch.save, or a safetensors file; "
        "found "
    )
    assert description in caught.value.problem
    again = {"lfs": "git lfs pull", "html": "Download the file again", "xhtml": "Download"}
    assert again.get(case, "Give the path of a checkpoint.") in caught.value.remedy


def test_a_cut_off_header_is_reported_as_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((1000).to_bytes(8, "little") + b'{"a":')
    with pytest.raises(DamagedError, match="its header has 1,000 bytes, and the file 13: it was"):
        open_checkpoint(path)


def test_the_error_for_a_program_asks_for_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"\x08\x08\x3a\x00\x42\x00")  # its version, graph and opsets
    with pytest.raises(UnknownFormatError, match=r"found a program \(onnx\)") as caught:
        open_checkpoint(path)
    assert caught.value.remedy == "Give the checkpoint that it was made from."


def test_a_pipe_is_refused_without_reading(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(UnknownFormatError, match="found a device"):
        open_checkpoint(path)


# ------------------------------------------------------------------ names and paths


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    assert locate(path, None) == path
    assert locate(str(path), None) == path


def test_a_released_name_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "fetched"
    path.write_bytes(minute_bytes(Format.ARCHIVE))
    asked = []

    def fetch(name: str, root: object) -> Path:
        asked.append((name, root))
        return path

    monkeypatch.setattr(download, "fetch", fetch)
    monkeypatch.chdir(tmp_path)
    Path("RN50").write_text("a file of that name does not stand in for the released one")
    assert open_checkpoint("RN50", tmp_path).path == path
    assert asked == [("RN50", tmp_path)]


@pytest.mark.parametrize("name", ["ViT-B/33", "gone/RN50.pt", "nul\0", ""])
def test_a_name_that_is_neither_path_nor_model_is_an_error(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    # The empty name is the path of this folder, as it is for Path.
    expected = UnknownModelError if name else UnknownFormatError
    with pytest.raises(expected):
        open_checkpoint(name)


def test_a_path_below_a_file_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnknownModelError):
        open_checkpoint(tmp_path / "file" / "x.pt")


def test_an_error_on_the_way_to_a_path_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read \(File name too long\)\. Check"):
        open_checkpoint(tmp_path / ("x" * 1000))


# ------------------------------------------------------------------ what a pickle may ask for


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(codecs.encode, ("x", "punycode")), (bytearray, (1 << 40,))],
    ids=["encode", "bytearray"],
)
def test_files_that_would_fill_memory_or_take_forever_are_refused(
    tmp_path: Path, function: Any, arguments: tuple[object, ...]
) -> None:
    state = {"state_dict": minute_weights(), "x": Calling(function, *arguments)}
    with pytest.raises(UnsafeError, match="which could use any amount of memory or time"):
        opened(saved(state), tmp_path)


class Trusted:
    pass


def test_classes_that_the_caller_allows_in_torch_are_read(tmp_path: Path) -> None:
    data = saved({"state_dict": minute_weights(), "x": Trusted()})
    with pytest.raises(UnsafeError, match="Trusted"):
        opened(data, tmp_path)
    with torch.serialization.safe_globals([Trusted]):
        assert opened(data, tmp_path).tensors


def test_weights_may_share_storage_within_limits(tmp_path: Path) -> None:
    weights = {**minute_weights(), "ln_final.bias": torch.zeros(()).expand(64)}
    assert opened(saved(weights), tmp_path).tensors["ln_final.bias"].stride() == (0,)
