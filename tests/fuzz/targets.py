"""Every parser, called as the package calls it, on one altered input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from clipcheck.backends.artefacts import Artefacts
from clipcheck.checkpoints.artefacts import is_compiled, kind_of, require_inert
from clipcheck.checkpoints.checkpoint import Format, Program
from clipcheck.checkpoints.dimensions import infer
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.inspection import format_version, read_code
from clipcheck.checkpoints.keymaps import from_layout, layout_of
from clipcheck.checkpoints.onnx_data import computing_dtype
from clipcheck.checkpoints.opening import open_subject
from clipcheck.checkpoints.records import MappedFile, Records
from clipcheck.checkpoints.saved import map_tensors
from clipcheck.checkpoints.unpickle import read_tensors
from clipcheck.harness.search import saved
from clipcheck.report import history, inspection
from clipcheck.report.cells import visible_lines
from clipcheck.results.history import compare, read_results
from tests.fuzz import corpus, mutate
from tests.fuzz.mutate import Mutator, unpack
from tests.samples import minute_bytes


@dataclass(frozen=True)
class Target:
    """A parser under search.

    Attributes:
        name: what it is called on the command line.
        seeds: gives the inputs that the search starts from.
        run: parses one input; it may write into the folder that it is given. Lets out whatever the
            parser lets out.
        alter: changes an input, by its structure.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes, Path], None]
    alter: Mutator


def _written(data: bytes, folder: Path, name: str = "file") -> Path:
    path = folder / name
    # A new file each time: what is mapped still must not change.
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def _printed(text: str) -> None:
    """Print a result as the command line does."""
    visible_lines(text).encode()


def _zip(data: bytes, folder: Path) -> None:
    records = Records(MappedFile(_written(data, folder)))
    records.verify()
    for name in records.names():
        records.read(name)


def _archive_pickle(data: bytes, folder: Path) -> None:
    records = corpus.zipped({"data.pkl": data, "constants.pkl": data, **corpus.DATA})
    opened = Records(MappedFile(_written(records, folder)))
    map_tensors(opened, read_tensors(opened))


def _archive(data: bytes, folder: Path) -> None:
    records = corpus.records_of(Format.ARCHIVE)
    # Code is looked at elsewhere: parsing all of it each time takes most of the time.
    kept = {name: data for name, data in records.items() if not name.startswith("code/")}
    _open(corpus.zipped({**kept, "data.pkl": data}), folder)


def _open(data: bytes, folder: Path) -> None:
    """Open a file as ``clipcheck inspect`` does."""
    checkpoint = open_checkpoint(_written(data, folder))
    checkpoint.verify()
    _printed(inspection.render(checkpoint))


def _state_dict(data: bytes, folder: Path) -> None:
    records = corpus.DATA
    if len(data) > 2000:  # the whole one's
        records = corpus.records_of(Format.STATE_DICT)
    _open(corpus.zipped({**records, "data.pkl": data, "version": b"3\n"}), folder)


def _code(data: bytes, folder: Path) -> None:
    version, code = unpack(data, 2)
    records = Records(MappedFile(_written(
        corpus.zipped({"version": version, "code/__torch__/x.py": code}), folder
    )))  # fmt: skip
    _printed(format_version(records))
    found = read_code(records)
    _printed(f"{found.devices} {found.dtypes}")


class _Shaped(NamedTuple):
    shape: tuple[int, ...]


def _shapes(data: bytes, folder: Path) -> None:
    """Derive architecture and layout from any keys and shapes."""
    document = json.loads(data)
    found = {
        key: tuple(abs(int(size)) % (1 << 40) for size in shape if isinstance(size, int))
        for key, shape in document.items()
        if isinstance(shape, list)
    }
    # torch itself has no tensor of more.
    found = {key: shape for key, shape in found.items() if math.prod(shape) < 1 << 60}
    layout = layout_of(found)
    tensors = {key: torch.zeros(()).expand(shape) for key, shape in found.items()}
    try:
        infer({key: _Shaped(shape) for key, shape in found.items()}, folder)
    finally:
        infer(from_layout(tensors, layout, folder), folder)


