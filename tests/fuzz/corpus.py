"""Seeds of the search: small inputs, written by our own writers and by torch."""

from __future__ import annotations

import argparse
import datetime
import functools
import io
import json
import struct
import tempfile
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image

from clipcheck.checkpoints.architecture import ARCHITECTURES
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.configs_of_open_clip import open_clip_config
from clipcheck.checkpoints.configs_of_transformers import transformers_config
from clipcheck.checkpoints.keymaps import Layout, to_layout
from clipcheck.checkpoints.keys import specs
from clipcheck.harness.search import saved as replays
from clipcheck.inputs.examples import Example
from clipcheck.results.document import render
from tests.fuzz.mutate import pack
from tests.report import failing_result, several_backends
from tests.samples import MINUTE, minute_bytes, minute_weights, saved

TOP = "minute"
"""The folder that all records of an archive are in."""

DATA = {f"data/{number}": bytes(64) for number in range(6)}
"""Records with weights, for pickles that are altered."""


def zipped(records: Mapping[str, bytes]) -> bytes:
    """Return a zip file like torch's, as far as names and places of records go."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        for name, contents in records.items():
            target.writestr(zipfile.ZipInfo(f"{TOP}/{name}"), contents)
    return out.getvalue()


@functools.cache
def records_of(form: Format) -> dict[str, bytes]:
    """Return the records of the smallest checkpoint of this format, by name."""
    with zipfile.ZipFile(io.BytesIO(minute_bytes(form))) as archive:
        return {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}


def zips() -> list[bytes]:
    """A stored and a compressed record, as torch writes them, with its own headers and end."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as target:
        target.writestr("a/version", "3")
        target.writestr("a/code/x.py", "x" * 300, zipfile.ZIP_DEFLATED)
        target.writestr("a/data/0", bytes(16))
    return [out.getvalue(), saved([torch.zeros(2)])]


def archive_pickles() -> list[bytes]:
    """The pickles of a whole archive, and of a module with one tensor."""
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQK\x00(K\x02t(K\x01t\x89"
        b"ccollections\nOrderedDict\n)RtR"
    )
    module = b"\x80\x02c__torch__\nM\n)\x81}(X\x01\x00\x00\x00a" + tensor + b"ub."
    records = records_of(Format.ARCHIVE)
    return [module, records["data.pkl"], records["constants.pkl"]]


def training() -> dict[str, object]:
    """A checkpoint of training code, with two models and all kinds of objects."""
    model = {"module.visual.a": torch.zeros(2), "module.text.b": torch.zeros(1).half()}
    return {
        "model": model,
        "ema": {key.replace("module", "m._orig_mod"): t.clone() for key, t in model.items()},
        "args": argparse.Namespace(lr=np.float64(0.1), folder=PurePosixPath("a"), names={"a"}),
        "array": np.zeros(2),
        "when": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "bytes": b"a",
        "losses": defaultdict(list, {"a": [1.0]}),
    }


def state_dict_pickles() -> list[bytes]:
    """The pickles of a whole state dict, of two tensors, and of what training code saves around
    them."""
    two = {"a": torch.zeros(2, 3), "b": torch.zeros(4).half()}
    around = {"state_dict": OrderedDict(two), "epoch": 3, "best": 0.5, "names": ["a", ("b",)]}
    strange = {"p": torch.nn.Parameter(torch.zeros(2)), "q": torch.zeros(1), "s": torch.Size([1])}
    pickles = []
    for value in (two, around, strange, training()):
        with zipfile.ZipFile(io.BytesIO(saved(value))) as archive:
            name = next(each for each in archive.namelist() if each.endswith("data.pkl"))
            pickles.append(archive.read(name))
    return [*pickles, records_of(Format.STATE_DICT)["data.pkl"]]


def legacy_files() -> list[bytes]:
    """Files as torch wrote them before 1.6: two tensors, and what training code saves."""
    two = {"a": torch.zeros(2), "b": torch.ones(3).half()}
    return [saved(value, legacy=True) for value in (two, training())]


def codes() -> list[bytes]:
    """The longest piece of an archive's code, and code that names devices and dtypes."""
    code = [data for name, data in records_of(Format.ARCHIVE).items() if name.endswith(".py")]
    asked = b'x = torch.zeros([1], dtype=6, device=torch.device("cuda:0"))\ny = torch.to(x, 5)\n'
    return [max(code, key=len), asked]


def safetensors_files() -> list[bytes]:
    """A whole model, and two tensors."""
    whole = minute_bytes(Format.SAFETENSORS)
    header = {
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "F16", "shape": [1, 2], "data_offsets": [8, 12]},
        "__metadata__": {"format": "pt"},
    }
    text = json.dumps(header).encode()
    return [struct.pack("<Q", len(text)) + text + bytes(12), whole]


