"""Write a TorchScript archive in the layout of the released ones.

The modules of `clipcheck.writers.legacy` are traced over batches of no rows: the operations are
recorded with the shapes as values, and nothing is computed, whatever the size of the model.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcheck.checkpoints.architecture import BUFFERS, Architecture
from clipcheck.checkpoints.records import MappedFile, Records
from clipcheck.checkpoints.told import EXTRA, encode
from clipcheck.system import torchscript_support

if TYPE_CHECKING:
    import torch

    from clipcheck.writers.legacy import Multimodal

Alter = Callable[["Multimodal"], None]

RELEASED_DEVICE = "cuda:0"
"""The device that the released archives were traced on, and that their code names."""

_CODE_SIZE = 4 << 20
"""Bytes that are enough for an archive's code and constants; the largest released one has 2 MB."""


def write_archive(
    architecture: Architecture,
    tensors: Mapping[str, torch.Tensor],
    path: Path,
    *,
    alter: Alter | None = None,
) -> None:
    """Write ``tensors`` and the code that runs them.

    Args:
        tensors: the weights by the released keys, of the dtypes that the archive is to have; the
            integer buffers may be missing.
        path: where to, in a folder where another file may be written for a while.
        alter: called with the modules before they are traced. What it changes in how they compute
            is in the archive's code; `clipcheck.audit.faults` plants its faults so.

    Raises:
        UnavailableError: this torch or Python has no TorchScript.
    """
    torchscript_support.require()
    weights = {**buffers(architecture), **tensors}
    weights["logit_scale"] = weights["logit_scale"].reshape(())
    with torchscript_support.silenced():
        traced = _trace(architecture, weights, alter)
        for graph in _graphs(traced):
            _set_devices(graph)
        scratch = path.with_name(f"{path.name}.traced")
        traced.save(str(scratch))
    # As released where it computes so: their files have no such record.
    computes = {EXTRA: encode(architecture).encode()} if architecture.departures() else {}
    _relocate(scratch, path, computes)
    scratch.unlink()


def room(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes on the disk that writing an archive takes.

    Twice its size, for it is written twice. They have to be there beforehand: on a full disk
    torch's writer ends the process.
    """
    return 2 * (sum(tensor.nbytes for tensor in tensors.values()) + _CODE_SIZE)


def buffers(architecture: Architecture) -> dict[str, torch.Tensor]:
    """The three integer buffers of a released archive, int64 scalars."""
    import torch

    values = (architecture.image_resolution, architecture.context_length, architecture.vocab_size)
    return {key: torch.tensor(value) for key, value in zip(BUFFERS, values, strict=True)}


def _trace(
    architecture: Architecture, weights: Mapping[str, torch.Tensor], alter: Alter | None
) -> Any:
    import torch

    from clipcheck.writers.legacy import Multimodal

    with torch.device("meta"):
        model = Multimodal(architecture)
    placed = {key: tensor.detach().contiguous() for key, tensor in weights.items()}
    for key, counter in model.named_buffers():
        # Training code may leave BatchNorm's counters out.
        if key not in placed:
            placed[key] = torch.zeros_like(counter, device="cpu")
    model.load_state_dict(placed, assign=True)
    model.eval()
    if alter is not None:
        alter(model)
    side = architecture.image_resolution
    image = torch.zeros(0, 3, side, side)
    text = torch.zeros(0, architecture.context_length, dtype=torch.int64)
    methods = {"encode_image": (image,), "encode_text": (text,), "forward": (image, text)}
    return torch.jit.trace_module(model, methods, check_trace=False, _store_inputs=False)


def _graphs(module: Any) -> Iterator[Any]:
    for submodule in module.modules():
        for name in submodule._c._method_names():
            yield submodule._c._get_method(name).graph


def _set_devices(graph: Any) -> None:
    """Name the released device in every constant, but keep ``arange`` on the CPU as released."""
    for node in graph.findAllNodes("prim::Constant"):
        if str(node.output().type()) != "Device":
            continue
        if all(use.user.kind() == "aten::arange" for use in node.output().uses()):
            continue
        node.s_("value", RELEASED_DEVICE)


def _relocate(source: Path, path: Path, more: Mapping[str, bytes]) -> None:
    """Copy an archive, and say in its pickles that the storages come from the released device.

    torch writes the device that they are on, which is the CPU. A released file needs
    ``map_location`` on a machine without a GPU, and so does one that is written here.
    """
    import torch

    records = Records(MappedFile(source))
    writer = torch._C.PyTorchFileWriter(str(path))
    try:
        for name in records.names():
            if name == "version" or name.startswith(".data/"):
                continue  # The writer adds these itself.
            if name.endswith(".debug_pkl"):
                continue  # Paths of the source on this machine; the interpreter does without.
            data = records.read(name)
            if name in ("data.pkl", "constants.pkl"):
                data = _with_location(data)
            writer.write_record(name, data, len(data))
        for name, data in more.items():
            writer.write_record(name, data, len(data))
    finally:
        # After a failure as well: the writer's destructor would do it, and end the process.
        writer.write_end_of_file()


def _with_location(pickled: bytes) -> bytes:
    """The pickle with the released device wherever it has the string ``cpu``."""
    pieces: list[bytes] = []
    copied = 0
    for opcode, argument, position in pickletools.genops(pickled):
        if opcode.name == "BINUNICODE" and argument == "cpu" and position is not None:
            location = RELEASED_DEVICE.encode()
            pieces += [pickled[copied:position], b"X", len(location).to_bytes(4, "little")]
            pieces.append(location)
            copied = position + 5 + len(argument)
    return b"".join([*pieces, pickled[copied:]])