def _shapes_of_json(data: bytes, folder: Path) -> None:
    try:
        json.loads(data).items()
    except (ValueError, AttributeError, RecursionError):
        return
    _shapes(data, folder)


def _folder(data: bytes, folder: Path) -> None:
    theirs, ours, index = unpack(data, 3)
    home = folder / "model"
    home.mkdir(exist_ok=True)
    for path in home.iterdir():
        path.unlink()
    weights = "model.safetensors" if theirs else "open_clip_model.safetensors"
    for name, contents in (("config.json", theirs), ("open_clip_config.json", ours)):
        if contents:
            (home / name).write_bytes(contents)
    if index:
        (home / f"{weights}.index.json").write_bytes(index)
        weights = "x.safetensors"
    (home / weights).write_bytes(minute_bytes(Format.SAFETENSORS))
    _printed(inspection.render(open_checkpoint(home)))


def _replay(data: bytes, folder: Path) -> None:
    document, picture = unpack(data, 2)
    _written(document, folder, "example.json")
    _written(picture, folder, "image-1.png")
    saved.read(folder)


def _results(data: bytes, folder: Path) -> None:
    run = read_results(_written(data, folder))
    other = read_results(_written(corpus.results()[0], folder, "other"))
    found = compare(other, run)
    _printed(history.render(found))
    history.render_json(found).encode()


def _program(data: bytes, folder: Path) -> None:
    model, weights, inputs = unpack(data, 3)
    path = _written(
        corpus.zipped(
            {
                "archive_format": b"pt2",
                "byteorder": b"little",
                "models/model.json": model,
                "data/weights/model_weights_config.json": weights,
                "data/sample_inputs/model.pt": inputs,
            }
        ),
        folder,
    )
    kind_of(path)
    is_compiled(path)
    require_inert(path)


def _kind(data: bytes, folder: Path) -> None:
    subject = open_subject(_written(data, folder))
    if isinstance(subject, Program):
        computing_dtype(subject.path)


def _kept(data: bytes, folder: Path) -> None:
    """Read the checksums of a kept program; a damaged one is built anew."""
    kept = folder / "kept"
    artefacts = Artefacts(kept, folder / "scratch", limit=1 << 20)

    def build(path: Path) -> None:
        path.write_bytes(b"built")

    path = artefacts.get("program", {}, build)
    record = path.parent / ".sha256.json"
    record.write_bytes(data)
    Artefacts(kept, folder / "scratch", limit=1 << 20).get("program", {}, build)


def _with_version(seeds: Callable[[], list[bytes]]) -> Callable[[], list[bytes]]:
    return lambda: [mutate.pack(b"3\n", seed) for seed in seeds()]


TARGETS = {
    target.name: target
    for target in (
        Target("zip", corpus.zips, _zip, mutate.in_zip),
        Target("archive-pickle", corpus.archive_pickles, _archive_pickle, mutate.in_pickle),
        Target("archive", lambda: corpus.archive_pickles()[1:2], _archive, mutate.in_pickle),
        Target("state-dict", corpus.state_dict_pickles, _state_dict, mutate.in_pickle),
        Target("legacy", corpus.legacy_files, _open, mutate.in_pickle),
        Target("code", _with_version(corpus.codes), _code,
               mutate.of_parts(mutate.in_bytes, mutate.in_bytes)),
        Target("safetensors", corpus.safetensors_files, _open, mutate.in_safetensors),
        Target("architecture", corpus.shapes, _shapes_of_json, mutate.in_json),
        Target("folder", corpus.folders, _folder, mutate.of_parts(*[mutate.in_json] * 3)),
        Target("replay", corpus.replayed, _replay,
               mutate.of_parts(mutate.in_json, mutate.in_png)),
        Target("results", corpus.results, _results, mutate.in_json),
        Target("program", corpus.programs, _program,
               mutate.of_parts(mutate.in_json, mutate.in_json, mutate.in_pickle)),
        Target("onnx", corpus.onnx_files, _kind, mutate.in_bytes),
        Target("kept", corpus.entries, _kept, mutate.in_json),
    )
}  # fmt: skip