def shapes() -> list[bytes]:
    """Keys and shapes of all kinds, in each layout, as JSON."""
    found = []
    for architecture in (ARCHITECTURES["tiny-vit"], ARCHITECTURES["tiny-resnet"], MINUTE):
        found.append({key: list(spec.shape) for key, spec in specs(architecture)})
    for layout in (Layout.CUSTOM_TEXT, Layout.TRANSFORMERS):
        weights = to_layout(minute_weights(), layout)
        found.append({key: list(tensor.shape) for key, tensor in weights.items()})
    return [json.dumps(each).encode() for each in found]


def folders() -> list[bytes]:
    """A configuration and an index, of transformers and of open_clip."""
    index = {"metadata": {}, "weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}
    ours = {"model_cfg": open_clip_config(MINUTE), "preprocess_cfg": {"mean": [0.5]}}
    theirs = transformers_config(MINUTE)
    return [
        pack(json.dumps(theirs).encode(), b"", json.dumps(index).encode()),
        pack(json.dumps(theirs).encode(), b"", b""),
        pack(b"", json.dumps(ours).encode(), b""),
    ]


def replayed() -> list[bytes]:
    """A saved failing input: its JSON and its picture."""
    described = {
        "checkpoint": "a.pt",
        "sha256": "ab" * 32,
        "device": "cpu",
        "dtype": "float32",
        "limits": {"atol": 0.01, "rtol": 0.1},
        "backend": "jit",
        "reference_checkpoint": None,
    }
    found = []
    for mode in ("RGB", "P", "I;16"):
        example = Example((Image.new(mode, (3, 2)),), ("a photo", (49406, 5, 49407)))
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "found"
            replays.write(target, example, described, "")
            document = (target / "example.json").read_bytes()
            found.append(pack(document, (target / "image-1.png").read_bytes()))
    return found


def results() -> list[bytes]:
    """Documents of checks: one that failed, and one of several backends."""
    return [render(result).encode() for result in (failing_result(), several_backends())]


@functools.cache
def exported() -> bytes:
    """Export one linear layer, for any number of rows."""
    rows = torch.export.Dim("rows", min=1)
    found = torch.export.export(
        torch.nn.Linear(3, 3), (torch.zeros(2, 3),), dynamic_shapes=({0: rows},), strict=False
    )
    file = io.BytesIO()
    torch.export.save(found, file)
    return file.getvalue()


def programs() -> list[bytes]:
    """The JSON of an exported program, of the list of its weights, and its example inputs."""
    parts = {"models/model.json": b"{}", "_config.json": b"{}", "sample_inputs/model.pt": b""}
    with zipfile.ZipFile(io.BytesIO(exported())) as archive:
        for name in archive.namelist():
            for ending in parts:
                if name.endswith(ending):
                    parts[ending] = archive.read(name)
    return [pack(*parts.values())]


def onnx_files() -> list[bytes]:
    """A product with a weight in half precision, and one whose weight file is the program
    itself."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    found = []
    for location in ("", "file"):
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:]
        )
        weight = graph.initializer.add(name="w", data_type=TensorProto.FLOAT16, dims=[1])
        weight.raw_data = b"\0\0"
        if location:
            weight.data_location = TensorProto.EXTERNAL
            for key, value in {"location": location, "offset": "2", "length": "2"}.items():
                weight.external_data.add(key=key, value=value)
        found.append(helper.make_model(graph).SerializeToString())
    return found


def entries() -> list[bytes]:
    """The checksums of a kept program, and the files beside them."""
    return [json.dumps({"program": "ab" * 32}).encode()]
